"""Files read and sketched by workers elsewhere give what this process gives: rows, sketches, counts and errors."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from elsewhere import Elsewhere
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpudrift import sample
from gpudrift.engine import Attempt, Engine, Policy, scans
from gpudrift.engine.local import LocalExecutor, in_process
from gpudrift.errors import ArgumentError, ConfigError, DataError, EngineError, GpudriftError, ReferenceMismatchError
from gpudrift.panel import PanelSettings
from gpudrift.records import Cloud, Window
from gpudrift.sketch import Sketch, SketchPlan
from gpudrift.source import ParquetSource, open_source, scanning
from gpudrift.windows import covering, parse_period

START = datetime(2026, 1, 5, tzinfo=UTC)
WEEKS = covering(parse_period("week"), START, START + timedelta(weeks=3))
BAD = {"null": None, "ragged": [1.0], "empty": [], "nan": [math.nan, 1.0], "inf": [1.0, math.inf], "zero": [0.0, 0.0]}
ANY = 1.0  # of bad rows


def window(first_hour: int, last_hour: int) -> Window:
    return Window(START + timedelta(hours=first_hour), START + timedelta(hours=last_hour), f"{first_hour}-{last_hour}")


def elsewhere(workers: int = 2, **about: Any) -> Engine:
    return Engine(Elsewhere(workers, **about), Policy(speculate=False, pause=0.0))


def assert_same(cloud: Cloud, wanted: Cloud) -> None:
    """To the bit, with the types of all columns."""
    assert cloud.embeddings.dtype == wanted.embeddings.dtype == torch.float32
    assert torch.equal(cloud.embeddings.view(torch.int32), wanted.embeddings.view(torch.int32))
    assert (cloud.windows, cloud.offsets, cloud.quality) == (wanted.windows, wanted.offsets, wanted.quality)
    assert cloud.encoder_id == wanted.encoder_id
    assert list(cloud.segments) == list(wanted.segments)
    pairs = [(cloud.ids, wanted.ids), (cloud.clusters, wanted.clusters)]
    for own, other in pairs + [(cloud.segments[name], wanted.segments[name]) for name in wanted.segments]:
        assert (own is None) == (other is None)
        if own is not None:
            own.validate(full=True)
            assert own.type == other.type
            assert own.equals(other)


def state_of(sketch: Sketch) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in sketch.state().items()}


def failure(work: Callable[[], Any]) -> tuple[type, str, dict[str, Any]]:
    with pytest.raises(GpudriftError) as caught:
        work()
    return type(caught.value), str(caught.value), caught.value.__dict__


@st.composite
def corpora(draw: st.DrawFn) -> dict[str, Any]:
    row = st.tuples(st.none() | st.integers(0, 30), st.none() | st.sampled_from(sorted(BAD)), st.booleans())
    edges = sorted(draw(st.sets(st.integers(-2, 33), min_size=2, max_size=6)))
    return {
        "files": draw(st.lists(st.lists(row, max_size=25), min_size=1, max_size=4)),
        "windows": [pair for pair in draw(st.permutations(list(pairwise(edges)))) if draw(st.booleans())],
        "group_rows": draw(st.integers(1, 30)),
        "piece_rows": draw(st.integers(1, 60)),
        "statistics": draw(st.booleans()),
        "filtered": draw(st.booleans()),
        "half": draw(st.booleans()),
        "ids": draw(st.sampled_from([pa.string(), pa.int64(), pa.binary(), None])),
        "workers": draw(st.sampled_from([1, 2, 5])),
        "seed": draw(st.integers(0, 99)),
        "lost": draw(st.sampled_from([0, 2, 3])),
    }


def write_corpus(folder: Path, corpus: dict[str, Any]) -> ParquetSource:
    kind = pa.float16() if corpus["half"] else pa.float32()
    cast = np.float16 if corpus["half"] else np.float32
    for number, file in enumerate(corpus["files"]):
        own = [100 * number + k for k in range(len(file))]
        vectors = [[i + 1.0, -i - 1.0] if bad is None else BAD[bad] for i, (_, bad, _) in zip(own, file, strict=True)]
        table = {
            "embedding": pa.array([row if row is None else [cast(v) for v in row] for row in vectors], pa.list_(kind)),
            "event_time": pa.array(
                [None if h is None else START + timedelta(hours=h) for h, _, _ in file], pa.timestamp("us", "UTC")
            ),
            "number": pa.array(own, pa.int64()),
            "family": pa.array([None if i % 7 == 0 else f"f{i % 3}" for i in own], pa.string()).dictionary_encode(),
        }
        if corpus["ids"] is not None:
            ids = [None if unnamed else str(i) for i, (_, _, unnamed) in zip(own, file, strict=True)]
            table["id"] = pa.array(ids, pa.string()).cast(corpus["ids"])
        options = {"row_group_size": corpus["group_rows"], "write_statistics": corpus["statistics"]}
        (folder / f"part={number}").mkdir()
        pq.write_table(pa.table(table), folder / f"part={number}" / "a.parquet", **options)
    return open_source(
        str(folder),
        id_column=None if corpus["ids"] is None else "id",
        cluster_column="family",
        segment_columns=["number", "part"],
        filter=[["number", "not in", [100 * n + k for n in range(4) for k in range(5)]]]
        if corpus["filtered"]
        else None,
        max_bad_fraction=ANY,
    )


def losing(every: int) -> Callable[[Attempt], bool]:
    """Loses the first attempts at every so many-th task."""
    return lambda attempt: bool(every) and attempt.task.place % every == 0 and attempt.number == 1


@given(corpora())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_workers_elsewhere_give_what_read_gives(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, corpus: dict[str, Any]
) -> None:
    """Bad rows, filters, windows in any order, row groups across them, files without rows, ids of any type or none."""
    source = write_corpus(tmp_path_factory.mktemp("corpus"), corpus)
    windows = [window(*pair) for pair in corpus["windows"]]
    wanted = source.read(windows, expect_dim=2)
    engine = elsewhere(corpus["workers"], seed=corpus["seed"], lose=losing(corpus["lost"]))
    told: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(scans, "_READ_BYTES", 8 * corpus["piece_rows"])
        cloud = scans.read(source, windows, engine, expect_dim=2, progress=told.append)
    assert_same(cloud, wanted)
    assert sum(told) == sum(source.count(windows))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_sample_is_read_alike_by_any_number_of_workers(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    source = open_source(str(sample.path()), id_column="package")
    extent = source.extent()
    months = covering(parse_period("month"), extent.first, extent.last)
    monkeypatch.setattr(scans, "_READ_BYTES", 1 << 17)
    engine = elsewhere(workers)
    assert_same(scans.read(source, months, engine), source.read(months))
    names = engine.executor.ran
    assert len(names) == len(source.files) > 3
    assert {name.split(" ")[0] for name in names} == {"read"}
    assert f"read 1 of {len(names)}" in names
    assert engine.account.tasks == {"read": len(names)}


def test_an_engine_of_this_process_reads_as_the_source_does() -> None:
    source = open_source(str(sample.path()), id_column="package")
    extent = source.extent()
    months = covering(parse_period("month"), extent.last - timedelta(days=70), extent.last)
    steps: list[int] = []
    assert_same(scans.read(source, months, in_process(), progress=steps.append), source.read(months))
    assert sum(steps) == sum(source.count(months))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three files of 200 hours each, the second of many row groups; every 20th row is zero."""
    folder = tmp_path / "corpus"
    for number, group_rows in enumerate((200, 7, 64)):
        values = np.random.default_rng(number).normal(size=(200, 6)).astype(np.float32)
        values[::20] = 0
        rows = range(200 * number, 200 * number + 200)
        table = {
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 6),
            "event_time": pa.array([START + timedelta(hours=k % 500) for k in rows], pa.timestamp("us", "UTC")),
            "id": pa.array([f"row-{k}" for k in rows]),
        }
        (folder / f"part={number}").mkdir(parents=True)
        pq.write_table(
            pa.table(table),
            folder / f"part={number}" / "a.parquet",
            row_group_size=group_rows,
            write_page_checksum=True,
            use_dictionary=False,
        )
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of at most 32 rows, unless a row group holds more."""
    monkeypatch.setattr(scans, "_READ_BYTES", 32 * 24)
    monkeypatch.setattr(scans, "_SKETCH_BYTES", 32 * 24)


def opened(corpus: Path, **settings: Any) -> ParquetSource:
    return open_source(str(corpus), id_column="id", **{"max_bad_fraction": ANY, **settings})


def spoil(path: Path, group: int) -> None:
    """Flip a bit in the vectors of a row group."""
    chunk = pq.ParquetFile(path).metadata.row_group(group).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize("what", ["damaged", "gone", "changed", "cut off", "too many", "overlap", "another dim"])
def test_errors_are_those_of_read(corpus: Path, what: str, remote: bool) -> None:
    source = opened(corpus, max_bad_fraction=0.01 if what == "too many" else ANY)
    windows = [*WEEKS, WEEKS[0]] if what == "overlap" else WEEKS
    if what != "overlap":
        source.count(windows)
    path = corpus / "part=1" / "a.parquet"
    if what == "damaged":
        spoil(corpus / "part=2" / "a.parquet", 1)
        spoil(path, 9)
        spoil(path, 3)
    elif what == "gone":
        path.unlink()
    elif what == "changed":
        table = pq.ParquetFile(path).read()
        moved = table.set_column(1, "event_time", pa.array([START] * 200, pa.timestamp("us", "UTC")))
        pq.write_table(moved, path, row_group_size=7)
    elif what == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    dim = 7 if what == "another dim" else None
    expected = failure(lambda: source.read(windows, expect_dim=dim))
    engine = elsewhere(3, seed=1) if remote else in_process()
    assert failure(lambda: scans.read(source, windows, engine, expect_dim=dim)) == expected
    plan = plan_of(6 if dim is None else dim)
    by_scan = failure(lambda: list(source.scan(windows, expect_dim=dim)))
    assert failure(lambda: scans.sketch(source, windows, plan, engine, expect_dim=dim)) == by_scan
    wanted = {"overlap": ArgumentError, "another dim": ReferenceMismatchError}.get(what, DataError)
    assert expected[0] is by_scan[0] is wanted


@contextmanager
def without(path: Path) -> Iterator[None]:
    hidden = path.with_suffix(".hidden")
    path.rename(hidden)
    try:
        yield
    finally:
        hidden.rename(path)


@contextmanager
def instead(path: Path, content: bytes) -> Iterator[None]:
    own = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(own)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("sketched", [False, True])
def test_a_node_without_a_file_is_told_with_what_to_do(corpus: Path, sketched: bool) -> None:
    path = corpus / "part=1" / "a.parquet"
    engine = elsewhere(at=lambda _: without(path))
    source = opened(corpus)
    with pytest.raises(EngineError, match="does not have this file, which this process can read") as caught:
        scans.sketch(source, WEEKS, plan_of(6), engine) if sketched else scans.read(source, WEEKS, engine)
    assert str(caught.value.where) == str(path)
    assert caught.value.field == "engine.scans"
    assert "engine.scans=false" in str(caught.value.hint)
    assert os.uname().nodename in caught.value.message


@pytest.mark.usefixtures("small")
def test_a_node_with_a_damaged_copy_is_told_as_that(corpus: Path) -> None:
    path = corpus / "part=1" / "a.parquet"
    own = path.read_bytes()
    spoil(path, 3)
    bad = path.read_bytes()
    path.write_bytes(own)
    with pytest.raises(EngineError, match="cannot read this file, which this process can read") as caught:
        scans.read(opened(corpus), WEEKS, elsewhere(at=lambda _: instead(path, bad)))
    assert str(caught.value.where) == f"{path}, row group 3"


@pytest.mark.usefixtures("small")
def test_a_node_with_another_file_of_that_name_is_refused(corpus: Path) -> None:
    """As many rows of the same times: nothing but its footer tells."""
    path = corpus / "part=1" / "a.parquet"
    own, table = path.read_bytes(), pq.ParquetFile(path).read()
    vectors = pa.FixedSizeListArray.from_arrays(pc_negated(table.column("embedding")), 6)
    pq.write_table(
        table.set_column(0, "embedding", vectors), path, row_group_size=7, write_page_checksum=True,
        use_dictionary=False,
    )  # fmt: skip
    other = path.read_bytes()
    path.write_bytes(own)
    source = opened(corpus)
    with pytest.raises(EngineError, match="another file under this name") as caught:
        scans.read(source, WEEKS, elsewhere(at=lambda _: instead(path, other)))
    assert str(caught.value.where) == str(path)


def pc_negated(column: pa.ChunkedArray) -> pa.Array:
    return pa.array(-column.combine_chunks().flatten().to_numpy())


@pytest.mark.usefixtures("small")
def test_a_file_put_in_place_while_others_are_read_is_a_changed_one(corpus: Path) -> None:
    path = corpus / "part=1" / "a.parquet"
    swapped: list[str] = []

    @contextmanager
    def once(attempt: Attempt) -> Iterator[None]:
        yield
        if not swapped:
            table = pq.ParquetFile(path).read()
            pq.write_table(table, path, row_group_size=7, compression="zstd")
            swapped.append(attempt.task.name)

    source = opened(corpus)
    with pytest.raises(DataError, match="the file has changed while it was read") as caught:
        scans.read(source, WEEKS, elsewhere(1, at=once))
    assert str(caught.value.where) == str(path)


def test_matrices_of_two_shapes_in_two_pieces_are_refused_as_by_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one task alone would not see."""
    wide, tall = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    table = {
        "embedding": pa.array([wide] * 4 + [tall] * 2 + [wide] * 2, pa.list_(pa.list_(pa.float32()))),
        "event_time": pa.array([START] * 8, pa.timestamp("us", "UTC")),
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(table), path, row_group_size=2)
    monkeypatch.setattr(scans, "_READ_BYTES", 4 * 24)
    expected = failure(lambda: open_source(str(path), pooling="flatten", threads=1).read(WEEKS))
    assert "matrices of two shapes, 3 x 2 and 2 x 3" in expected[1]
    for engine in (elsewhere(1), elsewhere(5, seed=4)):
        source = open_source(str(path), pooling="flatten")
        assert failure(lambda: scans.read(source, WEEKS, engine)) == expected  # noqa: B023


def test_an_error_of_the_rows_is_told_as_by_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "embedding": pa.array([[[1.0, 2.0]]] * 5 + [[[1.0], [2.0]]], pa.list_(pa.list_(pa.float32()))),
        "event_time": pa.array([START] * 6, pa.timestamp("us", "UTC")),
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=2)
    monkeypatch.setattr(scans, "_READ_BYTES", 1)
    source = open_source(str(tmp_path / "a.parquet"))
    expected = failure(lambda: source.read(WEEKS))
    assert expected[0] is ConfigError
    assert failure(lambda: scans.read(source, WEEKS, elsewhere())) == expected


@pytest.mark.usefixtures("small")
def test_lost_attempts_change_nothing_and_too_many_are_an_error(corpus: Path) -> None:
    source = opened(corpus)
    engine = elsewhere(5, lose=lambda attempt: attempt.number < 3)
    steps: list[int] = []
    assert_same(scans.read(source, WEEKS, engine, progress=steps.append), source.read(WEEKS))
    assert engine.account.lost == 2 * engine.account.tasks["read"] > 20
    assert sum(steps) == sum(source.count(WEEKS))
    with pytest.raises(EngineError, match=r"the task read \d+ of \d+ failed 4 times"):
        scans.read(source, WEEKS, elsewhere(lose=lambda attempt: attempt.task.place == 3))


@pytest.mark.usefixtures("small")
def test_a_tasks_arguments_hold_its_own_plan_alone(corpus: Path) -> None:
    """Not that of the corpus: with row groups by the hundred each task says no more."""
    source, engine = opened(corpus), elsewhere()
    scans.read(source, WEEKS, engine)
    assert max(engine.executor.sent.values()) < 6_000
    path = corpus / "part=0" / "a.parquet"
    pq.write_table(pq.ParquetFile(path).read(), path, row_group_size=1)
    source, again = opened(corpus), elsewhere()
    scans.read(source, WEEKS, again)
    assert len(again.executor.sent) == len(engine.executor.sent) + 6
    assert max(again.executor.sent.values()) < 12_000  # of 32 row groups


@pytest.mark.parametrize(("kind", "bytes_each"), [("float16", 2), ("float32", 4)])
def test_rows_of_float16_travel_as_that(tmp_path: Path, kind: str, bytes_each: int) -> None:
    rows, dim = 400, 32
    values = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()).cast(getattr(pa, kind)()), dim)
    times = pa.array([START] * rows, pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"embedding": column, "event_time": times}), tmp_path / "a.parquet")
    source, engine = open_source(str(tmp_path / "a.parquet")), elsewhere()
    assert_same(scans.read(source, WEEKS, engine), source.read(WEEKS))
    assert bytes_each * rows * dim < engine.account.result_bytes < bytes_each * rows * dim + 2_000


def test_float16_pooled_to_other_numbers_travels_whole(tmp_path: Path) -> None:
    """The mean of float16 vectors is none."""
    table = {
        "embedding": pa.array(
            [[[np.float16(1.0), np.float16(2.0)], [np.float16(1.001), np.float16(2.0)]]] * 3,
            pa.list_(pa.list_(pa.float16())),
        ),
        "event_time": pa.array([START] * 3, pa.timestamp("us", "UTC")),
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"), pooling="mean")
    cloud = scans.read(source, WEEKS, elsewhere())
    assert_same(cloud, source.read(WEEKS))
    assert float(cloud.embeddings[0, 0]) != float(cloud.embeddings[0, 0].half())


@pytest.mark.parametrize("hours", [(1, 2), (0, 400)])
def test_columns_travel_once_and_without_the_rows_around(tmp_path: Path, hours: tuple[int, int]) -> None:
    """A slice of an array pickles with all of it, and the rows of a row group come in many batches."""
    rows, dim = 20_000, 256
    table = {
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.tile(np.float16(1.0), rows * dim)), dim),
        "event_time": pa.array([START + timedelta(minutes=k) for k in range(rows)], pa.timestamp("us", "UTC")),
        "id": pa.array([f"row {k:030}" for k in range(rows)]),
        "number": pa.array(range(rows)),
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"), id_column="id", segment_columns=["number"])
    engine, windows = elsewhere(), [window(*hours)]
    cloud = scans.read(source, windows, engine)
    assert_same(cloud, source.read(windows))
    assert len(cloud) == min(rows, 60 * (hours[1] - hours[0]))
    # a float16 vector, an id of 34 bytes and its 64-bit offset, a number
    assert engine.account.result_bytes < len(cloud) * (2 * dim + 34 + 8 + 8) + 2_000


# --- sketches


def plan_of(dim: int, reservoir: int = 40) -> SketchPlan:
    rows = torch.from_numpy(np.random.default_rng(9).normal(size=(60, dim)).astype(np.float32))
    panel = PanelSettings(pca_components=2, components=2, bins=5)
    return SketchPlan.from_rows(rows, settings=panel, features=16, bins=32, reservoir=reservoir)


def one_pass(source: ParquetSource, windows: Sequence[Window], plan: SketchPlan) -> tuple[list[Sketch], Any]:
    made = [Sketch.empty(plan) for _ in windows]
    scan = source.scan(windows, expect_dim=plan.dim)
    for batch in scan:
        made[batch.window].update(batch.rows, batch.ids)
    return made, scan.quality


def assert_close(made: Sketch, wanted: Sketch) -> None:
    """Counts and samples to the bit, float sums to 1e-10 of the largest of their kind."""
    first, second = made.state(), wanted.state()
    for name, tensor in first.items():
        if not tensor.is_floating_point() or name.startswith(("reservoir.", "extent")):
            assert torch.equal(tensor, second[name]), name
        else:
            size = max(float(second[name].abs().max()), 1e-300)
            assert float((tensor - second[name]).abs().max()) <= 1e-10 * size, name


@given(corpora())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_cut_gives_the_sketch_of_one_pass(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, corpus: dict[str, Any]
) -> None:
    """And of one cut every engine gives the same bits; bad rows are counted once."""
    source = write_corpus(tmp_path_factory.mktemp("corpus"), corpus)
    windows, plan = [window(*pair) for pair in corpus["windows"]], plan_of(2, reservoir=7)
    wanted, quality = one_pass(source, windows, plan)
    engines = [
        elsewhere(corpus["workers"], seed=corpus["seed"], lose=losing(corpus["lost"])),
        in_process(),
        Engine(LocalExecutor(["cpu", "cpu"])),
    ]
    states = []
    with monkeypatch.context() as patched:
        patched.setattr(scans, "_SKETCH_BYTES", 8 * corpus["piece_rows"])
        patched.setattr(scanning, "_BATCH_BYTES", 8 * 20)
        for engine in engines:
            told: list[int] = []
            with engine:
                made, found = scans.sketch(source, windows, plan, engine, progress=told.append)
            assert found == quality
            assert sum(told) == sum(source.count(windows))
            for own, other in zip(made, wanted, strict=True):
                assert_close(own, other)
            states.append([state_of(own) for own in made])
    assert states[0] == states[1] == states[2]


@pytest.mark.usefixtures("small")
def test_the_bits_of_a_sketch_do_not_depend_on_threads_and_workers(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "_BATCH_BYTES", 24 * 16)
    source, plan = opened(corpus), plan_of(6)
    states = []
    threads = torch.get_num_threads()
    try:
        for number, engine in ((1, in_process()), (3, in_process()), (2, elsewhere(1)), (1, elsewhere(5, seed=3))):
            torch.set_num_threads(number)
            made, _ = scans.sketch(source, WEEKS, plan, engine)
            assert torch.get_num_threads() == number
            states.append([state_of(one) for one in made])
    finally:
        torch.set_num_threads(threads)
    assert all(state == states[0] for state in states)
    assert [one.count for one in made] == [quality.rows_kept for quality in source.read(WEEKS).quality]


@pytest.mark.parametrize("number", [1, 3])
def test_every_batch_is_sketched_by_one_thread(corpus: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The last bits of torch's products and sums of many columns differ by its threads."""
    seen: list[int] = []
    update = Sketch.update

    def watched(self: Sketch, rows: torch.Tensor, ids: pa.Array) -> None:
        seen.append(torch.get_num_threads())
        update(self, rows, ids)

    monkeypatch.setattr(Sketch, "update", watched)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number)
        scans.sketch(opened(corpus), WEEKS, plan_of(6), in_process())
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_all_windows_together_give_one_sketch(corpus: Path) -> None:
    source, plan = opened(corpus), plan_of(6)
    apart, quality = scans.sketch(source, WEEKS, plan, in_process())
    (whole,), same = scans.sketch(source, WEEKS, plan, elsewhere(), together=True)
    assert same == quality
    merged = apart[0]
    for one in apart[1:]:
        merged = merged.merge(one)
    assert_close(whole, merged)


def test_no_windows_and_windows_without_rows(corpus: Path) -> None:
    source, plan = opened(corpus), plan_of(6)
    for windows in ([], [window(-9, 0)]):
        for engine in (elsewhere(), in_process()):
            made, quality = scans.sketch(source, windows, plan, engine)
            assert [one.count for one in made] == [0] * len(windows)
            assert quality == source.read(windows).quality
            assert_same(scans.read(source, windows, engine), source.read(windows))


def test_a_plan_of_another_dimension_is_refused_before_a_row_is_read(corpus: Path) -> None:
    engine = elsewhere()
    with pytest.raises(ReferenceMismatchError, match="6 dimensions, 5 are expected"):
        scans.sketch(opened(corpus), WEEKS, plan_of(5), engine)
    assert engine.executor.ran == []


@pytest.mark.usefixtures("small")
def test_tasks_of_sketches_are_named(corpus: Path) -> None:
    engine = elsewhere()
    scans.sketch(opened(corpus), WEEKS, plan_of(6), engine)
    assert f"sketch 1 of {len(engine.executor.ran)}" in engine.executor.ran
    assert engine.account.tasks == {"sketch": len(engine.executor.ran)}
