"""The webhook at the end of a whole run: told once, the address in nothing the run leaves, and no verdict changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from jobs import Ran, run
from webhooks import CANARY, answer, serving

pytestmark = pytest.mark.usefixtures("no_pictures")
ENV = "DRIFT_WEBHOOK"
SETTINGS: dict[str, Any] = {
    "notify.webhook": "json", "notify.url_env": ENV, "notify.attempts": 1,
    "alert.fail_on": "alert", "notify.report_url": "https://reports.example",
}  # fmt: skip


@pytest.fixture
def output(pinned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pinned, tmp_path / "out"))


def sink(ran: Ran) -> dict[str, Any]:
    (found,) = [one for one in ran.result["run"]["sinks"] if one["sink"] == "webhook"]
    return dict(found)


def leaked(output: Path, *rans: Ran) -> list[str]:
    """Where the address is told: files of the run, and what it printed."""
    said = {f"output {k}": text.encode() for k, ran in enumerate(rans) for text in (ran.out, ran.err)}
    files = {str(path): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert any(name.endswith(".notified.json") or name.endswith("result.json") for name in files)
    return [name for name, content in (said | files).items() if CANARY.encode() in content]


def test_an_alert_is_told_once(drifted: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(answer(200)) as hook:
        monkeypatch.setenv(ENV, hook.address())
        first = run(drifted, output, SETTINGS)
        again = run(drifted, output, SETTINGS)
        older = run(drifted, output, SETTINGS | {"run_date": "2026-03-24"})
    assert (first.code, first.result["verdict"]) == (20, "alert")
    assert sink(first) == {"sink": "webhook", "ok": True, "sent": True, "reason": "delivered: new", "attempts": 1}
    (request,) = hook.requests
    sent = request.json
    assert sent["window"]["label"] == first.result["window"]["label"] == "2026-W15"
    assert sent["reference"] == first.result["reference"]["id"]
    assert sent["p"] == first.result["p_panel"]
    assert sent["score"] == first.result["calibration"]["score"]
    assert sent["clusters"][0]["ids"]
    assert sent["report_url"] == "https://reports.example/reports/2026-W15.html"
    assert sink(again)["reason"] == "nothing sent: told already"
    assert sink(older)["reason"] == "nothing sent: a later window was told already"
    assert first.lasting == again.lasting
    assert leaked(output, first, again, older) == []


@pytest.mark.parametrize("form", ["json", "slack"])
def test_a_failing_webhook_changes_nothing_but_is_said(
    form: str, drifted: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run(drifted, Path(shutil.copytree(output, tmp_path / "alone")), SETTINGS | {"notify.webhook": "none"})
    with serving(answer(404, CANARY)) as hook:
        monkeypatch.setenv(ENV, hook.address())
        ran = run(drifted, output, SETTINGS | {"notify.webhook": form})
    assert sink(ran)["ok"] is sink(ran)["sent"] is False
    assert "the server answers 404 Not Found" in ran.err
    assert (ran.code, ran.result["verdict"]) == (alone.code, alone.result["verdict"]) == (20, "alert")
    assert [one["sink"] for one in alone.result["run"]["sinks"]] == ["textfile"]
    assert leaked(output, ran) == []
    assert not (output / "history" / "job" / ".notified.json").exists()


def test_without_an_address_the_run_says_which_variable_is_missing(
    quiet: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENV, raising=False)
    ran = run(quiet, output, SETTINGS)
    assert ran.code == 0
    assert sink(ran)["reason"] == f"the environment variable {ENV} is not set: it holds the address"
    assert ENV in ran.err
