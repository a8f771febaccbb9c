"""The corpus in the package: small enough to ship, whole weeks, sound rows, a quiet reference and a drifted end."""

from __future__ import annotations

import csv
import importlib
import itertools
import shutil
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType

import dcor
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import gpudrift
from gpudrift import sample

ROOT = Path(gpudrift.__file__).resolve().parent.parent
# Rows of each ISO week in the data set the sample was cut from: a week that has fewer here is not whole.
ROWS = {
    "2021-W20": 334, "2021-W21": 362, "2021-W22": 356, "2021-W23": 357, "2021-W24": 348, "2021-W25": 343,
    "2021-W26": 362, "2021-W27": 334, "2021-W28": 334, "2021-W29": 330, "2021-W30": 319, "2021-W31": 330,
    "2021-W32": 355, "2021-W33": 330, "2021-W34": 349, "2022-W28": 363, "2022-W29": 335, "2023-W28": 333,
    "2023-W29": 338, "2024-W28": 351, "2024-W29": 349, "2025-W28": 348, "2025-W29": 318, "2026-W42": 359,
    "2026-W43": 326, "2026-W44": 291,
}  # fmt: skip


@pytest.fixture
def cut_sample(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("cut_sample")


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return ds.dataset(sample.path(), partitioning="hive").to_table()


def label(moment: datetime) -> str:
    year, week, _ = moment.isocalendar()
    return f"{year}-W{week:02d}"


def vectors(table: pa.Table) -> np.ndarray:
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1).astype(np.float64)


def test_it_lies_in_the_package_and_is_small() -> None:
    package = Path(gpudrift.__file__).resolve().parent
    assert sample.path() == package / "sample" / "corpus"
    assert sample.outcomes_path().is_file()
    files = [p for p in (package / "sample").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(p.stat().st_size for p in files) <= 6_000_000
    assert {p.suffix for p in files} == {".parquet", ".csv", ".md", ".py"}


def test_columns(table: pa.Table) -> None:
    assert {name: str(table.schema.field(name).type) for name in table.column_names} == {
        "package": "string",
        "event_time": "timestamp[us, tz=UTC]",
        "family": "string",
        "embedding": "fixed_size_list<element: halffloat>[384]",
        "year": "int32",
    }
    assert table.schema.metadata == {b"encoder_id": b"all-MiniLM-L6-v2"}
    assert all(column.null_count == 0 for column in table.columns)
    assert table["embedding"].combine_chunks().flatten().null_count == 0


def test_vectors_are_finite_and_of_unit_length(table: pa.Table) -> None:
    x = vectors(table)
    assert np.isfinite(x).all()
    assert np.abs(np.linalg.norm(x, axis=1) - 1).max() < 1e-3  # float16 rounding


def test_weeks_are_whole(table: pa.Table) -> None:
    times = table["event_time"].to_pylist()
    assert Counter(map(label, times)) == ROWS
    for week in ROWS:
        days = {t.date() for t in times if label(t) == week}
        monday = datetime.strptime(f"{week}-1", "%G-W%V-%u").replace(tzinfo=UTC).date()
        whole = 6 if week == "2026-W44" else 7  # the data end on a Saturday: the unfinished week
        assert days == {monday + timedelta(days=k) for k in range(whole)}
    assert max(times).date() == date(2026, 10, 31)


def test_fifteen_weeks_in_a_row_then_pairs() -> None:
    mondays = [datetime.strptime(f"{week}-1", "%G-W%V-%u") for week in ROWS]
    gaps = [(b - a).days // 7 for a, b in itertools.pairwise(mondays)]
    assert gaps[:14] == [1] * 14  # the default reference of 12, and three weeks after it
    assert gaps[15::2] == [1] * 5  # pairs, since an alert needs two weeks running
    assert gaps[-1] == 1  # and the unfinished week beside the last pair


def test_ids_are_unique_in_a_week(table: pa.Table) -> None:
    rows = Counter(
        zip(map(label, table["event_time"].to_pylist()), table["package"].to_pylist(), strict=True)
    ).most_common(1)
    assert rows[0][1] == 1


def test_partitions_are_the_years_of_their_rows(table: pa.Table) -> None:
    assert [t.year for t in table["event_time"].to_pylist()] == table["year"].to_pylist()


def test_a_damaged_copy_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "part-0.parquet"
    shutil.copyfile(sample.path() / "year=2026" / "part-0.parquet", file)
    chunk = pq.ParquetFile(file).metadata.row_group(0).column(3)
    assert chunk.path_in_schema == "embedding.list.element"
    content = bytearray(file.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(file, page_checksum_verification=True)


def test_outcomes_belong_to_the_weeks() -> None:
    with sample.outcomes_path().open(newline="", encoding="utf-8") as lines:
        outcomes = list(csv.DictReader(lines))
    assert list(outcomes[0]) == [
        "week_start", "queries", "no_answer_rate", "retrieval_success_rate", "mean_top1_similarity",
    ]  # fmt: skip
    found = {label(datetime.fromisoformat(row["week_start"])): int(row["queries"]) for row in outcomes}
    assert found == ROWS  # every row of a week was a query
    for row in outcomes:
        assert datetime.fromisoformat(row["week_start"]).weekday() == 0
        assert all(0 < float(row[name]) < 1 for name in list(row)[2:])


def test_the_script_cuts_these_very_rows(cut_sample: ModuleType, tmp_path: Path) -> None:
    """Fed with the sample itself, the script that made it gives it back."""
    cut_sample.main([str(sample.path()), str(sample.outcomes_path()), "--output", str(tmp_path)])
    assert (tmp_path / "outcomes.csv").read_bytes() == sample.outcomes_path().read_bytes()
    again = ds.dataset(tmp_path / "corpus", partitioning="hive").to_table()
    assert again.equals(ds.dataset(sample.path(), partitioning="hive").to_table(), check_metadata=True)


def test_the_reference_is_quiet_and_the_end_has_drifted(
    cut_sample: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """By an account of its own in dense NumPy; docs/sample.md shows the same table."""
    cut_sample.main(["--measure"])
    head, found = parse(capsys.readouterr().out)
    assert "dropped by hygiene: none" in head
    assert {name.split()[0]: int(cells[0]) for name, cells in found.items()} == ROWS
    p_aa = {name: float(cells[3]) for name, cells in found.items() if "reference" not in name}
    p_close = {name: float(cells[4]) for name, cells in found.items() if "reference" not in name}
    assert all(p_aa[week] > 0.05 for week in ("2021-W32", "2021-W33", "2021-W34", "2022-W28", "2022-W29"))
    assert all(p_aa[week] < 0.01 < 0.1 < p_close[week] for week in ("2025-W28", "2025-W29"))  # a warning, no alert
    assert all(p_aa[week] < 0.001 and p_close[week] < 0.001 for week in ("2026-W42", "2026-W43"))
    shown = parse((ROOT / "docs" / "sample.md").read_text(encoding="utf-8"))[1]
    assert list(shown) == list(found)
    for name, cells in found.items():
        for a, b in zip(cells, shown[name], strict=True):
            assert (a == b == "") or float(a) == pytest.approx(float(b), abs=2e-4 if a.count(".") else 0)


def test_the_scripts_score_is_the_energy_distance(cut_sample: ModuleType) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 5)) for n in (30, 20, 25)]
    sums = np.array([[cut_sample.distances(a, b).sum() for b in parts] for a in parts])
    expected = dcor.energy_distance(np.concatenate(parts[:2]), parts[2], estimation_stat="u_statistic")
    assert cut_sample.score(sums, np.array([30, 20, 25]), [0, 1], 2) == pytest.approx(expected, abs=1e-12)


def test_the_scripts_null_sd_is_that_of_shuffled_rows(cut_sample: ModuleType) -> None:
    rng = np.random.default_rng(1)
    pool = rng.normal(size=(150, 6))
    d = cut_sample.distances(pool, pool)
    drawn = []
    for _ in range(4000):
        order = rng.permutation(150)
        x, y = order[:90], order[90:]
        drawn.append(2 * d[np.ix_(x, y)].mean() - d[np.ix_(x, x)].sum() / (90 * 89) - d[np.ix_(y, y)].sum() / (60 * 59))
    assert cut_sample.energy_null_sd(d, 90, 60) == pytest.approx(np.std(drawn), rel=0.1)


def parse(text: str) -> tuple[str, dict[str, list[str]]]:
    """The line above the table of weeks, and the cells of each week."""
    lines = text.splitlines()
    table = {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| 20"):
            table[cells[0]] = cells[1:]
    return next(line for line in lines if "dropped by hygiene" in line), table
