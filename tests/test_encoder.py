"""A new encoder or normalisation is told from drift of content, on real embeddings and in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from jobs import ROWS, make_corpus, run, table_of, vectors, week, with_vectors
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes

from gpudrift import sample
from gpudrift.encoder import Baseline, baseline, diagnose, explain
from gpudrift.errors import ReferenceMismatchError
from gpudrift.generate import generate
from gpudrift.matching import cka, procrustes, residuals
from gpudrift.records import EncoderCheck, Evidence

Rows = NDArray[np.float32]
REFERENCE = range(72, 84)  # weeks since 2020-01-06: 2021-05-24 to 2021-08-15


@dataclass
class Pinned:
    """A reference as the pipeline hands it over: centred rows, their mean, the baseline, ids."""

    base: Baseline
    mean: torch.Tensor
    centred: torch.Tensor
    ids: Any = None

    def check(self, rows: NDArray[Any], ids: Any = None) -> EncoderCheck:
        centred = (torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)).double() - self.mean).float()
        return diagnose(self.base, centred, self.mean, ids=ids, reference=self.centred, reference_ids=self.ids)


def pinned(windows: list[Rows], *, unit: bool = True, ids: Any = None) -> Pinned:
    rows = torch.from_numpy(np.concatenate(windows))
    mean = rows.double().mean(0)
    centred = (rows.double() - mean).float()
    offsets = np.concatenate([[0], np.cumsum([len(w) for w in windows])]).tolist()
    return Pinned(baseline(centred, mean, offsets, unit=unit), mean, centred, ids)


def unit(rows: NDArray[Any]) -> Rows:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def rotation(d: int, seed: int = 0) -> Rows:
    """Uniform over the orthogonal matrices: with the signs of R's diagonal (Mezzadri 2007)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))
    return np.asarray(q * np.sign(np.diag(r)), dtype=np.float32)


def evidence(found: EncoderCheck, name: str) -> Evidence:
    return next(one for one in found.evidence if one.name == name)


@pytest.fixture(scope="module")
def weeks() -> dict[int, Rows]:
    """The real embeddings of the shipped sample by week, those with at least 100 rows."""
    table = ds.dataset(sample.path(), format="parquet", partitioning="hive").to_table(["event_time", "embedding"])
    values = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    rows = values.reshape(len(table), -1)
    moments = table["event_time"].to_numpy().astype("datetime64[D]")
    number = (moments - np.datetime64("2020-01-06")).astype(int) // 7
    return {int(k): rows[number == k] for k in np.unique(number) if (number == k).sum() >= 100}


@pytest.fixture(scope="module")
def real(weeks: dict[int, Rows]) -> Pinned:
    return pinned([weeks[k] for k in REFERENCE])


# --- drift of content is none of it


def test_no_week_of_real_drift_looks_like_another_encoder(real: Pinned, weeks: dict[int, Rows]) -> None:
    """From 2021 to 2026, where the score is up to 60 times the usual one; whole weeks, and thirds of them."""
    later = [rows for k, rows in weeks.items() if k not in REFERENCE]
    assert len(later) >= 10
    for rows in [*later, *(rows[::3] for rows in later)]:
        found = real.check(rows)
        assert (found.kind, found.share, found.headline, explain(found)) == ("none", 0.0, "", "")
        assert not any(one.found for one in found.evidence)
        familiar = evidence(found, "familiarity").value
        assert familiar is not None
        assert 0.9 < familiar < 1.1


PLANTED: list[dict[str, float]] = [
    {}, {"mean_shift": 0.5}, {"spread_change": 1.5}, {"new_cluster": 0.3}, {"reweight": 0.8},
]  # fmt: skip


@pytest.mark.parametrize("plan", PLANTED, ids=str)
def test_planted_drift_of_content_is_not_an_encoder(tmp_path: Path, plan: dict[str, float]) -> None:
    settings: dict[str, Any] = {
        "mean_shift": 0.0, "spread_change": 1.0, "new_cluster": 0.0, "reweight": 0.0, "drift_week": 8,
    }  # fmt: skip
    generate(
        tmp_path / "c", start=date(2026, 1, 5), weeks=10, rows_per_week=300, dim=48, clusters=12, spread=0.5,
        rows_per_user=1.0, dtype="float32", seed=1, overwrite=False, **(settings | plan),
    )  # fmt: skip
    values = vectors(table_of(tmp_path / "c")).reshape(10, 300, 48)
    reference = pinned(list(values[:8]))
    for rows in values[8:]:
        assert reference.check(rows).kind == "none"


# --- changes of encoder and normalisation are found


def int8(rows: Rows) -> Rows:
    scale = np.abs(rows).max(1, keepdims=True) / 127
    return np.asarray(np.round(rows / scale) * scale, dtype=np.float32)


def truncated(rows: Rows) -> Rows:
    cut = rows.copy()
    cut[:, 288:] = 0
    return unit(cut)


def mixed(share: float) -> Callable[[Rows], Rows]:
    def change(rows: Rows) -> Rows:
        count = round(share * len(rows))
        return np.concatenate([rows[:count] @ rotation(rows.shape[1]), rows[count:]])

    return change


CHANGES: list[tuple[str, Callable[[Rows], NDArray[Any]], str, float]] = [
    ("rotated", lambda r: r @ rotation(384), "encoder", 1.0),
    ("permuted", lambda r: r[:, np.random.default_rng(1).permutation(384)], "encoder", 1.0),
    ("negated", lambda r: -r, "encoder", 1.0),
    ("first dimensions kept, the others 0", truncated, "encoder", 1.0),
    ("another pooling", lambda r: unit(r @ (np.eye(384) + 2 * rotation(384, 3))), "encoder", 1.0),
    ("rotated and twice as long", lambda r: 2 * r @ rotation(384), "encoder", 1.0),
    ("a tenth rotated", mixed(0.1), "encoder", 0.1),
    ("half rotated", mixed(0.5), "encoder", 0.5),
    ("5% longer", lambda r: r * 1.05, "scale", 1.0),
    ("twice", lambda r: r * 2, "scale", 1.0),
    ("a hundred times", lambda r: r * 100, "scale", 1.0),
    ("not normalised", lambda r: r * np.random.default_rng(0).lognormal(0, 0.3, (len(r), 1)), "normalisation", 1.0),
    ("codes of int8", lambda r: np.round(r / np.abs(r).max(1, keepdims=True) * 127), "normalisation", 1.0),
    ("a fifth of double length", lambda r: r * np.where(np.arange(len(r)) % 5, 1, 2)[:, None], "normalisation", 0.2),
]


@pytest.mark.parametrize(("change", "kind", "share"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_planted_changes_are_found(
    real: Pinned, weeks: dict[int, Rows], change: Callable[[Rows], NDArray[Any]], kind: str, share: float
) -> None:
    for k in (min(k for k in weeks if k > max(REFERENCE)), max(weeks)):
        found = real.check(change(weeks[k]))
        assert found.kind == kind
        assert found.share == pytest.approx(share, abs=0.03)
        assert found.headline.endswith("not content drift")
        assert ("in " in found.headline) == (share < 0.9)
        seen = [one for one in found.evidence if one.found]
        assert seen
        assert all(one.sentence in explain(found) for one in seen)
        assert "pin a new reference" in explain(found)
        assert real.check(change(weeks[k])) == found


@pytest.mark.parametrize(
    "store",
    [
        lambda r: r.astype(np.float16),
        lambda r: torch.from_numpy(r).bfloat16().float().numpy(),
        int8,
        lambda r: r * np.float32(1.002),
    ],
    ids=["float16", "bfloat16", "int8", "within the tolerance"],
)
def test_another_precision_of_storage_is_no_change(
    real: Pinned, weeks: dict[int, Rows], store: Callable[[Rows], NDArray[Any]]
) -> None:
    assert real.check(store(weeks[max(weeks)])).kind == "none"


def test_a_reference_that_is_not_of_unit_length(weeks: dict[int, Rows]) -> None:
    rng = np.random.default_rng(2)

    def stretched(rows: Rows) -> Rows:
        return (rows * 20 * rng.lognormal(0, 0.1, (len(rows), 1))).astype(np.float32)

    reference = pinned([stretched(weeks[k]) for k in REFERENCE], unit=False)
    rows = weeks[max(weeks)]
    usual = reference.check(stretched(rows))
    assert usual.kind == "none"
    assert evidence(usual, "length_ratio").value == pytest.approx(1, abs=0.05)
    doubled = reference.check(2 * stretched(rows))
    assert (doubled.kind, doubled.share) == ("scale", 1.0)
    assert evidence(doubled, "length_ratio").value == pytest.approx(2, abs=0.1)
    assert reference.check(rows).kind == "normalisation"
    assert reference.check(stretched(rows) @ rotation(384)).kind == "encoder"


def test_constant_length_other_than_one_is_held_to_a_percent(weeks: dict[int, Rows]) -> None:
    reference = pinned([3 * weeks[k] for k in REFERENCE], unit=False)
    rows = weeks[max(weeks)]
    assert [reference.check(f * 3 * rows).kind for f in (1.0, 1.005, 1.05)] == ["none", "none", "scale"]


def test_a_round_cloud_has_nothing_to_lose_by_a_rotation() -> None:
    rng = np.random.default_rng(0)
    windows = [rng.standard_normal((300, 8)).astype(np.float32) for _ in range(5)]
    found = pinned(windows[:4], unit=False).check(windows[4] @ rotation(8))
    assert found.kind == "none"
    assert evidence(found, "familiarity").value is None
    assert evidence(found, "mean_direction").value is None


def test_a_window_of_one_value_is_not_a_truncated_encoder(real: Pinned, weeks: dict[int, Rows]) -> None:
    found = real.check(np.repeat(weeks[max(weeks)][:1], 120, axis=0))
    assert not evidence(found, "constant_dimensions").found


# --- ids that the reference has too


def test_matched_ids(weeks: dict[int, Rows]) -> None:
    """The same documents again: as they were, rotated, encoded otherwise, edited, under other ids, and half of them."""
    windows = [weeks[k] for k in REFERENCE]
    old = np.concatenate(windows)
    ids = pa.array([f"doc {k}" for k in range(len(old))])
    reference = pinned(windows, ids=ids)
    rng = np.random.default_rng(4)
    take = rng.choice(len(old), 1500, replace=False)
    rows, names = old[take], ids.take(pa.array(take))
    noise = rng.standard_normal(rows.shape)

    def seen(changed: NDArray[Any], named: Any = names) -> tuple[str, float, str]:
        found = reference.check(changed, named)
        assert found.matched_ids == len(named)
        told = [one.sentence for one in found.evidence if one.name.startswith("matched")]
        return found.kind, round(found.share, 2), "; ".join(told)

    assert seen(rows)[:2] == ("none", 0.0)
    assert seen(int8(rows)) == ("none", 0.0, "of 1,500 ids that the reference has too, 100% lie where they did")
    kind, share, sentence = seen(rows @ rotation(384))
    assert (kind, share) == ("linear_map", 1.0)
    assert "100% moved, and a rotation, scale and shift" in sentence
    centred = unit(rows - old.mean(0))
    assert seen(centred)[0] == "linear_map"  # from the rows alone it is not seen
    assert reference.check(centred).kind == "none"
    assert seen(mixed(0.5)(rows))[:2] == ("linear_map", 0.5)
    # another encoder: random features of the same content
    other = unit(np.cos(1.5 * rows @ rng.standard_normal((384, 384)) + rng.uniform(0, 2 * np.pi, 384)))
    assert seen(other)[:2] == ("encoder", 1.0)
    edited = rows.copy()
    edited[::3] = unit(rows + 0.03 * noise)[::3]
    kind, _, sentence = seen(edited)
    assert kind == "none"
    assert "33% moved" in sentence
    assert "as edited content does" in sentence
    kind, _, sentence = seen(rows, names.take(pa.array(rng.permutation(len(rows)))))
    assert (kind, "as if the ids named other content" in sentence) == ("none", True)
    few = reference.check(rows[:49], names[:49])
    assert (few.matched_ids, evidence(few, "matched_map").value) == (49, None)
    # ids of another type, and nulls, name what they name
    assert reference.check(rows, names.dictionary_encode().cast(pa.large_string())).matched_ids == 1500
    assert reference.check(rows[:3], pa.array([None, "nobody", names[2].as_py()])).matched_ids == 1


@pytest.mark.parametrize(("k", "d"), [(200, 12), (40, 40), (30, 80)])
def test_procrustes_against_scipy(k: int, d: int) -> None:
    rng = np.random.default_rng(k)
    x = rng.standard_normal((k, d)) * np.arange(1, d + 1) ** -0.5 + 3
    y = 1.7 * (x - 3) @ rotation(d).astype(np.float64) + rng.standard_normal(d) + 0.05 * rng.standard_normal((k, d))
    found = procrustes(torch.from_numpy(x), torch.from_numpy(y))
    centred, wanted = x - x.mean(0), y - y.mean(0)
    turn, total = orthogonal_procrustes(centred, wanted)
    scale = total / np.square(centred).sum()
    assert found.scale == pytest.approx(scale, rel=1e-12)
    np.testing.assert_allclose(found(torch.from_numpy(x)).numpy(), scale * centred @ turn + y.mean(0), atol=1e-9)
    relative = residuals(found(torch.from_numpy(x)), torch.from_numpy(y), 1.0)
    assert float(relative.mean()) < 0.01 * np.square(wanted).sum(1).mean()


def test_cka_against_its_definition() -> None:
    """HSIC_1 (Song et al. 2012) with whole Gram matrices; 1 under rotation and scale, 0 on average without relation."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((25, 40)), rng.standard_normal((25, 7))
    y[:, :5] += x[:, :5]

    def hsic(a: NDArray[Any], b: NDArray[Any]) -> float:
        n = len(a)
        k, g = ((v - v.mean(0)) @ (v - v.mean(0)).T for v in (a, b))
        np.fill_diagonal(k, 0)
        np.fill_diagonal(g, 0)
        pairs = k.sum() * g.sum() / ((n - 1) * (n - 2))
        return float(((k * g).sum() + pairs - 2 / (n - 2) * (k @ g).sum()) / (n * (n - 3)))

    wanted = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    assert cka(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(wanted, rel=1e-10)
    turned = torch.from_numpy(5 * x @ rotation(40).astype(np.float64) + 2)
    assert cka(torch.from_numpy(x), turned) == pytest.approx(1, abs=1e-6)
    draws = [cka(*torch.from_numpy(rng.standard_normal((2, 30, 20)))) for _ in range(200)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / 200**0.5


def test_familiarity_is_zero_for_rotated_and_one_for_fresh_rows() -> None:
    rng = np.random.default_rng(0)
    windows = [(rng.standard_normal((200, 6)) * [3, 2, 1, 0.3, 0.2, 0.1] + 1).astype(np.float32) for _ in range(6)]
    gaussian = pinned(windows, unit=False).base.gaussian
    assert gaussian is not None
    held = torch.from_numpy(np.concatenate(windows[1::2])).double()
    assert float(gaussian.familiarity(held).mean()) == pytest.approx(1, abs=1e-9)
    turned = [held @ torch.from_numpy(rotation(6, seed)).double() for seed in range(400)]
    means = np.array([float(gaussian.familiarity(rows).mean()) for rows in turned])
    assert abs(means.mean()) < 4 * means.std() / 20


# --- through the job


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quiet corpus whose last two weeks are rotated."""
    table = table_of(make_corpus(tmp_path_factory.mktemp("quiet") / "c"))
    values = vectors(table)
    for k in (12, 13):
        values[week(k)] = values[week(k)] @ rotation(16)
    path = tmp_path_factory.mktemp("turned") / "c.parquet"
    pq.write_table(with_vectors(table, values), path)
    return path


@pytest.mark.usefixtures("no_pictures")
def test_a_rotated_window_says_so_everywhere(turned: Path, tmp_path: Path) -> None:
    ran = run(turned, tmp_path)
    assert (ran.code, ran.result["verdict"]) == (0, "alert")  # the verdict is what the statistics say
    told = ran.result["encoder"]
    assert (told["kind"], told["matched_ids"]) == ("encoder", 0)
    assert told["headline"] == "this looks like a new encoder, not content drift"
    assert {one["name"] for one in told["evidence"] if one["found"]} >= {"familiarity"}
    assert ran.result["reason"].endswith(told["headline"])
    assert "This looks like a new encoder, not content drift." in ran.out.splitlines()[0]
    note = next(line for line in ran.result["notes"] if "new encoder" in line)
    assert "job=reference reference.replace=true" in note
    assert note in ran.out
    assert run(turned, tmp_path).lasting == ran.lasting
    quiet = run(turned, tmp_path, {"run_date": "2026-03-25"})  # a window of the reference
    assert (quiet.result["encoder"], quiet.result["quality"]["unnormalised"]["rows"]) == (None, 0)


@pytest.mark.usefixtures("no_pictures")
def test_the_backfill_names_the_windows(turned: Path, tmp_path: Path) -> None:
    ran = run(turned, tmp_path, {"job": "backfill"})
    assert "2 windows look like a new encoder or normalisation, not content drift: 2026-W14, 2026-W15" in ran.err


@pytest.mark.usefixtures("no_pictures")
def test_ids_of_the_reference_show_the_map(turned: Path, tmp_path: Path) -> None:
    """The last week encodes documents of the first again, rotated, under their ids."""
    table = table_of(turned)
    values = vectors(table)
    values[week(13)] = values[week(0)] @ rotation(16, 1)
    ids = table["id"].to_pylist()
    ids[13 * ROWS :] = ids[:ROWS]
    table = with_vectors(table, values).set_column(table.schema.get_field_index("id"), "id", pa.array(ids))
    pq.write_table(table, tmp_path / "c.parquet")
    ran = run(tmp_path / "c.parquet", tmp_path / "out")
    assert (ran.result["encoder"]["kind"], ran.result["encoder"]["matched_ids"]) == ("linear_map", ROWS)


@pytest.mark.usefixtures("no_pictures")
def test_another_dimension_or_encoder_id_is_refused_as_a_new_encoder(turned: Path, tmp_path: Path) -> None:
    named = {"source.encoder_id": "one"}
    assert run(turned, tmp_path, named).code == 0
    with pytest.raises(ReferenceMismatchError, match=r"(?s)new encoder, not like drift.*encoder_id") as caught:
        run(turned, tmp_path, {"source.encoder_id": "two"})
    assert caught.value.exit_code == 30


@pytest.mark.usefixtures("no_pictures")
def test_odd_rows_are_counted_said_and_kept(turned: Path, tmp_path: Path) -> None:
    """In the last week: twenty copies of one row, two rows under one id, three rows that are not of length 1."""
    table = table_of(turned)
    values, ids = vectors(table), table["id"].to_pylist()
    first = 13 * ROWS
    values[first + 1 : first + 20] = values[first]
    values[-3:] *= np.array([[2.0], [3.0], [1.5]], dtype=np.float32)
    ids[first + 41] = ids[first + 40]
    table = with_vectors(table, values).set_column(table.schema.get_field_index("id"), "id", pa.array(ids))
    pq.write_table(table, tmp_path / "c.parquet")
    ran = run(tmp_path / "c.parquet", tmp_path / "out")
    quality = ran.result["quality"]
    assert quality["rows_kept"] == ran.result["rows"]["current"] == ROWS
    assert quality["duplicates"] == {"rows": 19, "largest": 20, "examples": [min(ids[first : first + 20])]}
    assert quality["repeated_ids"] == {"rows": 1, "largest": 2, "examples": [ids[first + 40]]}
    assert quality["unnormalised"] == {"rows": 3, "tolerance": 2**-8, "examples": [ids[-2], ids[-3], ids[-1]]}
    assert [one["rows"] for one in quality["norms"]["histogram"]] == [147, 1, 1, 1]
    assert quality["norms"]["max"] == pytest.approx(3, rel=1e-5)
    usual = ran.result["reference"]["quality"]
    assert (usual["rows_kept"], usual["duplicates"], usual["unnormalised"]["rows"]) == (
        12 * ROWS, {"rows": 0, "largest": 0}, 0,
    )  # fmt: skip
    (line,) = [note for note in ran.result["notes"] if note.startswith("of 150 rows of 2026-W15")]
    assert line == (
        "of 150 rows of 2026-W15: 19 duplicate rows (largest group 20; 0.0% of the reference's rows are); 1 rows with "
        f"an id that another has ({ids[first + 40]}); 3 rows not of length 1 ({ids[-2]}, {ids[-3]}, {ids[-1]})"
    )
    assert run(tmp_path / "c.parquet", tmp_path / "out").lasting == ran.lasting
    # without an id column there are no names
    bare = run(tmp_path / "c.parquet", tmp_path / "bare", {"source.id_column": None}).result["quality"]
    assert (bare["repeated_ids"], bare["duplicates"]["examples"], bare["unnormalised"]["examples"]) == (None, [], [])


def test_a_wider_cloud_is_not_part_of_another_encoder(real: Pinned, weeks: dict[int, Rows]) -> None:
    """Noise on every row: the far end of one cloud is unfamiliar, but barely."""
    rows = weeks[max(weeks)]
    noise = np.random.default_rng(0).standard_normal(rows.shape) / 384**0.5
    found = real.check(unit(rows + 0.85 * noise))
    share = evidence(found, "unfamiliar_rows")
    assert share.value is not None
    assert 0.05 < share.value < 0.5
    assert share.sentence.endswith("most of them barely: a wider cloud")
    assert found.kind == "none"


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", ["bytes", "uuid", "list", "dictionary", "view", "floats"])
def test_ids_of_any_type_are_matched(turned: Path, tmp_path: Path, kind: str) -> None:
    """Raw bytes are no text, and Arrow has no hashes of nested values and extensions."""
    table = table_of(turned)
    # the last week names the documents of the first again
    number = [k % (len(table) - ROWS) for k in range(len(table))]
    raw = [k.to_bytes(2, "big") + bytes([255] * 14) for k in number]
    ids: dict[str, Any] = {
        "bytes": pa.array(raw, pa.binary(16)),
        "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array(raw, pa.binary(16))),
        "list": pa.array([[k, 1] for k in number]),
        "dictionary": pa.array(raw, pa.binary()).dictionary_encode(),
        "view": pa.array(raw, pa.binary_view()),
        "floats": pa.array(number, pa.float64()),
    }
    (tmp_path / "corpus").mkdir()
    column = table.schema.get_field_index("id")
    pq.write_table(table.set_column(column, "id", ids[kind]), tmp_path / "corpus" / "a.parquet", row_group_size=100)
    ran = run(tmp_path / "corpus", tmp_path / "out")
    assert ran.result["quality"]["repeated_ids"]["rows"] == 0
    assert ran.result["encoder"]["matched_ids"] == ROWS
