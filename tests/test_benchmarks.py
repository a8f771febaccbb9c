"""The benchmark runner works and judges rightly; nothing here times anything."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_modules import ROOT, benchmarks_on_path, module

__all__ = ["benchmarks_on_path"]  # a fixture
pytestmark = pytest.mark.usefixtures("benchmarks_on_path")


def run(*words: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "benchmarks" / "run.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# cases -------------------------------------------------------------------------------------------------------------


def test_a_floor_counts_a_cloud_against_itself_as_half() -> None:
    cases = module("cases")
    cross = cases.Case("a", "cross", 10, 20, 3)
    assert (cross.pairs, cross.flop) == (200, 2 * 200 * 3)
    assert cases.Case("a", "self", 10, 20, 3).pairs == 50
    score = cases.Case("a", "score", 10, 10, 3)
    assert score.pairs == 2 * 10 * 10  # two bare products of that size
    permuted = replace(score, permutations=4, bandwidths=(1.0,))
    assert permuted.products() == score.products()
    assert permuted.label_flop == 2 * 5 * 2 * 200
    batch = cases.Case("a", "batch", 9, 9, 3, groups=(2, 3, 4))
    assert batch.products() == [(9, 3)]  # 2 * 4 + 3 * 3 + 4 * 2 = 25 pairs, in whole columns


def test_least_bytes_are_rows_norms_and_margins() -> None:
    cases = module("cases")
    bare = cases.Case("a", "cross", 10, 20, 3, margins=False, squares=False)
    assert bare.least_bytes(2) == 30 * (3 * 2 + 8)
    assert replace(bare, margins=True, bandwidths=(1.0,)).least_bytes(2) == bare.least_bytes(2) + 30 * 2 * 8


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"kind": "all"}, "kind"),
        ({"kind": "batch", "groups": (1, 2)}, "groups"),
        ({"kind": "cross", "permutations": 1}, "permutations"),
    ],
)
def test_a_case_that_cannot_be_run_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        module("cases").Case(**{"name": "a", "n": 5, "m": 5, "d": 2, **fields})


def test_names_are_unique_and_groups_are_ragged() -> None:
    cases = module("cases")
    for known in (cases.tracked(), cases.short()):
        assert len({case.name for case in known}) == len(known)
        (batch,) = [case for case in known if case.kind == "batch"]
        assert len(set(batch.groups)) > 3
        assert min(batch.groups) > 0


def test_the_hash_follows_the_definition_and_the_code() -> None:
    cases = module("cases")
    case = cases.tracked()[2]
    found = cases.case_hash(case, ["code"])
    assert found == cases.case_hash(cases.Case(**json.loads(json.dumps(asdict(case)))), ["code"])
    others = [replace(case, **{name: value}) for name, value in (("n", 5), ("squares", False), ("bandwidths", (1.0,)))]
    hashes = {found, *(cases.case_hash(other, ["code"]) for other in others)}
    hashes |= {cases.case_hash(case, sources) for sources in (["code "], ["co", "de"], [])}
    assert len(hashes) == 7


def test_the_runner_hashes_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runner, cases = module("run"), module("cases")
    before = runner.hashes(cases.short())
    edited = tmp_path / "worker.py"
    edited.write_text(runner.WORKER.read_text() + "# a comment\n")
    monkeypatch.setattr(runner, "WORKER", edited)
    after = runner.hashes(cases.short())
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())


# the rule -----------------------------------------------------------------------------------------------------------

STEADY = [1 + 0.004 * math.sin(7 * k) for k in range(15)]
UNSTEADY = [1 + 0.25 * math.sin(7 * k) for k in range(15)]


def test_slower_is_what_lies_beyond_the_noise() -> None:
    judge = module("base").judge
    found = judge([1.1 * r for r in STEADY], STEADY)
    assert found.slower
    assert not found.faster
    assert found.change == pytest.approx(1.1, abs=0.004)
    assert found.low <= found.change <= found.high


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        (STEADY, STEADY[::-1]),  # nothing changed
        ([1.1 * r for r in UNSTEADY], STEADY),  # the change itself is too uncertain
        ([1.1 * r for r in STEADY], [1.2 * r for r in STEADY]),  # the same commit twice differs by more
        ([1.1 * r for r in STEADY], [r / 1.2 for r in STEADY]),  # to whichever side
        ([1.005] * 15, [1.0] * 15),  # below the least noise that is believed
        ([1.1 * r for r in STEADY], UNSTEADY),
    ],
)
def test_what_the_noise_explains_is_not_slower(changes: list[float], same: list[float]) -> None:
    found = module("base").judge(changes, same)
    assert not found.slower
    assert not found.faster


def test_faster_is_told_apart() -> None:
    found = module("base").judge([r / 1.1 for r in STEADY], STEADY)
    assert found.faster
    assert not found.slower


# rounds -------------------------------------------------------------------------------------------------------------


class Fake:
    """Answers like a worker, with times from a list."""

    def __init__(self, times: list[float], inputs: str = "same", dies_at: int | None = None) -> None:
        self.times, self.inputs, self.dies_at, self.runs = times, inputs, dies_at, 0

    def ask(self, do: str, case: Any, **more: Any) -> dict[str, Any]:  # noqa: ARG002
        if do == "check":
            return {"found": [1.0], "expected": [1.0 + 1e-6]}
        if self.runs == self.dies_at:
            raise module("rounds").Lost("out of memory")
        self.runs += 1
        seconds = self.times[(self.runs - 1) % len(self.times)]
        return {"cpu_s": seconds, "wall_s": 9 * seconds, "result": [2.0], "inputs": self.inputs}


def measure(contestants: dict[str, Fake], rounds: int, threads: int = 1, budget: float = 100.0) -> Any:
    case = module("cases").short()[0]
    return module("rounds").measure(case, contestants, rounds, threads, budget)


def test_ratios_are_taken_within_a_round() -> None:
    found = measure({"floor": Fake([1.0, 2.0, 4.0]), "ours": Fake([1.5, 3.0, 6.0])}, 3)
    assert module("rounds").paired(found["ours"], found["floor"]) == [1.5, 1.5, 1.5]
    assert found["ours"].check == pytest.approx(1e-6, rel=1e-3)


def test_processor_time_counts_with_one_thread_and_wall_time_with_more() -> None:
    assert measure({"a": Fake([1.0])}, 2, threads=1)["a"].typical == 1.0
    assert measure({"a": Fake([1.0])}, 2, threads=2)["a"].typical == 9.0


def test_a_slow_contestant_runs_once_and_is_paired_with_that_round() -> None:
    found = measure({"floor": Fake([1.0]), "slow": Fake([50.0])}, 4, budget=20.0)
    assert found["slow"].runs == 1
    assert module("rounds").paired(found["slow"], found["floor"]) == [50.0]
    assert found["floor"].runs == 4


def test_a_contestant_that_ends_is_out_with_the_reason() -> None:
    found = measure({"floor": Fake([1.0]), "big": Fake([1.0], dies_at=0)}, 3)
    assert found["big"].reason == "out of memory"
    assert found["big"].runs == 0
    assert found["floor"].runs == 3


def test_contestants_that_saw_other_rows_stop_the_run() -> None:
    with pytest.raises(RuntimeError, match="other rows"):
        measure({"floor": Fake([1.0]), "odd": Fake([1.0], inputs="other")}, 1)


def test_a_result_that_is_not_a_number_never_agrees() -> None:
    difference = module("rounds").difference
    assert difference([1.0, math.nan], [1.0, 1.0]) == math.inf
    assert difference([math.nan, 1.0], [1.0, 1.0]) == math.inf


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_contestant_goes_first_and_last_equally_often(count: int) -> None:
    orders = [module("rounds").order(count, turn) for turn in range(2 * count)]
    assert all(sorted(places) == list(range(count)) for places in orders)
    for place in (0, -1):
        assert sorted(places[place] for places in orders) == sorted([*range(count), *range(count)])


def test_a_worker_that_would_run_another_gpudrift_is_refused(tmp_path: Path) -> None:
    rounds = module("rounds")
    with pytest.raises(rounds.Lost, match="gpudrift"):
        rounds.Contestant("gpudrift", python=sys.executable, threads=1, root=tmp_path)


# results ------------------------------------------------------------------------------------------------------------


def record(**fields: Any) -> Any:
    return module("history").Record(
        **{
            "case": "a",
            "hash": "1",
            "commit": "c" * 40,
            "dirty": False,
            "ratio": 1.25,
            "seconds": 0.5,
            "floor_seconds": 0.4,
            "gflops": 100.0,
            "rounds": 15,
            "clock": "processor",
            "threads": 1,
            "cpu": "one",
            "torch": "2",
            "date": "2026-01-01T00:00:00+00:00",
            **fields,
        }
    )


def test_results_are_appended_and_read_back(tmp_path: Path) -> None:
    history, path = module("history"), tmp_path / "results" / "cpu.jsonl"
    first, second = record(), record(commit=None, dirty=True)
    history.append(path, [first])
    history.append(path, [second])
    assert history.read(path) == [first, second]
    path.write_text(path.read_text() + "{half\n")
    with pytest.raises(ValueError, match="line 3"):
        history.read(path)


def test_results_of_another_hash_or_machine_are_not_compared() -> None:
    kept = [record(), record(commit="d" * 40)]
    others = [record(hash="2"), record(case="gone"), record(cpu="two"), record(threads=2), record(torch="1")]
    assert module("history").comparable([*others, *kept, record(hash="3")], {"a": "1"}) == kept
    assert module("history").comparable(others, {"b": "1"}) == []


def test_the_picture_is_drawn_and_refused_without_results(tmp_path: Path) -> None:
    history = module("history")
    history.plot([record(), record(commit="d" * 40, dirty=True, ratio=2.0), record(case="b")], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="--save"):
        history.plot([], tmp_path / "b.png")


# the command --------------------------------------------------------------------------------------------------------


def test_the_short_form_checks_saves_and_draws(tmp_path: Path) -> None:
    results, picture = tmp_path / "cpu.jsonl", tmp_path / "cpu.png"
    ran = run("--short", "--save", "--results", str(results), "--plot", str(picture))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = module("history").read(results)
    assert {r.case: r.hash for r in found} == module("run").hashes(module("cases").short())
    assert all(r.ratio > 0 and r.rounds == 2 and r.clock == "processor" for r in found)
    assert picture.is_file()


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--save", "--peers"], ["--base", "HEAD", "--peers"]])
def test_unusable_options_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        module("run").main(words)
    assert caught.value.code == 2


def test_an_unknown_case_is_named_with_those_there_are() -> None:
    with pytest.raises(SystemExit, match=r"--only none such.*energy"):
        module("run").main(["--short", "--only", "none such"])


# Appended to the front door of a copy: an earlier commit may lack a function, and either may give another figure.
WITHOUT_BATCHES = "\ndel batch_sums\n"
TWO_PERCENT_OFF = """
import functools
_right = {name}
@functools.wraps(_right)
def {name}(*clouds, **wanted):
    found = _right(*clouds, **wanted)
    return replace(found, total=found.total * 1.02)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose one commit has no batch_sums and its self sums two percent off; in its working tree the cross
    sums are."""
    root = tmp_path_factory.mktemp("repository")
    skipped = shutil.ignore_patterns("__pycache__", "sample", "results")
    for folder in ("gpudrift", "benchmarks"):
        shutil.copytree(ROOT / folder, root / folder, ignore=skipped)
    (root / "gpudrift" / "sample").mkdir()
    shutil.copy(ROOT / "gpudrift" / "sample" / "__init__.py", root / "gpudrift" / "sample")
    door = root / "gpudrift" / "kernels" / "__init__.py"
    text = door.read_text()
    door.write_text(text + WITHOUT_BATCHES + TWO_PERCENT_OFF.format(name="self_sums"))
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "base")
    door.write_text(text + TWO_PERCENT_OFF.format(name="cross_sums"))
    return root


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout


def worktrees(root: Path) -> int:
    return len(git(root, "worktree", "list").splitlines())


def test_a_base_runs_its_own_code_and_leaves_nothing_behind(repository: Path) -> None:
    ran = run("--short", "--base", "HEAD", root=repository)
    lines = {line[:34].strip(): line[34:] for line in ran.stdout.splitlines()}
    assert "not there (base: kernels.batch_sums is not there)" in lines["batch+se d=16"]
    assert "RESULT DIFFERS by 2e-02 from the base's, 2e-02 from the definition" in lines["energy+se d=16"]
    # here the base is the wrong one
    assert "RESULT DIFFERS by 2e-02 from the base's" in lines["self+se+4rbf d=16"]
    assert "2e-02 from the definition" not in lines["self+se+4rbf d=16"]
    assert "DIFFERS" not in lines["score energy n=192 d=16"]
    assert ran.returncode == 1
    assert worktrees(repository) == 1
    assert not Path(ran.stdout.splitlines()[0].rpartition(" in ")[2]).exists()


def test_a_wrong_result_is_seen_without_a_base(repository: Path) -> None:
    ran = run("--short", "--only", "energy+se d", root=repository)
    assert "DOES NOT AGREE" in ran.stdout
    assert ran.returncode == 1


@pytest.mark.parametrize(
    ("judged", "differs", "short", "code"),
    [
        ((1.5, 1.4, 1.6, 0.02), 0.0, [], 1),  # slower
        ((1.5, 1.4, 1.6, 0.02), 0.0, ["--short"], 0),  # tiny cases have no timing worth a verdict
        ((1.0, 0.9, 1.1, 0.02), 0.0, [], 0),
        ((0.5, 0.4, 0.6, 0.02), 0.0, [], 0),  # faster
        ((1.0, 0.9, 1.1, 0.02), 0.5, ["--short"], 1),  # another result
        (None, math.nan, [], 1),  # nothing could be compared
    ],
)
def test_what_fails_a_comparison(
    judged: tuple[float, ...] | None, differs: float, short: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, runner = module("base"), module("run")
    case = module("cases").tracked()[0]
    judgement = None if judged is None else base.Judgement(*judged)
    found = base.Compared(case, 1.0, 1.0, judgement, differs, 0.0, None if judged else "base: not there")
    monkeypatch.setattr(base, "worktree", lambda *_: contextlib.nullcontext((ROOT, "c" * 40)))
    monkeypatch.setattr(base, "compare", lambda *_: [found])
    assert runner.main(["--base", "HEAD", *short]) == code


def test_a_base_that_is_no_commit_is_refused(repository: Path) -> None:
    ran = run("--short", "--base", "nowhere", root=repository)
    assert "--base nowhere: no such commit" in ran.stderr
    assert ran.returncode == 1
    assert worktrees(repository) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_comparison_leaves_no_worktree(repository: Path, number: int, code: int) -> None:
    script = repository / "benchmarks" / "run.py"
    # a parent that ignores ctrl-C, as a shell's background job does, hands that on
    listening = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv = sys.argv[1:]; "
        f"sys.path.insert(0, {str(script.parent)!r}); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    words = ["--short", "--base", "HEAD", "--rounds", "1000000"]
    with subprocess.Popen(
        [sys.executable, "-c", listening, str(script), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        tree = Path(process.stdout.readline().strip().rpartition(" in ")[2])
        assert tree.is_dir()
        process.send_signal(number)
        assert process.wait(timeout=60) == code
    assert not tree.exists()
    assert worktrees(repository) == 1


# peers --------------------------------------------------------------------------------------------------------------


def test_a_peer_that_is_not_installed_is_reported_and_nothing_is_installed(tmp_path: Path) -> None:
    folder = tmp_path / "environment"
    ran = run("--peers", "--short", "--peers-env", str(folder))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = {line.split()[0]: line for line in ran.stdout.splitlines() if line.strip()}
    for name, peer in module("peers").PEERS.items():
        if peer.package is not None:
            assert "not run: not installed" in lines[name]
    assert "E_U" in lines["torch.cdist"]
    assert "not run" not in lines["torch.cdist"]
    assert not folder.exists()


@pytest.mark.parametrize("name", ["torch.cdist", "dcor", "scikit-learn"])
def test_peers_give_the_definition_under_their_convention(name: str) -> None:
    peer = module("peers").PEERS[name]
    case = module("cases").scores(60, 8)[0]
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 8, generator=generator), torch.randn(60, 8, generator=generator) + 0.3
    wanted = module("expected").expected_value(x, y, peer.convention, None)
    assert peer.ready(case, x, y).call() == pytest.approx([wanted], rel=1e-4)


def test_the_definition_gives_the_known_figures() -> None:
    """Those of dcor 0.7 (energy) and of frouros 0.9 (MMD), for these rows."""
    import numpy as np

    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(200, 16)), draw.normal(size=(150, 16)) + 0.3
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    value, sigma = module("expected").expected_value, 5.613401082909
    assert value(x, y, "E_V", None) == pytest.approx(0.407532140809746, rel=1e-9)
    assert value(x, y, "E_U", None) == pytest.approx(0.342913231740305, rel=1e-9)
    assert value(x, y, "MMD2_V", sigma) == pytest.approx(0.040405133176149, rel=1e-9)
    assert value(x, y, "MMD2_U", sigma) == pytest.approx(0.0359058991073049, rel=1e-9)


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_peers_are_pinned_and_run_on_the_same_torch() -> None:
    peers = module("peers")
    found = pins(peers.REQUIREMENTS)
    assert found["torch"] == pins(ROOT / "constraints.txt")["torch"]
    assert {peer.package for peer in peers.PEERS.values()} - {None} <= found.keys()


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """pip, played: packages in the list are refused."""
    refused: list[str] = []

    def play(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
            return subprocess.CompletedProcess(command, 0)
        bad = [word for word in command if word.partition("==")[0] in refused]
        return subprocess.CompletedProcess(command, len(bad), "", f"notice\nERROR: no {bad[0]}\n" if bad else "")

    monkeypatch.setattr(module("peers").subprocess, "run", play)
    return refused


def test_a_package_that_pip_refuses_is_named_with_the_reason(refusing: list[str], tmp_path: Path) -> None:
    peers = module("peers")
    refusing.append("frouros")
    built = peers.build(tmp_path / "environment")
    assert built.reason("frouros") == f"pip: ERROR: no frouros=={pins(peers.REQUIREMENTS)['frouros']}"
    assert built.reason("geomloss") is None
    assert (tmp_path / "environment" / ".gitignore").read_text() == "*\n"
    refusing.clear()
    assert peers.build(tmp_path / "environment") == built  # once: it is not tried again unasked


def test_without_what_all_need_no_peer_runs(refusing: list[str], tmp_path: Path) -> None:
    peers = module("peers")
    refusing.append("numpy")
    built = peers.build(tmp_path / "environment")
    assert all(built.reason(peer.package) for peer in peers.PEERS.values() if peer.package is not None)


def test_an_environment_of_other_pins_does_not_count(
    refusing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers, folder = module("peers"), tmp_path / "environment"
    assert not refusing
    peers.build(folder)
    edited = tmp_path / "peers.txt"
    edited.write_text(peers.REQUIREMENTS.read_text() + "# newer\n")
    monkeypatch.setattr(peers, "REQUIREMENTS", edited)
    assert peers.environment(folder).python is None
