"""``python -m gpudrift`` as people and schedulers meet it: exit codes, standard error, nothing left lying about."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import make_corpus

ROOT = Path(__file__).resolve().parents[1]


def gpudrift(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "gpudrift", *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_the_gate_on_the_sample(tmp_path: Path) -> None:
    """The sample's last complete week has drifted; that of August 2021 has not."""
    drifted = gpudrift(tmp_path, "+experiment=ci")
    assert drifted.returncode == 20, drifted.stderr
    assert drifted.stderr.startswith("warning: this run reads the SAMPLE corpus")
    assert "source.uri=/path/to/embeddings" in drifted.stderr
    assert drifted.stdout.startswith("ALERT  2026-W43 lies far from the reference")
    result = json.loads((tmp_path / "out" / "ci" / "result.json").read_text(encoding="utf-8"))
    assert (result["verdict"], result["exit_code"], result["device"]) == ("alert", 20, "cpu")
    quiet = gpudrift(tmp_path, "+experiment=ci", "run_date=2021-08-18")
    assert quiet.returncode == 0, quiet.stderr
    assert quiet.stdout.startswith("STABLE  2021-W33")
    assert "Traceback" not in drifted.stderr + quiet.stderr
    assert "\x1b" not in drifted.stderr + quiet.stderr + drifted.stdout + quiet.stdout  # plain where it is no terminal
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # no outputs/, .hydra or *.log beside it
    assert {path.name for path in (tmp_path / "out" / "ci").iterdir()} == {
        "config.yaml", "drifted_rows.parquet", "history", "index.html", "metrics.prom", "outcomes.parquet",
        "outcomes_windows.parquet", "plots", "reference", "report.html", "reports", "result.json", "scores.parquet",
    }  # fmt: skip

    # the written configuration is one that can be run
    again = gpudrift(tmp_path, "--config-dir", "out/ci", "--config-name", "config", "--cfg", "job")
    assert again.returncode == 0, again.stderr
    assert (
        again.stdout == (tmp_path / "out" / "ci" / "config.yaml").read_text(encoding="utf-8").partition("dir: .}\n")[2]
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["+experiment=nope"], "Could not find 'experiment/nope'"),
        (["typo=3"], "Could not override 'typo'"),
        (["source.uri=data/month=2026-10"], """the shell: 'source.uri="data/month=2026-10"'\n"""),
        (["source.filter=lang==en"], """the shell: 'source.filter=[[lang,"==",en]]'\n"""),
        (["source.segment_columns=[größe, b c]"], """the shell: 'source.segment_columns=["größe","b c"]'\n"""),
        (['source.uri=a(b\'"c"'], "error: this value cannot be parsed\nfield: source.uri\n"),
        (["seed=abc"], "Value 'abc' of type 'str' could not be converted to Integer"),
        (["+typo=3"], "error: there is no such setting\nfield: typo\nreceived: 3\nallowed: alert, "),
        (
            ["windows.period=fortnight"],
            "field: windows.period\nreceived: 'fortnight'\nallowed: week, day, month, or Nd",
        ),
        (["source.uri=missing"], "error: there is no such file or directory\nfield: source.uri\nreceived: 'missing'\n"),
    ],
)
def test_a_command_line_that_cannot_work_ends_with_1(tmp_path: Path, arguments: list[str], said: str) -> None:
    ran = gpudrift(tmp_path, *arguments)
    assert (ran.returncode, said in ran.stderr, "Traceback" in ran.stderr) == (1, True, False), ran.stderr
    assert ran.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} <= {"out"}


def test_a_damaged_file_ends_with_30_and_is_named(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    file = sorted(corpus.rglob("*.parquet"))[4]
    file.write_bytes(file.read_bytes()[:-20])
    ran = gpudrift(tmp_path, "source.uri=corpus")
    assert (ran.returncode, "Traceback" in ran.stderr) == (30, False), ran.stderr
    assert ran.stderr.startswith("error: the file cannot be read")
    assert f"in: {file}" in ran.stderr
    assert "what to do: write this file again" in ran.stderr
    assert not list(tmp_path.rglob("result.json"))


def test_printing_the_configuration_is_no_failure(tmp_path: Path) -> None:
    ran = gpudrift(tmp_path, "+experiment=nightly", "--cfg", "job", "--package", "windows")
    assert ran.returncode == 0, ran.stderr
    assert "period: day" in ran.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "field"),
    [
        ("notify.webhook=https://hooks.example/CANARY", "notify.webhook"),  # the address in place of the form
        ("notify.url_env=https://hooks.example/?t=CANARY&u=(1)", "notify.url_env"),
        ("notify.url=https://hooks.example/CANARY", "notify.url"),
        ("+notify.url=https://hooks.example/CANARY", "notify.url"),
        ("notify.token=CANARY", "notify.token"),
        ("+prometheus.password=CANARY", "prometheus.password"),
        ("+webhook_url=https://hooks.example/CANARY", "webhook_url"),
        ("prometheus.push=http://user:CANARY@host:9091", "prometheus.push"),
        ("prometheus.push=http://user:CAN=CANARY@host:9091", "prometheus.push"),
        ("notify.report_url=https://user:CANARY@host/out", "notify.report_url"),
        ("source.uri=s3://AKIA:a=/CANARY@bucket/x", "source.uri"),
        ("source.uri=s3://AKIA:a/CANARY@bucket/x", "source.uri"),
        ("outcomes.uri=s3://AKIA:a=/CANARY@bucket/x.csv", "outcomes.uri"),
    ],
)
def test_a_secret_in_a_setting_is_refused_and_not_repeated(tmp_path: Path, argument: str, field: str) -> None:
    ran = gpudrift(tmp_path, argument)
    assert ran.returncode == 1, ran.stderr
    assert f"field: {field}\n" in ran.stderr
    assert "CANARY" not in ran.stdout + ran.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"CANARY" in path.read_bytes()]
