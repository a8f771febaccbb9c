"""The history keeps every field, a rerun replaces its own rows alone, and a damaged file is named."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from gpudrift.calibrate import AANull, Limits, calibrate
from gpudrift.errors import DataError
from gpudrift.history import ALL, HEADLINE, SCHEMA, History
from gpudrift.records import GateMetric, HistoryPoint, Metric, SegmentScore, Verdict, Window

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)


def window(k: int, complete: bool = True) -> Window:
    start = MONDAY + timedelta(weeks=k)
    return Window(start, start + timedelta(days=7), f"2026-W{k + 2:02d}", complete)


def point(k: int = 0) -> HistoryPoint:
    return HistoryPoint(
        window=window(k),
        verdict="warning",
        score=0.1 + 0.2 + k,  # digits that a short text would lose
        se=1e-17,
        p_aa=0.001,
        p_close=1.0,
        null_sd=2e-6,
        delta=-0.5,
        clear_limit=1 / 3,
        ratio=7.25,
        rows=2**40,
        in_reference=True,
        gates=gates(0.1 + 0.2 + k),
    )


def gates(score: float) -> tuple[GateMetric, ...]:
    """Energy as the point has it, and two others of ``METRICS``, one signed."""
    return (
        GateMetric("energy", score, 1e-17, 2e-6, 0.125, 0.001, 0.003, None, -0.5, 1.0),
        GateMetric("mmd2_b1", 0.25, 0.5, 3e-6, 0.25, 0.25, 0.5, None, 0.75, 0.875),
        GateMetric("residual_energy", -0.5, None, None, 0.0625, 0.7, 0.7, -0.03125, 0.015625, None),
    )


def insufficient(k: int = 0) -> HistoryPoint:
    nothing = dict.fromkeys(("score", "se", "p_aa", "p_close", "null_sd", "delta", "clear_limit", "ratio"))
    return HistoryPoint(window=window(k, complete=False), verdict="insufficient", rows=0, **nothing)


METRICS = [
    Metric("energy", 99.0, 99.0),
    Metric("mmd2_b1", 0.25, 0.5, {"bandwidth": 2.0}),
    Metric("mmd_max", -3.0),
    Metric("residual_energy", -0.5),
]


def history(root: Path, job: str = "nightly", reference: str = "abc") -> History:
    return History(root, job, reference)


def test_every_field_comes_back(tmp_path: Path) -> None:
    store = history(tmp_path)
    store.write(point(), METRICS)
    assert store.get(window(0)) == point()
    found = store.get(window(0))
    assert found is not None
    assert found.window.start.tzinfo is UTC


def test_a_window_without_numbers_comes_back(tmp_path: Path) -> None:
    store = history(tmp_path)
    store.write(insufficient(), [])
    assert store.get(window(0)) == insufficient()


@pytest.mark.parametrize("name", [f.name for f in fields(HistoryPoint)])
def test_no_field_is_taken_for_another(tmp_path: Path, name: str) -> None:
    """Each field alone is changed; the others come back as they were."""
    changed = {
        "window": replace(window(0), complete=False),
        "verdict": "alert",
        "rows": 7,
        "in_reference": False,
        "gates": gates(0.1 + 0.2)[:2],
    }.get(name, 0.625)
    other = replace(point(), gates=(), **{name: changed}) if name != "gates" else replace(point(), gates=changed)
    store = history(tmp_path)
    store.write(other, METRICS)
    assert store.get(window(0)) == other != point()


def test_times_of_another_zone_come_back_as_the_same_moment_in_utc(tmp_path: Path) -> None:
    there = timezone(timedelta(hours=2))
    moved = replace(window(0), start=MONDAY.astimezone(there), end=window(0).end.astimezone(there))
    store = history(tmp_path)
    store.write(replace(point(), window=moved), METRICS)
    found = store.get(window(0))
    assert found == point()
    assert found is not None
    assert found.window.start.utcoffset() == timedelta(0)


def test_a_window_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert history(tmp_path).get(window(0)) is None
    assert history(tmp_path).points() == []


def test_points_are_in_order_of_time(tmp_path: Path) -> None:
    store = history(tmp_path)
    labels = ("b", "c", "a")  # time, not name
    for k in (2, 0, 1):
        store.write(replace(point(k), window=replace(window(k), label=labels[k])), METRICS)
    assert [p.window.label for p in store.points()] == ["b", "c", "a"]


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_rerun_replaces_its_own_rows_and_no_others(tmp_path: Path) -> None:
    store = history(tmp_path)
    others = [store, history(tmp_path, job="weekly"), history(tmp_path, reference="def")]
    for k in range(3):
        for one in others:
            one.write(point(k), METRICS)
    before = snapshot(tmp_path)
    assert len(before) == 9
    rerun = replace(point(1), verdict="alert", score=5.0, gates=gates(5.0)[:2])
    store.write(rerun, METRICS[:2])
    after = snapshot(tmp_path)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == ["nightly/abc/2026-W03.parquet"]
    assert store.points() == [point(0), rerun, point(2)]
    assert pq.read_table(tmp_path / "nightly/abc/2026-W03.parquet", partitioning=None).num_rows == 2
    store.write(point(1), METRICS)
    assert snapshot(tmp_path) == before  # the same rows give the same bytes


def segment(value: str | None, verdict: Verdict = "warning", *, scored: bool = True) -> SegmentScore:
    null = AANull(20, {f"w{k}": 0.01 * k for k in range(8)}, 0.002)
    found = calibrate(0.2, 0.03, null, null_sd_now=0.002, limits=Limits())
    return SegmentScore(
        column="family",
        value=value,
        pooled=0,
        rows=70,
        reference_rows=900,
        windows=8,
        metrics={m.name: replace(m, value=0.2, se=0.03) if m.name == "energy" else m for m in METRICS if scored},
        calibration=found if scored else None,
        q=0.04 if scored else None,
        verdict=verdict,
        reason="",
    )


def test_segments_come_back_beside_the_whole(tmp_path: Path) -> None:
    store = history(tmp_path)
    scores = [segment("aws"), segment(None, "alert"), segment("gone", "insufficient", scored=False)]
    store.write(point(), METRICS, scores)
    assert store.get(window(0)) == point()
    found = store.segments(window(0))
    assert found == {score.name: score.point(window(0)) for score in scores}
    assert list(found) == ["family=aws", "family=(none)", "family=gone"]
    one = found["family=aws"]
    assert (one.verdict, one.score, one.rows, [g.p_holm for g in one.gates]) == ("warning", 0.2, 70, [0.04])
    assert (found["family=gone"].score, found["family=gone"].gates) == (None, ())
    assert store.windows() == [{"all": point(), **found}]
    assert store.segments(window(1)) == {}
    q = pa.dataset.dataset(tmp_path).to_table(filter=pa.dataset.field("q").is_valid())
    assert q["metric"].unique().to_pylist() == ["energy"]


def test_what_a_killed_run_left_is_ignored(tmp_path: Path) -> None:
    store = history(tmp_path)
    store.write(point(), METRICS)
    (store.directory / ".2026-W03.123.tmp.parquet").write_bytes(b"PAR1 half a file")
    assert store.points() == [point()]
    assert store.get(window(1)) is None
    assert pa.dataset.dataset(tmp_path).to_table().num_rows == len(METRICS)


def damaged_files() -> dict[str, bytes | pa.Table]:
    now = window(0).start
    good = pa.Table.from_pylist([{"metric": HEADLINE, "window_start": None}], schema=SCHEMA)
    return {
        "empty": b"",
        "not Parquet": b"no, this is not a file of columns and rows",
        "column missing": pa.table({"metric": [HEADLINE]}),
        "headline missing": pa.Table.from_pylist([{"metric": "mmd_max"}], schema=SCHEMA),
        "no rows": SCHEMA.empty_table(),
        "no time": good,
        "text that is no UTF-8": pa.table(
            {**{n: good[n] for n in SCHEMA.names}, "window": pa.array([b"\xff"]).view(pa.string())}
        ),
        "a gate without a value": pa.Table.from_pylist(
            [{"segment": ALL, "metric": HEADLINE, "window_start": now, "window_end": now, "p_holm": 0.5}], schema=SCHEMA
        ),
        "no verdict of ours": pa.Table.from_pylist(
            [{"segment": ALL, "metric": HEADLINE, "window_start": now, "window_end": now, "verdict": "fine"}],
            schema=SCHEMA,
        ),
        "time of another type": pa.table({**{n: good[n] for n in SCHEMA.names}, "window_start": ["monday"]}),
    }


@pytest.mark.parametrize("kind", damaged_files())
def test_a_damaged_file_is_named(tmp_path: Path, kind: str) -> None:
    store = history(tmp_path)
    store.write(point(0), METRICS)
    path = store.directory / "2026-W03.parquet"
    content = damaged_files()[kind]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(content, path)
    with pytest.raises(DataError) as caught:
        store.get(window(1))
    assert caught.value.where == path
    assert (caught.value.field, caught.value.exit_code) == ("history.path", 30)
    with pytest.raises(DataError):
        store.points()
    assert store.get(window(0)) == point(0)


def test_a_truncated_file_is_found(tmp_path: Path) -> None:
    store = history(tmp_path)
    store.write(point(), METRICS)
    path = store.directory / "2026-W02.parquet"
    whole = path.read_bytes()
    for end in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError) as caught:
            store.get(window(0))
        assert caught.value.where == path


def test_a_flipped_bit_of_the_data_is_never_read_as_another_number(tmp_path: Path) -> None:
    """Every third byte of the pages: an error, or, in what describes a page, the values as they were."""
    store = history(tmp_path)
    store.write(point(), METRICS)
    path = store.directory / "2026-W02.parquet"
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    refused = 0
    for place in range(4, footer, 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            assert store.get(window(0)) == point()
        except DataError:
            refused += 1
    assert refused > 100


def test_the_data_set_has_one_row_a_job_window_reference_segment_and_metric(tmp_path: Path) -> None:
    for job in ("nightly", "weekly"):
        for reference in ("abc", "def"):
            store = history(tmp_path, job, reference)
            for k in range(2):
                store.write(point(k), METRICS)
                store.write(point(k), METRICS)
            store.write(insufficient(2), [])
    (tmp_path / ".nightly.lock").write_text("process 1")
    table = pa.dataset.dataset(tmp_path).to_table()
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    keys = Counter((r["job"], r["window"], r["reference"], r["segment"], r["metric"]) for r in rows)
    assert set(keys.values()) == {1}
    assert len(keys) == 2 * 2 * (2 * len(METRICS) + 1)
    one = {r["metric"]: r for r in rows if (r["job"], r["reference"], r["window"]) == ("weekly", "def", "2026-W02")}
    assert one["energy"]["value"] == point().score  # the headline is the point's, not that of the list of metrics
    assert (one["energy"]["verdict"], one["mmd_max"]["verdict"]) == ("warning", None)
    assert (one["mmd2_b1"]["value"], one["mmd2_b1"]["se"], one["mmd_max"]["se"]) == (0.25, 0.5, None)
    assert {r["rows"] for r in one.values()} == {2**40}


def test_what_is_written_together_is_read_at_once_and_lands_at_the_end(tmp_path: Path) -> None:
    held = history(tmp_path)
    held.write(point(0), METRICS)
    with held.together():
        held.write(point(1), METRICS)
        assert held.get(window(1)) == point(1)
        assert held.get(window(0)) == point(0)
        assert [p.window for p in history(tmp_path).points()] == [window(0)]
    assert history(tmp_path).points() == [point(0), point(1)]


def test_nothing_that_was_written_together_stays_after_a_failure(tmp_path: Path) -> None:
    held = history(tmp_path)

    def fails() -> None:
        with held.together():
            held.write(point(0), METRICS)
            raise OSError("the store is away")

    with pytest.raises(OSError, match="the store is away"):
        fails()
    assert held.get(window(0)) is None
    assert list(tmp_path.rglob("*.parquet")) == []


def test_a_column_that_is_missing_is_named(tmp_path: Path) -> None:
    store = history(tmp_path)
    store.write(point(0), METRICS)
    path = next(store.directory.glob("*.parquet"))
    pq.write_table(pq.read_table(path, partitioning=None).drop(["delta"]), path)
    with pytest.raises(DataError, match="it has no column 'delta'"):
        history(tmp_path).points()
