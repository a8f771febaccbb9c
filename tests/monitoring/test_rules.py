"""Rules for Prometheus, loaded and unit-tested by the real promtool: each alert fires when it should, and only then."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools import program

from gpudrift.errors import ArgumentError
from gpudrift.monitoring.metrics import FAMILIES, VERDICT_CODES
from gpudrift.monitoring.rules import matcher, rules, to_yaml

WEEK = 7 * 86400.0
STALE = {"weekly": 1.5 * WEEK, "night.ly-1": 129600.0}
JOBS = list(STALE)
STEPS = 200  # of a scrape each, for which values stand
OLD = -2 * WEEK  # time() is 0 where a test begins
Series = dict[str, str]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(program("promtool")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``promtool test rules`` of one test about these series, scraped and evaluated ``every`` so often."""

    def judged(
        series: Series,
        text: str | None = None,
        alerts: Sequence[Any] = (),
        expressions: Sequence[Any] = (),
        every: str = "5m",
    ) -> subprocess.CompletedProcess[str]:
        (tmp_path / "rules.yml").write_text(text or to_yaml(rules(JOBS, STALE)), encoding="utf-8")
        test = {
            "interval": every,
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": list(alerts),
            "promql_expr_test": list(expressions),
        }
        content = {"rule_files": ["rules.yml"], "evaluation_interval": every, "tests": [test]}
        (tmp_path / "test.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return promtool("test", "rules", tmp_path / "test.yml")

    return judged


@pytest.fixture
def fires(judge: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., None]:
    """These alerts, and no others, fire so many times at these minutes of the test."""

    def fired(series: Series, *expected: Mapping[str, int], at: Sequence[int] = (100,), **more: Any) -> None:
        expressions = [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": n} for name, n in counts.items()],
            }
            for minute, counts in zip(at, expected, strict=True)
        ]
        ran = judge(series, expressions=expressions, **more)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    return fired


def labels_of(**labels: str) -> str:
    return "{" + ",".join(f"{name}={json.dumps(text, ensure_ascii=False)}" for name, text in labels.items()) + "}"


def job(
    name: str = "weekly",
    *,
    verdict: float | str = 0,
    ended: float | str = 0,
    window_end: float = -3600,
    segments: Mapping[str, float] | None = None,
    outcomes: Mapping[tuple[str, str], float] | None = None,
    sinks: Mapping[str, float] | None = None,
    bad: float = 0,
    ratio: float | None = 1.2,
    **target: str,
) -> Series:
    """What Prometheus has of one job: a textfile read by node_exporter, unless ``target`` says otherwise."""
    target = target or {"instance": "batch-1:9100", "job": "node"}
    made: Series = {}

    def put(series: str, value: float | str, **labels: str) -> None:
        values = value if isinstance(value, str) else f"{value:.15g}+0x{STEPS}"
        made[series + labels_of(drift_job=name, **target, **labels)] = values

    put("gpudrift_last_success_timestamp_seconds", ended)
    put("gpudrift_window_end_timestamp_seconds", window_end)
    put("gpudrift_verdict_code", verdict, segment="all")
    put("gpudrift_score", 0.02, segment="all")
    put("gpudrift_score_threshold", 0.01, segment="all")
    if ratio is not None:
        put("gpudrift_score_ratio", ratio, segment="all")
    put("gpudrift_rows", 1000 - bad, cloud="current")
    put("gpudrift_rows", 99999, cloud="reference")
    put("gpudrift_bad_rows", bad / 2, cause="null")
    put("gpudrift_bad_rows", bad / 2, cause="zero")
    for segment, code in (segments or {}).items():
        put("gpudrift_verdict_code", code, segment=segment)
        put("gpudrift_score_ratio", 3.14159, segment=segment)
    for (segment, metric), degraded in (outcomes or {}).items():
        put("gpudrift_outcome_degraded", degraded, segment=segment, metric=metric)
        put("gpudrift_outcome_value", 0.8125, segment=segment, metric=metric)
        put("gpudrift_outcome_limit", 0.84, segment=segment, metric=metric)
    for sink, took in (sinks or {}).items():
        put("gpudrift_sink_success", took, sink=sink)
    return made


OTHER = job("night.ly-1", sinks={"push": 1, "webhook": 1}, outcomes={("all", "success"): 0})  # all is well with it


def test_the_rules_are_what_prometheus_loads(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    for jobs in (["weekly"], JOBS):
        file.write_text(to_yaml(rules(jobs, STALE)), encoding="utf-8")
        checked = promtool("check", "rules", "--lint-fatal", "--lint=all", file)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert f"SUCCESS: {len(rules(jobs, STALE)['groups'][0]['rules'])} rules found" in checked.stdout
        assert checked.stderr == ""


def test_a_rule_that_is_no_promql_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text(to_yaml(rules(JOBS, STALE)).replace("== 2\n", "== ) 2\n", 1), encoding="utf-8")
    assert promtool("check", "rules", file).returncode != 0


def test_a_rule_that_says_something_else_is_seen(judge: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """The tests below would fail with a broken rule: promtool does."""
    alert = {"eval_time": "100m", "alertname": "GpudriftAlert", "exp_alerts": []}
    text = to_yaml(rules(JOBS, STALE))
    broken = text.replace('newest{segment="all"} == 2\n    for', 'newest{segment="all"} == 0\n    for', 1)
    assert broken != text
    assert judge(OTHER | job(), text, alerts=[alert]).returncode == 0
    ran = judge(OTHER | job(), broken, alerts=[alert])
    assert ran.returncode != 0
    assert "GpudriftAlert" in ran.stderr + ran.stdout


ALONE: list[tuple[str, Series, dict[str, int]]] = [
    ("all is well", job(), {}),
    ("drift", job(verdict=2), {"GpudriftAlert": 1}),
    ("drift without a ratio", job(verdict=2, ratio=None), {"GpudriftAlert": 1}),
    ("drift perhaps", job(verdict=1), {"GpudriftWarning": 1}),
    ("too little data", job(verdict=3), {"GpudriftInsufficientData": 1}),
    ("two segments", job(segments={"lang=en": 2, "lang=de": 2, "lang=fr": 0}), {"GpudriftSegmentAlert": 2}),
    ("all and a segment", job(verdict=2, segments={"lang=en": 2}), {"GpudriftAlert": 1}),
    ("a segment, perhaps", job(segments={"lang=en": 1}), {}),
    ("a segment without data", job(segments={"lang=en": 3}), {}),
    ("no run", job(ended=OLD), {"GpudriftJobStale": 1}),
    ("no run, so no new data", job(ended=OLD, window_end=2 * OLD), {"GpudriftJobStale": 1}),
    ("a run just in time", job(ended=-1.5 * WEEK + 6060), {}),
    ("old data", job(window_end=-3.01 * WEEK), {"GpudriftDataStale": 1}),
    ("data as old as they may be", job(window_end=-2.9 * WEEK), {}),
    ("a worse product", job(outcomes={("all", "success"): 1, ("all", "clicks"): 0}), {"GpudriftOutcomeDegraded": 1}),
    (
        "drift and a worse product",
        job(verdict=2, outcomes={("all", "success"): 1}),
        {"GpudriftAlert": 1, "GpudriftOutcomeDegraded": 1, "GpudriftDriftAndOutcomeDegraded": 1},
    ),
    (
        "drift perhaps, and a worse product",
        job(verdict=1, outcomes={("all", "success"): 1}),
        {"GpudriftWarning": 1, "GpudriftOutcomeDegraded": 1, "GpudriftDriftAndOutcomeDegraded": 1},
    ),
    (
        "a segment that drifts, and its product worse",
        job(segments={"lang=en": 2}, outcomes={("lang=en", "success"): 1}),
        {"GpudriftSegmentAlert": 1, "GpudriftOutcomeDegraded": 1, "GpudriftDriftAndOutcomeDegraded": 1},
    ),
    (
        "drift here and a worse product there",
        job(segments={"lang=en": 2, "lang=de": 0}, outcomes={("lang=de", "success"): 1, ("all", "success"): 1}),
        {"GpudriftSegmentAlert": 1, "GpudriftOutcomeDegraded": 2},
    ),
    (
        "no verdict, and a worse product",
        job(verdict=3, outcomes={("all", "success"): 1}),
        {"GpudriftInsufficientData": 1, "GpudriftOutcomeDegraded": 1},
    ),
    ("a sink", job(sinks={"push": 0, "webhook": 1}), {"GpudriftSinkFailing": 1}),
    ("bad rows", job(bad=6), {"GpudriftBadRows": 1}),
    ("few bad rows", job(bad=5), {}),
]


@pytest.mark.parametrize(("series", "expected"), [case[1:] for case in ALONE], ids=[case[0] for case in ALONE])
def test_what_fires(fires: Callable[..., None], series: Series, expected: dict[str, int]) -> None:
    """Beside another job with which all is well, and which is left alone."""
    fires(OTHER | series, expected)


def test_each_alert_is_seen_firing() -> None:
    assert {name for _, _, expected in ALONE for name in expected} == {rule["alert"] for rule in alerts()}


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules(JOBS, STALE)["groups"][0]["rules"] if "alert" in rule]


def test_a_job_that_never_wrote_is_stale(fires: Callable[..., None]) -> None:
    fires(OTHER, {}, {"GpudriftJobStale": 1}, at=(55, 60))
    fires({}, {"GpudriftJobStale": 2})


def test_a_file_that_vanishes_makes_the_job_stale(fires: Callable[..., None]) -> None:
    """After two hours: one in which the last values stand, one of waiting."""
    gone = {name: values.replace(f"x{STEPS}", "x2") for name, values in job(verdict=2).items()}
    drift, stale = {"GpudriftAlert": 1}, {"GpudriftJobStale": 1}
    fires(gone | OTHER, drift, drift, {}, {}, stale, at=(15, 65, 75, 125, 135))


def test_an_alert_waits_for_a_run_that_is_repeated_at_once(fires: Callable[..., None]) -> None:
    fires(job(verdict=2) | OTHER, {}, {"GpudriftAlert": 1}, at=(14, 15), every="1m")
    repeated = job(verdict=f"2+0x9 0+0x{STEPS}", ended=f"0+0x9 600+0x{STEPS}") | OTHER
    fires(repeated, {}, {}, {}, {}, at=(9, 16, 25, 40), every="1m")


def test_an_alert_goes_with_the_run_that_clears_it(fires: Callable[..., None]) -> None:
    cleared = job(verdict=f"2+0x19 0+0x{STEPS}", ended=f"0+0x19 1200+0x{STEPS}") | OTHER
    fires(cleared, {"GpudriftAlert": 1}, {}, at=(19, 20), every="1m")


def test_an_alert_outlives_a_scrape_that_fails(fires: Callable[..., None]) -> None:
    """A restart of node_exporter, as Prometheus records it: every series ends, and comes back."""
    series = {name: f"{values.partition('+')[0]}+0x4 stale _x3 {values}" for name, values in job(verdict=2).items()}
    minutes = (20, 25, 35, 45, 55)
    fires(series | OTHER, *[{"GpudriftAlert": 1} for _ in minutes], at=minutes)


@pytest.mark.parametrize("target", [{}, {"cluster": "eu", "exported_job": "batch"}])
def test_the_newest_run_speaks_for_a_job_that_has_moved(fires: Callable[..., None], target: dict[str, str]) -> None:
    """The old machine's file stands for ever."""
    here = {"instance": "old:9100", "job": "node"} | target
    there = {"instance": "new:9100", "job": "node"} | target
    worse = {("all", "success"): 1.0}
    bad = job(verdict=2, ended=-86400, bad=9, outcomes=worse, sinks={"push": 0}, **here)
    fires(bad | job(**there) | OTHER, {})
    all_bad = {
        "GpudriftAlert": 1, "GpudriftBadRows": 1, "GpudriftOutcomeDegraded": 1, "GpudriftDriftAndOutcomeDegraded": 1,
        "GpudriftSinkFailing": 1,
    }  # fmt: skip
    fires(bad | job(ended=-2 * 86400, **there) | OTHER, all_bad)


def test_a_job_that_two_targets_tell_of_alerts_once(fires: Callable[..., None]) -> None:
    twice = job(verdict=2, instance="a:9100", job="node") | job(verdict=2, instance="b:9100", job="node")
    fires(twice | OTHER, {"GpudriftAlert": 1})


def test_a_job_that_pushes(fires: Callable[..., None]) -> None:
    """With and without honor_labels."""
    fires(job(verdict=2, job="gpudrift") | OTHER, {"GpudriftAlert": 1})
    pushed = {"job": "pushgateway", "exported_job": "gpudrift", "instance": "push:9091"}
    fires(job(verdict=2, **pushed) | OTHER, {"GpudriftAlert": 1})


def test_jobs_of_other_names_are_left_alone(fires: Callable[..., None]) -> None:
    others = ("weekly2", "my-weekly", "nightxly-1", "WEEKLY", "")
    fires(OTHER | job() | {k: v for name in others for k, v in job(name, verdict=2).items()}, {})


@pytest.mark.parametrize("name", ["a|b", ".*", 'say "hi"', "back\\slash", "(a", "naïve", "a{b}$^"])
def test_a_job_s_name_is_taken_literally(fires: Callable[..., None], name: str) -> None:
    for jobs in ([name], [name, "weekly"]):
        text = to_yaml(rules(jobs, dict.fromkeys(jobs, WEEK)))
        others = job("a", verdict=2) | job("b", verdict=2) | job("anything", verdict=2)
        fires(others | job("weekly") | job(name, verdict=2), {"GpudriftAlert": 1}, text=text)


WINDOW = " for the window that ended 1969-12-31 23:00:00 +0000 UTC"
SUCCESS = {("all", "success"): 1.0}
OUTCOME = (
    "In job weekly the product metric success (rows: all) is worse than all but 1% of windows without drift: 0.8125, "
    "limit 0.84."
)
TOLD: dict[str, tuple[Series, dict[str, str], str, str]] = {
    "GpudriftAlert": (
        job(verdict=2, ratio=56.7),
        {"segment": "all", "severity": "warning"},
        "weekly: the embeddings have drifted",
        f"Job weekly gives the verdict alert{WINDOW}. Two windows in a row lay further from the reference than usual; "
        "the alert ends after two in a row that do not. Its distance is 56.7 times the usual movement.",
    ),
    "GpudriftSegmentAlert": (
        job(segments={'lang="en"': 2}),
        {"segment": 'lang="en"', "severity": "warning"},
        'weekly: lang="en" has drifted',
        f'In job weekly the segment lang="en" has the verdict alert{WINDOW}; all rows together have not. Two windows '
        "in a row lay further from the segment's own reference than usual. Its distance is 3.14 times the usual "
        "movement.",
    ),
    "GpudriftWarning": (
        job(verdict=1, ratio=None),
        {"segment": "all", "severity": "info"},
        "weekly: the embeddings may have drifted",
        f"Job weekly gives the verdict warning{WINDOW}. It lies further from the reference than usual; a second one in "
        "a row that clearly does makes it an alert.",
    ),
    "GpudriftInsufficientData": (
        job(verdict=3),
        {"segment": "all", "severity": "warning"},
        "weekly: too little data for a verdict",
        f"Job weekly ran and has no verdict{WINDOW}. It has too few rows, or the reference is not steady enough to "
        "compare with. Until there is a verdict nobody would see drift.",
    ),
    "GpudriftJobStale": (
        job(ended=OLD),
        {"severity": "warning"},
        "weekly: the job has not run",
        "The last run of job weekly that ended with a verdict was 14d 1h 40m 0s ago. Until it runs nobody would see "
        "drift.",
    ),
    "GpudriftDataStale": (
        job(window_end=-4 * WEEK),
        {"severity": "warning"},
        "weekly: the job runs on old data",
        "Job weekly runs, but its last window ended 28d 1h 40m 0s ago: nothing new arrives where it reads, or run_date "
        "is fixed.",
    ),
    "GpudriftOutcomeDegraded": (
        job(outcomes=SUCCESS),
        {"segment": "all", "metric": "success", "severity": "warning"},
        "weekly: success is worse than usual",
        f"{OUTCOME} There is no drift alert in this by itself.",
    ),
    "GpudriftDriftAndOutcomeDegraded": (
        job(verdict=1, outcomes=SUCCESS, ratio=2.5),
        {"segment": "all", "metric": "success", "severity": "critical"},
        "weekly: drift, and success is worse than usual",
        f"{OUTCOME} The embeddings of the same rows have drifted{WINDOW}. Its distance is 2.5 times the usual "
        "movement. That both happen together does not say that one comes from the other.",
    ),
    "GpudriftSinkFailing": (
        job(sinks={"webhook": 0}),
        {"sink": "webhook", "severity": "warning"},
        "weekly: webhook could not be told",
        "The last run of job weekly could not tell webhook what it found. The verdict is not touched by that, but "
        "whoever waits for the message did not get it.",
    ),
    "GpudriftBadRows": (
        job(bad=8),
        {"severity": "warning"},
        "weekly: rows cannot be used",
        "Job weekly dropped 0.8% of the rows of its last window (limit of this alert: 0.50%). Beyond "
        "quality.max_bad_fraction it refuses to run.",
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_an_alert_says(judge: Callable[..., subprocess.CompletedProcess[str]], name: str) -> None:
    series, labels, summary, description = TOLD[name]
    [rule] = [rule for rule in alerts() if rule["alert"] == name]
    told = {"summary": summary, "description": description, "runbook": rule["annotations"]["runbook"]}
    alert = {"exp_labels": {"drift_job": "weekly"} | labels, "exp_annotations": told}
    ran = judge(OTHER | series, alerts=[{"eval_time": "100m", "alertname": name, "exp_alerts": [alert]}])
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_is_said_of_a_job_that_never_wrote(judge: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    [rule] = [rule for rule in alerts() if rule["alert"] == "GpudriftJobStale"]
    told = {
        "summary": "weekly: the job has not run",
        "description": "There are no metrics of job weekly. Until it runs nobody would see drift.",
        "runbook": rule["annotations"]["runbook"],
    }
    alert = {"exp_labels": {"drift_job": "weekly", "severity": "warning"}, "exp_annotations": told}
    ran = judge(OTHER, alerts=[{"eval_time": "100m", "alertname": "GpudriftJobStale", "exp_alerts": [alert]}])
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_each_alert_says_what_to_do_and_how_bad_it_is() -> None:
    assert TOLD.keys() == {rule["alert"] for rule in alerts()}
    for rule in alerts():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert "cause" not in "".join(rule["annotations"].values()).replace("has the causes with ids", "")


RECORDED = [
    ("drift_job_segment:gpudrift_score_over_threshold:ratio", {"segment": "all"}, 2.0),
    ("drift_job_segment:gpudrift_score_ratio:newest", {"segment": "all"}, 1.2),
    ("drift_job_segment:gpudrift_verdict_code:newest", {"segment": "all"}, 0.0),
    ("drift_job:gpudrift_bad_rows:ratio", {}, 0.004),
    ("drift_job:gpudrift_stale_after_seconds:limit", {}, 1.5 * WEEK),
    ("drift_job:gpudrift_last_success_timestamp_seconds:max", {}, 0.0),
    ("drift_job:gpudrift_window_end_timestamp_seconds:newest", {}, -3600.0),
    ("drift_job_sink:gpudrift_sink_success:newest", {"sink": "push"}, 1.0),
    ("drift_job_segment_metric:gpudrift_outcome_value:newest", {"segment": "all", "metric": "success"}, 0.8125),
    ("drift_job_segment_metric:gpudrift_outcome_limit:newest", {"segment": "all", "metric": "success"}, 0.84),
    ("drift_job_segment_metric:gpudrift_outcome_degraded:newest", {"segment": "all", "metric": "success"}, 1.0),
]  # fmt: skip


def test_what_is_recorded(judge: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    series = job(bad=4, sinks={"push": 1}, outcomes=SUCCESS)
    ran = judge(
        OTHER | series,
        expressions=[
            {
                "expr": f'{name}{{drift_job="weekly"}}',
                "eval_time": "30m",
                "exp_samples": [{"labels": name + labels_of(drift_job="weekly", **labels), "value": value}],
            }
            for name, labels, value in RECORDED
        ],
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    kept = {rule["record"] for rule in rules(JOBS, STALE)["groups"][0]["rules"] if "record" in rule}
    assert kept - {name for name, _, _ in RECORDED} == {
        "instance_drift_job:gpudrift_last_success_timestamp_seconds:newest"
    }


def test_rules_ask_for_metrics_that_there_are() -> None:
    asked = set(re.findall(r"(?<![:\w])gpudrift_\w+(?!\w*:)", to_yaml(rules(JOBS, STALE))))
    assert asked
    assert asked <= {family.name for family in FAMILIES}
    assert list(VERDICT_CODES.values()) == [0, 1, 2, 3]


def test_the_docs_have_every_rule_and_what_to_do() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    told = [tuple(cell.strip() for cell in line.split("|")[1:4]) for line in lines if line.startswith("| [Gpudrift")]
    assert told == [
        (f"[{rule['alert']}](#{rule['alert'].lower()})", rule["labels"]["severity"], rule["for"]) for rule in alerts()
    ]
    assert [line.removeprefix("### ") for line in lines if line.startswith("### ")] == [r["alert"] for r in alerts()]
    recorded = [rule["record"] for rule in rules(["weekly"], STALE)["groups"][0]["rules"] if "record" in rule]
    named = {line.split("`")[1] for line in lines if re.match(r"\| `\w*drift_job\w*:", line)}
    assert named == set(recorded)


def test_the_file_is_the_same_for_the_same_jobs_and_names_them() -> None:
    made = rules(JOBS, STALE)
    text = to_yaml(made)
    assert text == to_yaml(rules(list(JOBS), dict(reversed(STALE.items()))))
    assert yaml.safe_load(text) == made
    assert text.startswith("# Rules for the metrics of gpudrift")
    assert "\n- name: gpudrift\n  rules:\n" in text
    assert "\n  - alert: GpudriftAlert\n    expr: " in text  # what people look for comes first
    assert '"weekly", "night.ly-1"' in text.splitlines()[1]


def test_one_job_is_matched_by_equality_and_several_by_an_anchored_pattern() -> None:
    assert matcher(["week.ly"]) == 'drift_job="week.ly"'
    assert matcher(["week.ly", "b-c"]) == r'drift_job=~"week\\.ly|b\\-c"'


@pytest.mark.parametrize(
    ("jobs", "stale", "bad_rows", "field"),
    [
        ([], {}, 0.1, "jobs"),
        (["a", "a"], {"a": 1.0}, 0.1, "jobs"),
        ([""], {"": 1.0}, 0.1, "jobs"),
        (["a"], {}, 0.1, "stale[a]"),
        (["a"], {"a": 0.0}, 0.1, "stale[a]"),
        (["a"], {"a": float("inf")}, 0.1, "stale[a]"),
        (["a"], {"a": 1.0}, 0.0, "bad_rows"),
        (["a"], {"a": 1.0}, 1.0, "bad_rows"),
    ],
)
def test_what_no_rules_can_be_made_of(jobs: list[str], stale: dict[str, float], bad_rows: float, field: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        rules(jobs, stale, bad_rows=bad_rows)
    assert raised.value.field == field
