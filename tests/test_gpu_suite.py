"""The GPU suite runs through on the CPU and judges rightly; nothing here times anything or needs Triton."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmark_modules import BENCHMARKS, ROOT, benchmarks_on_path, module

from gpudrift import kernels
from gpudrift.kernels import reference, schedules
from gpudrift.kernels.schedules import Row, Schedule

__all__ = ["benchmarks_on_path"]  # a fixture
pytestmark = pytest.mark.usefixtures("benchmarks_on_path")


class Time:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# the whole command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = tmp_path_factory.mktemp("dry")
    words = ["--dry", "--minutes", "5", "--precisions", "float16", "--workers", "1", "--out", str(out)]
    command = [sys.executable, str(BENCHMARKS / "gpu_suite.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False), out


def records(out: Path) -> list[dict[str, Any]]:
    (path,) = out.glob("*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_dry_run_goes_through_every_part(dry: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, out = dry
    assert done.returncode == 0, done.stdout + done.stderr
    found = records(out)
    assert {"checks", "rates", "ratios", "ceilings", "million", "time"} <= {r["part"] for r in found}
    checks = [r for r in found if r["part"] == "checks"]
    assert len(checks) == 6
    assert all(r["ok"] and r["of_bound"] <= 1 for r in checks)
    names = {r["name"] for r in found if r["part"] == "rates"}
    assert {"gemm", "energy", "energy+5", "self", "batch", "128 labels", "mm+eager", "cdist"} <= names


def test_every_line_says_where_it_is_from(dry: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    report = module("gpu_report")
    for record in records(dry[1]):
        assert set(report.SCHEMA) <= record.keys()
        assert re.fullmatch("[0-9a-f]{16}", record["hash"])
        assert record["device"] == "cpu (dry)"
        assert set(record["versions"]) == {"python", "torch", "triton"}


def test_what_was_not_checked_is_said_first_and_last(dry: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    lines = dry[0].stdout.splitlines()
    assert lines[0] == "WILL NOT BE CHECKED: checks in bfloat16: not asked for"
    written = next(at for at, line in enumerate(lines) if line.startswith("written: "))
    assert lines[written + 1] == "NOT CHECKED: checks in bfloat16: not asked for"
    assert any("dry run" in line for line in lines[: written - 1])
    assert "6 of 6 checks passed, 0 failures" in lines[-1]


def test_a_dry_table_is_marked_and_never_among_the_results(
    dry: tuple[subprocess.CompletedProcess[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (table,) = dry[1].glob("*.md")
    text = table.read_text(encoding="utf-8")
    assert "DRY RUN" in text
    assert "goal energy+5" in text
    with pytest.raises(SystemExit):
        module("gpu_suite").parse(["--dry", "--out", str(BENCHMARKS / "results")])
    assert "--out" in capsys.readouterr().err
    assert not module("gpu_suite").parse(["--dry"]).out.is_relative_to(ROOT)


def test_without_a_gpu_nothing_is_claimed() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--parts", "checks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no CUDA device" in done.stderr


# checks --------------------------------------------------------------------------------------------------------------


def on_cpu(said: list[dict[str, Any]]) -> Any:
    return module("gpu_part").Setting(torch.device("cpu"), dry=True, say=said.append)


@pytest.mark.parametrize("kind", ["cross", "self"])
def test_the_chunked_truth_is_the_definition(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checks, truth = module("gpu_cases"), module("gpu_truth")
    monkeypatch.setattr(truth, "_AT_ONCE", 500)
    labels = 5 if kind == "self" else 0
    for clusters in (False, True):
        ladder = (0.5, 1.0, 0.7)
        case = checks.Check("float16", kind, 70, 33, 6, ladder, clusters=clusters, groups=True, labels=labels)
        x, y, z = checks.clouds(case, torch.device("cpu"))
        other = y if kind == "cross" else None
        wanted = reference.pair_sums(x, other, ladder, z)
        for most in (1 << 40, 0):  # by differences, by a product
            monkeypatch.setattr(truth, "_BY_DIFFERENCES", most)
            value, bound = truth.truth(x, other, ladder, z)
            for name in ("total", "rows", "columns", "squares", "blocks", "labels"):
                torch.testing.assert_close(getattr(value, name), getattr(wanted, name), rtol=1e-9, atol=1e-9)
                assert (getattr(bound, name) >= 0).all()


def test_the_bound_leaves_no_room_for_a_lost_pair() -> None:
    """A single pair left out of 700 x 1500, or counted twice, must show in its row."""
    checks, truth = module("gpu_cases"), module("gpu_truth")
    for d in (130, 8192):
        case = checks.Check("float32", "cross", 200, 1500, d)
        x, y, z = checks.clouds(case, torch.device("cpu"))
        value, bound = truth.truth(x, y, (), z)
        assert float((bound.rows / value.rows).max()) < 0.5 / 1500


def test_a_wrong_number_a_wrong_shape_and_a_nan_are_seen() -> None:
    checks, truth = module("gpu_cases"), module("gpu_truth")
    case = checks.Check("float32", "cross", 20, 30, 4, (1.0,))
    x, y, z = checks.clouds(case, torch.device("cpu"))
    value, bound = truth.truth(x, y, case.ladder, z)
    right = kernels.cross_sums(x, y, bandwidths=case.ladder)
    assert truth.worst(right, value, bound, squares=True, margins=True)[1] == ""
    rows = right.rows.clone()
    rows[1, 3] += 0.01
    off, said = truth.worst(replace(right, rows=rows), value, bound, squares=True, margins=True)
    assert off > 1
    assert said.startswith("rows[23] is ")
    lost = replace(right, squares=torch.full((2,), math.nan, dtype=torch.float64))
    assert truth.worst(lost, value, bound, squares=True, margins=True)[0] == math.inf
    assert truth.worst(lost, value, bound, squares=False, margins=True)[1] == ""
    assert "shape" in truth.worst(replace(right, rows=rows[:1]), value, bound, squares=True, margins=True)[1]
    assert "nobody asked for" in truth.worst(right, value, bound, squares=True, margins=False)[1]


def test_cases_reach_every_switch_shape_and_kind_of_data() -> None:
    checks = module("gpu_cases")
    known = list(checks.cases("float16"))
    assert len({case.name for case in known}) == len(known)
    assert {case.kind for case in known} == {"cross", "self", "batch"}
    assert {case.data for case in known} == {"plain", "duplicates", "near", "offset", "tails"}
    assert {case.extra for case in known} == {"", "streams", "host", "memory"}
    assert {1, 2, 63, 127, 128, 129, 20_000} <= {case.n for case in known}
    assert {1, 3, 32, 64, 8192} <= {case.d for case in known}
    for kind in ("cross", "self"):
        mine = [case for case in known if case.kind == kind]
        assert {(), checks.CHAINED, checks.DEFAULT, checks.OWN, checks.EIGHT} <= {case.ladder for case in mine}
        assert {(case.squares, case.margins) for case in mine} >= {(True, True), (False, False)}
        assert {case.clusters for case in mine} == {False, True}


def planted(monkeypatch: pytest.MonkeyPatch, checks: ModuleType, fault: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """What the checks say when every sum passes through ``fault``."""
    sums = checks.sums
    monkeypatch.setattr(checks, "sums", lambda *a: [(x, y, fault(found)) for x, y, found in sums(*a)])
    said: list[dict[str, Any]] = []
    checks.run("float32", on_cpu(said), module("gpu_goals").Clock(1e6))
    return said


def test_a_planted_fault_fails_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    checks, report = module("gpu_checks"), module("gpu_report")
    said = planted(monkeypatch, checks, lambda found: replace(found, total=found.total * 1.001))
    assert len(said) == 6
    assert all(report.failed(record) for record in said)
    assert "total" in said[0]["wrong"]


def test_a_case_that_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("illegal memory access")

    said = planted(monkeypatch, module("gpu_checks"), broken)
    assert [record["ok"] for record in said] == [False] * 6
    assert said[0]["wrong"] == "raises RuntimeError: illegal memory access"


def test_results_that_change_between_calls_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))
    said = planted(
        monkeypatch, module("gpu_checks"), lambda f: replace(f, total=f.total * (1 + 1e-15 * (next(calls) % 2)))
    )
    assert any("differ from the second call" in record["wrong"] for record in said)


# what becomes of findings --------------------------------------------------------------------------------------------


def suite(tmp_path: Path) -> Any:
    found = module("gpu_suite")
    options = found.parse(["--dry", "--out", str(tmp_path)])
    where = module("gpu_report").environment(True)
    return found.Suite(options, where, module("gpu_goals").Clock(60))


def rate(name: str, variants: list[str], **more: Any) -> dict[str, Any]:
    return {"part": "rates", "name": name, "d": 768, "ms": 1.0, "share": 0.8, "variants": variants, **more}


def test_a_failing_check_gives_exit_code_1_and_withholds_its_rates(tmp_path: Path) -> None:
    run = suite(tmp_path)
    case = {"precision": "float16"}
    run.keep(
        {"part": "checks", "name": "a", "variant": "float16 cross ladder", "ok": False, "wrong": "x", "case": case}
    )
    run.keep({"part": "checks", "name": "b", "variant": "float16 cross distance", "ok": True, "case": case})
    run.keep(rate("energy+5", ["float16 cross ladder"]))
    run.keep(rate("energy", ["float16 cross distance"]))
    assert run.finish() == 1
    by_name = {r["name"]: r for r in records(tmp_path)}
    assert by_name["energy"]["ms"] == 1.0
    assert "ms" not in by_name["energy+5"]
    assert by_name["energy+5"]["withheld"] == "checks failed: float16 cross ladder"


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ({"part": "rates", "name": "energy", "error": "boom"}, 1),
        ({"part": "suite", "name": "rates", "error": "its process ended with exit code -6"}, 1),
        ({"part": "probes", "name": "int8", "error": "does not compile"}, 0),  # an answer, not a failure
        ({"part": "rates", "skipped": "geomloss: not installed"}, 0),
    ],
)
def test_what_fails_the_suite(record: dict[str, Any], code: int, tmp_path: Path) -> None:
    run = suite(tmp_path)
    run.keep({"part": "time", "name": "start", "seconds": 0.0})
    run.keep(record)
    assert run.finish() == code


def test_a_part_that_dies_fails_the_suite_and_its_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = suite(tmp_path)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    child = run.start("checks float16", run.clock.deadline)
    assert run.until(lambda: child.dead, run.clock.deadline)
    assert "float16 self labels" in run.failing
    assert run.finish() == 1


def test_a_part_that_never_gets_ready_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = suite(tmp_path)
    monkeypatch.setattr(sys, "executable", "/bin/cat")  # reads nothing of its own, says nothing and ends
    child = run.start("rates", run.clock.deadline)
    child.dead = True
    assert not run.turn(child, "rates", run.clock.deadline)
    assert run.unchecked == ["rates: the part ended"]
    child.close()


# goals, clock, hash ---------------------------------------------------------------------------------------------------


def test_the_goals_and_their_verdicts() -> None:
    goals = module("gpu_goals")
    assert set(goals.SHARES["energy"]) == set(goals.SHARES["energy+5"]) == set(goals.DIMS)
    for by_d in goals.SHARES.values():
        assert all(0 < must < stretch for must, stretch in by_d.values())
    assert goals.share_verdict("energy", 768, 0.74) == "below"
    assert goals.share_verdict("energy", 768, 0.75) == "must"
    assert goals.share_verdict("energy", 768, 0.90) == "stretch"
    assert goals.share_verdict("energy", 768, math.nan) == "below"
    assert goals.share_verdict("twin", 768, 0.5) == ""
    assert goals.ratio_verdict("128 labels against none", 1.3) == "met"
    assert goals.ratio_verdict("128 labels against none", 1.31) == "below"
    assert goals.ratio_verdict("energy over cdist", 9.0) == "below"
    assert goals.ratio_verdict("energy over cdist", 9.0, 128) == ""
    assert goals.ratio_verdict("self against full", 1.9, 128) == "met"


def test_a_clock_leaves_out_what_does_not_fit_and_says_so() -> None:
    now = Time()
    clock = module("gpu_goals").Clock(10, now)
    assert clock.fits("a", 9)
    now.now += 8
    assert (clock.spent, clock.left) == (8, 2)
    assert clock.fits("b", 2)
    assert not clock.fits("c", 3)
    now.now += 9
    assert not clock.fits("d", 1)
    assert clock.left_out == ["c: needs about 3 s, 2 s are left", "d: needs about 1 s, 0 s are left"]


def test_checks_that_no_time_is_left_for_are_named() -> None:
    now = Time()
    clock = module("gpu_goals").Clock(0.5, now)
    said: list[dict[str, Any]] = []
    module("gpu_checks").run("float32", on_cpu(said), clock)
    assert said == []
    assert len(clock.left_out) == 6


def test_a_hash_changes_with_the_case_and_the_code() -> None:
    goals = module("gpu_goals")
    first = goals.case_hash({"name": "energy", "d": 768}, "code")
    assert first == goals.case_hash({"d": 768, "name": "energy"}, "code")
    assert first != goals.case_hash({"name": "energy", "d": 769}, "code")
    assert first != goals.case_hash({"name": "energy", "d": 768}, "other code")
    names = {path.name for path in goals.sources()}
    assert {"triton_pairs.py", "schedules.json", "gpu_suite.py", "gpu_truth.py"} <= names


def test_a_rate_is_compared_round_by_round() -> None:
    rates = module("gpu_timing")
    fast = rates.Contestant("a", lambda: None, 10, times=[(0, 1.0), (1, 2.0), (2, 9.0)])
    slow = rates.Contestant("b", lambda: None, 20, times=[(0, 4.0), (1, 8.0)])
    assert rates.paired(fast, slow) == 2.0  # a pair takes half the time, in both rounds there are
    assert math.isnan(rates.paired(fast, rates.Contestant("c", lambda: None, 1)))
    assert fast.seconds == 2.0


def test_a_contestant_that_fails_is_told_and_dropped() -> None:
    rates = module("gpu_timing")
    said: list[dict[str, Any]] = []

    def broken() -> None:
        raise RuntimeError("out of resources")

    pair = [rates.Contestant("gemm", lambda: None, 1), rates.Contestant("bad", broken, 1)]
    rates.rounds(pair, on_cpu(said), module("gpu_goals").Clock(100), 3)
    assert [len(one.times) for one in pair] == [3, 0]
    assert said == [{"part": "rates", "name": "bad", "error": "RuntimeError: out of resources"}]


def test_the_line_through_points() -> None:
    assert module("gpu_probes").line([(2, 7.0), (4, 11.0), (6, 15.0)]) == pytest.approx((3.0, 2.0))


# the tuner ------------------------------------------------------------------------------------------------------------


def test_the_fastest_right_schedule_wins() -> None:
    tune = module("gpu_tune")
    known = tune.candidates("distance", 90)
    assert known[0] == schedules.choose(90, "float16", "distance", 768)
    assert len(set(known)) == len(known)
    pace = {one: 10.0 + place for place, one in enumerate(known)}
    wrong, crashing, best = known[5], known[7], known[9]
    pace |= {wrong: 1.0, crashing: math.inf, best: 2.0}
    asked: list[Schedule] = []

    def fine(some: Any) -> dict[Schedule, float]:
        asked.extend(some)
        # of the launch orders, (32, 4) is best
        bonus = {s: -0.5 if (s.STRIP, s.GROUP) == (32, 4) else 0.0 for s in some}
        return {s: pace.get(replace(s, STRIP=best.STRIP, GROUP=best.GROUP), 99.0) + bonus[s] for s in some}

    found = tune.select(known, lambda s: pace[s], fine, lambda s: s != wrong)
    assert found == (replace(best, STRIP=32, GROUP=4), 1.5)
    assert crashing not in asked
    assert tune.halve({wrong: 3.0, crashing: math.inf, best: 2.0}, 3) == [best, wrong]
    assert tune.select(known, lambda s: pace[s], fine, lambda _: False) is None


@pytest.mark.parametrize("statistics", ["distance", "ladder", "labels"])
@pytest.mark.parametrize("arch", [80, 90])
def test_candidates_can_exist(statistics: str, arch: int) -> None:
    for one in module("gpu_tune").candidates(statistics, arch):
        assert one.DESCRIPTORS is (arch >= 90)
        assert one.BM % (16 * one.WARPS) == 0  # lanes' partial sums
        assert not (one.PARTIALS and one.SUBTILES > 1)


def test_a_candidate_that_took_the_device_down_is_not_tried_again(tmp_path: Path) -> None:
    tune = module("gpu_tune")
    log = tune.Log(tmp_path / "tune.jsonl")
    assert log.timed("a", lambda: 2.0) == 2.0

    def crash() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        log.timed("b", crash)
    again = tune.Log(tmp_path / "tune.jsonl")
    assert again.timed("a", crash) == 2.0
    assert again.timed("b", crash) == math.inf


def test_the_table_keeps_what_was_not_tuned(tmp_path: Path) -> None:
    tune = module("gpu_tune")
    small, large = Schedule(BN=64), Schedule(WARPS=4)
    found = {"distance": {256: small, 512: small, 0: large}, "ladder": {256: small}}
    rows = tune.merged(schedules.table(), 90, tune.CLASS, found, "a GPU, today")
    path = tmp_path / "schedules.json"
    path.write_text(schedules.dump(rows), encoding="utf-8")
    back = schedules.table(path)
    assert back == rows
    for d, wanted in ((1, small), (512, small), (513, large), (8192, large)):
        assert schedules.choose(90, "bfloat16", "distance", d, back) == wanted
    assert schedules.choose(90, "float16", "ladder", 256, back) == small
    before = schedules.table()
    assert schedules.choose(90, "float16", "ladder", 257, back) == schedules.choose(
        90, "float16", "ladder", 257, before
    )
    for arch in (80, 90, 100):
        for precision in schedules.ELEMENTS:
            for statistics in schedules.STATISTICS:
                if arch == 90 and precision in tune.CLASS and statistics in found:
                    continue
                mine = [schedules.choose(arch, precision, statistics, 768, table) for table in (before, back)]
                assert mine[0] == mine[1]
    assert [row.timed for row in back if row.d == 512] == ["a GPU, today"]  # two buckets of one schedule are one row


def test_a_row_shared_by_statistics_and_precisions_is_split() -> None:
    tune = module("gpu_tune")
    shared = Row(90, ("float16", "tf32"), ("distance", "labels"), 0, Schedule(), "before")
    new = Schedule(STAGES=4)
    rows = tune.merged((shared,), 90, ("float16", "bfloat16"), {"distance": {0: new}}, "now")
    assert schedules.choose(90, "float16", "distance", 5, rows) == new
    for precision, statistics in (("tf32", "distance"), ("tf32", "labels"), ("float16", "labels")):
        assert schedules.choose(90, precision, statistics, 5, rows) == Schedule()


def test_a_dry_tuning_writes_a_table_beside_its_results(tmp_path: Path) -> None:
    text = schedules.TABLE.read_bytes()
    words = ["--dry", "--tune", "--minutes", "3", "--workers", "1", "--out", str(tmp_path)]
    command = [sys.executable, str(BENCHMARKS / "gpu_suite.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    timed = {row.timed for row in schedules.table(tmp_path / "schedules.json")}
    assert any(one.startswith("cpu (dry)") for one in timed)
    assert schedules.TABLE.read_bytes() == text


# compiling ahead ------------------------------------------------------------------------------------------------------


def test_a_compiler_that_dies_costs_its_own_kernel_alone(tmp_path: Path) -> None:
    """Two kernels, one of which ends the compiler."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    if json.loads(line)['data'] == 'bad':\n"
        "        sys.exit(1)\n"
        "    print(json.dumps({'error': ''}), flush=True)\n"
    )
    compilers = module("gpu_compile").Workers(1, (sys.executable, str(script)))
    failed = compilers.compile({"bad": "k", "good": "k", "fine": "k"}, ("cuda", 90, 32), time.time() + 100)
    compilers.close()
    assert failed == {"bad": "the compiler died"}


def test_without_time_nothing_is_compiled(tmp_path: Path) -> None:
    del tmp_path
    compilers = module("gpu_compile").Workers(1, (sys.executable, "-c", "input()"))
    failed = compilers.compile({"a": "k"}, ("cuda", 90, 32), 0.0)
    compilers.close()
    assert failed == {"a": "not compiled ahead: out of time"}
