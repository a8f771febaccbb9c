"""The streaming job on files: what is counted, when windows close, what is emitted, how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from jobs import ROWS, run, table_of, vectors, week, with_vectors
from streams import NOW, Script, counts, land, land_weeks, lines, plan_of, saved, sketches, status, stream

from gpudrift.errors import ConfigError, DataError, LockedError
from gpudrift.files import exclusive
from gpudrift.sketch import Sketch
from gpudrift.stream import checkpoint

Use = Callable[[Script], Script]


def test_windows_open_close_and_get_verdicts(corpus: Path, table: pa.Table, out: Path, inbox: Path) -> None:
    land_weeks(inbox, table, range(14), parts=2)
    ran = stream(corpus, out, inbox, alert__fail_on="alert")
    assert ran.code == 20
    assert counts(out) == {"files": 28, "rows": 6 * ROWS, "in_reference": 8 * ROWS}
    emitted = [(line["window"], line["rows"], line["final"], line["verdict"]) for line in lines(out)]
    assert emitted == [
        ("2026-W10", ROWS, True, "stable"),  # as W13 begins to count: the newest three stay open
        ("2026-W11", ROWS, True, "stable"),
        ("2026-W12", ROWS, True, "stable"),
        ("2026-W13", ROWS, False, "stable"),
        ("2026-W14", ROWS, False, "warning"),
        ("2026-W15", ROWS, False, "alert"),  # the window before is still open, and counts all the same
    ]
    assert [line["emission"] for line in lines(out)] == [1, 2, 3, 4, 5, 6]
    assert status(out)["open_windows"] == {"2026-W13": ROWS, "2026-W14": ROWS, "2026-W15": ROWS}
    assert {path.name for path in (out / "windows").iterdir()} == {f"2026-W{k}.json" for k in range(10, 16)}
    history = ds.dataset(out / "history", partitioning=None, exclude_invalid_files=True).to_table().to_pylist()
    headline = [row for row in history if row["metric"] == "energy"]
    assert [(row["window"], row["complete"], row["rows"], row["verdict"]) for row in headline] == [
        ("2026-W10", True, ROWS, "stable"),
        ("2026-W11", True, ROWS, "stable"),
        ("2026-W12", True, ROWS, "stable"),
    ]
    assert "sketch_frechet" in {row["metric"] for row in history}
    assert ran.out.splitlines()[-1].startswith("ALERT         2026-W15: 150 rows, score ")


@pytest.mark.usefixtures("no_pictures")
def test_a_window_that_fits_in_the_reservoir_scores_as_the_nightly_job_scores_it(
    corpus: Path, table: pa.Table, out: Path, inbox: Path, tmp_path: Path
) -> None:
    land_weeks(inbox, table, [12, 13], parts=3)
    stream(corpus, out, inbox)
    shutil.copytree(out / "reference", tmp_path / "nightly" / "reference")
    same = {"windows.reference.count": 8, "metrics.directions": 4, "windows.min_rows": 40}
    ran = run(corpus, tmp_path / "nightly", same | {"run_date": "2026-04-08", "alert.fail_on": "alert"})
    found = json.loads((out / "windows" / "2026-W15.json").read_text(encoding="utf-8"))
    assert found["verdict"] == ran.result["verdict"] == "alert"
    nightly = ran.result["metrics"]
    assert (found["score"], found["se"]) == (nightly["energy"]["value"], nightly["energy"]["se"])
    of_rows = found["metrics_of_verdict_rows"]
    assert of_rows == {name: {"value": m["value"], "se": m["se"]} for name, m in nightly.items()}


def test_the_sketch_is_that_of_all_rows_in_one_pass(corpus: Path, table: pa.Table, out: Path, inbox: Path) -> None:
    land_weeks(inbox, table, [13], parts=7)
    stream(corpus, out, inbox)
    plan = plan_of(out)
    rows = table.slice(week(13).start, ROWS)
    whole = Sketch.empty(plan)
    whole.update(torch.from_numpy(vectors(rows)), rows["id"].combine_chunks())
    told, tensors = saved(out)
    assert [item["window"][2] for item in told["windows"]] == ["2026-W15"]
    for name, tensor in whole.state().items():
        found = tensors[f"0.{name}"]
        if tensor.is_floating_point() and name != "reservoir.rows":
            assert torch.allclose(found, tensor, rtol=1e-10, atol=1e-10), name
        else:
            assert torch.equal(found, tensor), name


def test_a_second_run_adds_nothing(corpus: Path, table: pa.Table, out: Path, inbox: Path) -> None:
    land_weeks(inbox, table, range(8, 14))
    first = stream(corpus, out, inbox)
    told, said = saved(out)[0], lines(out)
    again = stream(corpus, out, inbox)
    assert (first.code, again.code, again.out) == (0, 0, "")
    assert (saved(out)[0], lines(out)) == (told, said)
    assert "14 known already" not in again.err
    assert "6 known already" in again.err
    assert "going on from a checkpoint: 900 rows so far" in again.err


def test_the_same_content_under_another_name_counts_once(corpus: Path, table: pa.Table, out: Path, inbox: Path) -> None:
    (path,) = land_weeks(inbox, table, [13])
    shutil.copy(path, inbox / "again.parquet")
    os.utime(inbox / "again.parquet", (1_700_100_000,) * 2)
    ran = stream(corpus, out, inbox)
    assert counts(out) == {"files": 1, "rows": ROWS, "duplicate_files": 1}
    assert "again.parquet: the same content as week-13-0.parquet, counted once" in ran.err
    # also when the first name is gone, and in another run; touching a file changes nothing
    (inbox / "again.parquet").rename(inbox / "third.parquet")
    path.unlink()
    stream(corpus, out, inbox)
    os.utime(inbox / "third.parquet", (1_700_200_000,) * 2)
    stream(corpus, out, inbox)
    assert counts(out)["rows"] == ROWS
    assert counts(out)["files"] == 1


def test_equal_rows_in_two_files_both_count(corpus: Path, table: pa.Table, out: Path, inbox: Path) -> None:
    """Content is that of a file: the same rows written differently are told apart by nothing but their ids."""
    rows = table.slice(week(13).start, ROWS)
    land(inbox, "a.parquet", rows)
    land(inbox, "b.parquet", rows.slice(0, 10), at=1)
    stream(corpus, out, inbox)
    assert counts(out) == {"files": 2, "rows": ROWS + 10}


def test_a_name_that_is_overwritten_is_refused(corpus: Path, table: pa.Table, out: Path, inbox: Path) -> None:
    rows = table.slice(week(13).start, ROWS)
    land(inbox, "latest.parquet", rows.slice(0, 100))
    stream(corpus, out, inbox)
    for at, stop in ((5, 120), (6, 130)):
        land(inbox, "latest.parquet", rows.slice(0, stop), at=at)
        ran = stream(corpus, out, inbox)
        assert ran.code == 30
    assert counts(out) == {"files": 1, "rows": 100, "quarantined_files": 2}
    assert "consumed before with other content" in ran.err


def test_a_damaged_file_is_quarantined_once_and_named(corpus: Path, table: pa.Table, out: Path, inbox: Path) -> None:
    land_weeks(inbox, table, [12, 13])
    damaged = land(inbox, "bad.parquet", table.slice(week(11).start, ROWS))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 3] ^= 0x10
    damaged.write_bytes(content)
    os.utime(damaged, (1_700_000_000,) * 2)
    first = stream(corpus, out, inbox)
    assert first.code == 30
    assert counts(out) == {"files": 2, "rows": 2 * ROWS, "quarantined_files": 1}
    assert first.err.count("quarantined, not counted: bad.parquet") == 2  # as it happens, and at the end
    assert "bad.parquet" in status(out)["quarantined"]["bad.parquet"]
    assert lines(out)[-1]["quarantined"] == ["bad.parquet"]
    again = stream(corpus, out, inbox)  # still lies there, is not tried again
    assert again.code == 30
    assert counts(out)["quarantined_files"] == 1
    land(inbox, "bad.parquet", table.slice(week(11).start, ROWS), at=3)  # mended
    assert stream(corpus, out, inbox).code == 0
    assert counts(out) == {"files": 3, "rows": 3 * ROWS, "quarantined_files": 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop_columns(["event_time"]), "there is no column 'event_time'"),
        (lambda t: with_vectors(t, vectors(t)[:, :8].copy()), "8 dimensions"),
        (lambda t: with_vectors(t, np.where(np.arange(ROWS)[:, None] < 9, np.nan, vectors(t))), "rows of 2026-W15"),
        (lambda t: t.replace_schema_metadata({"encoder_id": "another"}), "not of the kind the pinned reference"),
    ],
    ids=["no time column", "other dimension", "many bad rows", "other encoder"],
)
def test_a_file_that_does_not_fit_is_quarantined_and_nothing_of_it_counts(
    corpus: Path, table: pa.Table, out: Path, inbox: Path, change: Callable[[pa.Table], pa.Table], said: str
) -> None:
    land_weeks(inbox, table, [12])
    land(inbox, "other.parquet", change(table.slice(week(13).start, ROWS)), at=500)
    ran = stream(corpus, out, inbox)
    assert (ran.code, counts(out)) == (30, {"files": 1, "rows": ROWS, "quarantined_files": 1})
    assert said in ran.err


def test_a_file_that_may_not_be_opened_is_tried_again(
    corpus: Path, table: pa.Table, out: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions are mended without a change of the file."""

    def denied(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    land_weeks(inbox, table, [12])
    with monkeypatch.context() as patch:
        patch.setattr("gpudrift.stream.job.digest", denied)
        assert stream(corpus, out, inbox).code == 30
    assert stream(corpus, out, inbox).code == 0
    assert counts(out)["rows"] == ROWS


def test_a_name_that_is_not_utf8_is_quarantined(corpus: Path, table: pa.Table, out: Path, inbox: Path) -> None:
    land_weeks(inbox, table, [12])
    land(inbox, "plain.parquet", table.slice(week(13).start, ROWS)).rename(inbox / os.fsdecode(b"caf\xe9.parquet"))
    ran = stream(corpus, out, inbox)
    assert (ran.code, counts(out)) == (30, {"files": 1, "rows": ROWS, "quarantined_files": 1})
    assert "not UTF-8" in status(out)["quarantined"]["caf\\xe9.parquet"]
    assert stream(corpus, out, inbox).code == 30  # the checkpoint holds its name


def test_a_few_bad_rows_are_dropped_and_counted(corpus: Path, table: pa.Table, out: Path, inbox: Path) -> None:
    rows = table.slice(week(13).start, ROWS)
    values = vectors(rows)
    values[3] = np.nan
    land(inbox, "a.parquet", with_vectors(rows, values))
    assert stream(corpus, out, inbox).code == 0
    assert counts(out) == {"files": 1, "rows": ROWS - 1, "bad": 1}
    assert lines(out)[-1]["quality"]["dropped"] == {"non_finite": 1}
    assert lines(out)[-1]["quality"]["examples"] == {"non_finite": [rows["id"][3].as_py()]}


def test_rows_of_closed_windows_are_late_and_change_nothing(
    corpus: Path, table: pa.Table, out: Path, inbox: Path
) -> None:
    land_weeks(inbox, table, [10, 11, 12, 13])
    stream(corpus, out, inbox)
    before = lines(out)
    mixed = pa.concat_tables([table.slice(week(9).start, 20), table.slice(week(12).start, 7), table.slice(0, 5)])
    land(inbox, "straggler.parquet", mixed, at=900)
    stream(corpus, out, inbox)
    assert counts(out) == {"files": 5, "rows": 4 * ROWS + 7, "late": 20, "in_reference": 5}
    assert [(line["window"], line["rows"]) for line in lines(out)[len(before) :]] == [("2026-W14", ROWS + 7)]


def test_out_of_order_files_fill_the_windows_that_are_open(
    corpus: Path, table: pa.Table, out: Path, inbox: Path
) -> None:
    order = [12, 11, 13, 10]
    for at, k in enumerate(order):
        land(inbox, f"{at}.parquet", table.slice(week(k).start, ROWS), at=at)
    stream(corpus, out, inbox)
    assert counts(out) == {"files": 4, "rows": 3 * ROWS, "late": ROWS}  # W12 closed when W15 came


def test_a_few_rows_far_ahead_close_nothing(corpus: Path, table: pa.Table, out: Path, inbox: Path) -> None:
    land_weeks(inbox, table, [10, 11])
    ahead = table.slice(week(12).start, 3)
    far = pa.array([int(2e15)] * 3, pa.timestamp("us", "UTC"))  # 2033
    ahead = ahead.set_column(ahead.schema.get_field_index("event_time"), "event_time", far)
    land(inbox, "clock.parquet", ahead, at=1000)
    land_weeks(inbox, table, [12])
    os.utime(inbox / "week-12-0.parquet", (1_700_002_000,) * 2)
    stream(corpus, out, inbox)
    assert counts(out) == {"files": 4, "rows": 3 * ROWS + 3}
    assert [line["final"] for line in lines(out)] == [False] * 4
    assert lines(out)[-1]["verdict"] == "insufficient"
    assert status(out)["open_windows"]["2033-W20"] == 3


def test_more_windows_than_allowed_are_refused(corpus: Path, table: pa.Table, out: Path, inbox: Path) -> None:
    land(inbox, "all.parquet", table)
    ran = stream(corpus, out, inbox, stream__max_windows=5)
    assert (ran.code, counts(out)) == (30, {"quarantined_files": 1})
    assert "would open more windows than are held at a time" in ran.err
    assert stream(corpus, out, inbox, stream__max_windows=5).code == 30
    assert counts(out) == {"quarantined_files": 1}  # not tried again
    assert stream(corpus, out, inbox, stream__max_windows=6).code == 0  # but with settings it may fit
    assert counts(out)["rows"] == 6 * ROWS


def test_placeholder_times_are_refused_without_planning_millennia(
    corpus: Path, table: pa.Table, out: Path, inbox: Path
) -> None:
    rows = table.slice(week(13).start, ROWS)
    times = rows["event_time"].to_pylist()
    times[0] = times[0].replace(year=1)
    rows = rows.set_column(
        rows.schema.get_field_index("event_time"), "event_time", pa.array(times, pa.timestamp("us", "UTC"))
    )
    land(inbox, "a.parquet", rows)
    ran = stream(corpus, out, inbox)
    assert (ran.code, counts(out)) == (30, {"quarantined_files": 1})


def test_emissions_by_rows_go_on_across_runs(corpus: Path, table: pa.Table, out: Path, inbox: Path) -> None:
    rows = table.slice(week(13).start, ROWS)
    for k in range(5):
        land(inbox, f"{k}.parquet", rows.slice(30 * k, 30), at=k)
    stream(corpus, out, inbox, stream__emit_rows=60)
    assert [(line["rows"], line["verdict"]) for line in lines(out)] == [
        (60, "warning"),
        (120, "warning"),
        (150, "warning"),
    ]
    assert [line["emission"] for line in lines(out)] == [1, 2, 3]


def test_what_was_written_after_the_last_checkpoint_is_cut_off(
    corpus: Path, table: pa.Table, out: Path, inbox: Path
) -> None:
    land_weeks(inbox, table, [12])
    stream(corpus, out, inbox)
    with (out / "stream.jsonl").open("a", encoding="utf-8") as handle:
        handle.write('{"emission": 2, "half of a li')
    land_weeks(inbox, table, [13])
    stream(corpus, out, inbox)
    assert [line["emission"] for line in lines(out)] == [1, 2]
    (out / "stream.jsonl").write_text("", encoding="utf-8")  # rotated
    land_weeks(inbox, table, [11])
    stream(corpus, out, inbox)
    assert [line["emission"] for line in lines(out)] == [3]


def test_files_landing_while_it_watches(corpus: Path, table: pa.Table, out: Path, inbox: Path, use: Use) -> None:
    rows = table.slice(week(13).start, ROWS)

    def write_half(_: Script) -> None:
        land(inbox, "b.parquet", rows.slice(50, 50))
        whole = (inbox / "b.parquet").read_bytes()
        (inbox / "b.parquet").write_bytes(whole[: len(whole) // 2])
        (inbox / "c.parquet.tmp").write_bytes(whole)
        (inbox / ".d.parquet").write_bytes(whole)
        (inbox / "_temporary").mkdir()
        (inbox / "_temporary" / "e.parquet").write_bytes(whole)
        os.utime(inbox / "b.parquet", (NOW + 1,) * 2)

    def finish(_: Script) -> None:
        land(inbox, "b.parquet", rows.slice(50, 50))
        os.utime(inbox / "b.parquet", (NOW + 4,) * 2)

    def nothing(_: Script) -> None:
        pass

    land(inbox, "a.parquet", rows.slice(0, 50))
    use(Script(write_half, nothing, nothing, finish))
    ran = stream(corpus, out, inbox, stream__until="idle", stream__idle_seconds=30, stream__settle_seconds=20)
    assert (ran.code, counts(out)) == (0, {"files": 2, "rows": 100})


def test_once_waits_for_young_files_until_they_settle(
    corpus: Path, table: pa.Table, out: Path, inbox: Path, use: Use
) -> None:
    half = land(inbox, "half.parquet", table.slice(week(13).start, 50))
    half.write_bytes(half.read_bytes()[:1000])
    os.utime(half, (NOW + 3600,) * 2)  # the file server's clock runs ahead
    script = use(Script(lambda _: land(inbox, "later.parquet", table.slice(week(13).start, 50)) and None))
    ran = stream(corpus, out, inbox, stream__settle_seconds=5)
    assert (ran.code, counts(out)) == (30, {"quarantined_files": 1})  # what came later is for the next run
    assert 5 <= script.seconds <= 7


def test_a_file_that_changes_under_the_reader_is_left_for_later(
    corpus: Path, table: pa.Table, out: Path, inbox: Path, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = table.slice(week(13).start, ROWS)
    path = land(inbox, "a.parquet", rows.slice(0, 50))
    real = Sketch.update
    changed = []

    def update(sketch: Sketch, *args: Any) -> None:
        real(sketch, *args)
        if not changed:
            changed.append(land(inbox, "a.parquet", rows.slice(0, 80), at=9))

    monkeypatch.setattr(Sketch, "update", update)
    use(Script())
    assert stream(corpus, out, inbox).code == 0
    assert counts(out) == {"files": 1, "rows": 80}
    assert path == changed[0]


def test_sigterm_ends_it_between_files_with_everything_saved(
    corpus: Path, table: pa.Table, out: Path, inbox: Path, use: Use
) -> None:
    land_weeks(inbox, table, [12])
    before = signal.getsignal(signal.SIGTERM)
    use(Script(lambda _: None, lambda _: os.kill(os.getpid(), signal.SIGTERM)))
    ran = stream(corpus, out, inbox, stream__until="forever", stream__checkpoint_seconds=1e6)
    assert ran.code == 0
    assert saved(out)[0]["counts"]["rows"] == ROWS
    assert [line["rows"] for line in lines(out)] == [ROWS]
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_in_the_middle_of_a_file_counts_nothing_of_it(
    corpus: Path, table: pa.Table, out: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land_weeks(inbox, table, [12])
    land(inbox, "two.parquet", table.slice(week(12).start, 2 * ROWS), at=900)  # a batch a window
    real, calls = Sketch.update, []

    def update(sketch: Sketch, *args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        real(sketch, *args)

    monkeypatch.setattr(Sketch, "update", update)
    assert stream(corpus, out, inbox).code == 0
    assert counts(out) == {"files": 1, "rows": ROWS}
    assert stream(corpus, out, inbox).code == 0
    assert counts(out) == {"files": 2, "rows": 3 * ROWS}


def test_emission_and_checkpoint_by_time(corpus: Path, table: pa.Table, out: Path, inbox: Path, use: Use) -> None:
    rows = table.slice(week(13).start, ROWS)
    saves: list[float] = []

    def note(script: Script) -> None:
        saves.append((out / checkpoint.NAME).stat().st_mtime_ns if (out / checkpoint.NAME).exists() else 0)
        script.seconds += 9

    land(inbox, "a.parquet", rows.slice(0, 60))
    use(Script(*[note] * 12))
    settings = {"stream.until": "idle", "stream.idle_seconds": 100, "stream.poll_seconds": 1}
    times = {"stream.emit_seconds": 50, "stream.checkpoint_seconds": 20}
    stream(corpus, out, inbox, **settings, **times)
    assert saves[0] == saves[1] == 0
    assert saves[3] != 0
    assert [(line["rows"], line["at"]) for line in lines(out)] == [(60, "2027-01-15T08:00:50+00:00")]


def test_a_full_disk_leaves_the_old_checkpoint(
    corpus: Path, table: pa.Table, out: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land_weeks(inbox, table, [12])
    stream(corpus, out, inbox)
    before = (out / checkpoint.NAME).read_bytes()
    land_weeks(inbox, table, [13])
    real = os.fsync

    def full(descriptor: int) -> None:
        if str(Path(f"/proc/self/fd/{descriptor}").readlink()).endswith(".tmp.safetensors"):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        stream(corpus, out, inbox)
    assert (out / checkpoint.NAME).read_bytes() == before
    assert not list(out.glob(".checkpoint*"))
    monkeypatch.undo()
    assert stream(corpus, out, inbox).code == 0
    assert counts(out) == {"files": 2, "rows": 2 * ROWS}
    assert [line["emission"] for line in lines(out)] == [1, 2]


def test_a_damaged_checkpoint_is_never_a_fresh_start(corpus: Path, table: pa.Table, out: Path, inbox: Path) -> None:
    land_weeks(inbox, table, [13])
    stream(corpus, out, inbox)
    path = out / checkpoint.NAME
    content = path.read_bytes()
    for place in (20, len(content) // 2, len(content) - 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises((DataError, ConfigError)):
            stream(corpus, out, inbox)
    path.write_bytes(content[:-100])
    with pytest.raises(DataError, match="checkpoint is damaged"):
        stream(corpus, out, inbox)
    path.write_bytes(content)
    assert stream(corpus, out, inbox).code == 0


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"stream.features": 32}, "sketch plan"),
        ({"stream.bins": 32}, "sketch plan"),
        ({"source.id_column": None}, "source.id_column"),
        ({"source.filter": [["id", "!=", "x"]]}, "reference|filter"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    corpus: Path, table: pa.Table, out: Path, inbox: Path, settings: dict[str, Any], field: str
) -> None:
    land_weeks(inbox, table, [13])
    stream(corpus, out, inbox)
    with pytest.raises((ConfigError, DataError), match=field):
        stream(corpus, out, inbox, **settings)


def test_two_jobs_on_one_output(corpus: Path, out: Path, inbox: Path) -> None:
    with exclusive(out / ".stream.lock"), pytest.raises(LockedError):
        stream(corpus, out, inbox, name="another")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"stream.inbox": None}, "stream.inbox"),
        ({"stream.inbox": "/nowhere/at/all"}, "stream.inbox"),
        ({"stream.inbox": "s3://bucket/x"}, "stream.inbox"),
        ({"stream.input": "tcp://0.0.0.0:9000"}, "stream.input"),
        ({"stream.input": "tcp://example.org:9000"}, "stream.input"),
        ({"stream.input": "tcp://127.0.0.1:99999"}, "stream.input"),
        ({"source.cluster_column": "user"}, "source.cluster_column"),
    ],
)
def test_what_cannot_work_is_said(corpus: Path, out: Path, use: Use, settings: dict[str, Any], field: str) -> None:
    use(Script())
    with pytest.raises((ConfigError, DataError)) as error:
        stream(corpus, out, None, **settings)
    assert error.value.field == field


def test_an_inbox_that_cannot_work_is_said_before_the_reference_is_made(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        stream(corpus, tmp_path / "fresh", tmp_path / "nowhere")
    assert not (tmp_path / "fresh" / "reference").exists()


def test_the_reference_sketch_is_made_once_and_again_when_damaged(corpus: Path, out: Path, inbox: Path) -> None:
    (path,) = (out / "reference").glob("reference-sketch-*")
    plan, made = Sketch.load(path).plan.id, path.stat().st_mtime_ns
    stream(corpus, out, inbox)
    assert path.stat().st_mtime_ns == made
    path.write_bytes(path.read_bytes()[:1000])
    ran = stream(corpus, out, inbox)
    assert "made again" in ran.err
    assert Sketch.load(path).plan.id == plan
    assert Sketch.load(path).count == 8 * ROWS


def test_files_of_one_name_in_two_folders_stay_apart_without_ids(
    corpus: Path, table: pa.Table, out: Path, inbox: Path
) -> None:
    """Rows without ids are named after file and row; equal rows of two files are two rows of the reservoir."""
    row = table.slice(week(13).start, 1)
    for at, folder in enumerate(("a", "b")):
        rows = pa.concat_tables([row, table.slice(week(13).start + 1 + at, 60)])
        land(inbox, f"{folder}/part-0.parquet", rows, at=at)
    assert stream(corpus, out, inbox, source__id_column=None).code == 0
    ids = sketches(out)["2026-W15"].reservoir()[1].to_pylist()
    assert len(ids) == 122
    assert {"a/part-0.parquet:0", "b/part-0.parquet:0"} <= set(ids)


def test_a_glob_and_hive_folders(corpus: Path, table: pa.Table, out: Path, inbox: Path) -> None:
    land(inbox, "day=1/a.parquet", table.slice(week(13).start, 60))
    land(inbox, "day=2/a.parquet", table.slice(week(13).start + 60, 60), at=1)
    land(inbox, "other/a.parquet", table.slice(week(13).start + 120, 30), at=2)
    stream(corpus, out, inbox / "day=*" / "*.parquet")
    assert counts(out) == {"files": 2, "rows": 120}


def test_an_empty_file_and_one_that_a_filter_empties(corpus: Path, table: pa.Table, out: Path, inbox: Path) -> None:
    land(inbox, "empty.parquet", table.slice(0, 0))
    assert stream(corpus, out, inbox).code == 0
    assert counts(out) == {"files": 1}


def test_the_corpus_itself_as_inbox(corpus: Path, out: Path) -> None:
    """A stream that is caught up with: the reference's own windows are left out."""
    assert stream(corpus, out, corpus).code == 0
    assert counts(out) == {"files": 14, "rows": 6 * ROWS, "in_reference": 8 * ROWS}
    assert len(table_of(corpus)) == 14 * ROWS
    assert pq.read_table(corpus, partitioning=None).num_rows == 14 * ROWS
