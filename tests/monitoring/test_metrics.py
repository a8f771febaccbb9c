"""Metrics for Prometheus: every number is that of result.json, and nothing in the data can break the file."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs import WEEKS, run, table_of, week
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tools import program

from gpudrift import __version__
from gpudrift.errors import ConfigError
from gpudrift.history import ALL
from gpudrift.monitoring.metrics import (
    CAUSES,
    FAMILIES,
    LABEL_LENGTH,
    MOST_SEGMENTS,
    distinct_labels,
    label,
    samples_of,
    samples_of_points,
    write_textfile,
)
from gpudrift.outcomes.records import DriftSeries, Finding, Level, Outcomes, OutcomeSeries
from gpudrift.records import HistoryPoint
from gpudrift.result import Run
from gpudrift.source import quality

ENDED = datetime(2026, 4, 14, 3, 20, 30, 250_000, tzinfo=UTC)
SEGMENTS = {"source.segment_columns": ["language"], "segments.min_rows": 12, "segments.panel": False}
# the names and labels that rules, dashboards and people rely on
NAMES = {
    "gpudrift_score": {"segment"},
    "gpudrift_score_standard_error": {"segment"},
    "gpudrift_score_usual": {"segment"},
    "gpudrift_score_threshold": {"segment"},
    "gpudrift_score_ratio": {"segment"},
    "gpudrift_p_value": {"segment"},
    "gpudrift_panel_p_value": set(),
    "gpudrift_metric_value": {"metric"},
    "gpudrift_metric_p_value": {"metric"},
    "gpudrift_verdict": {"segment", "verdict"},
    "gpudrift_verdict_code": {"segment"},
    "gpudrift_rows": {"cloud"},
    "gpudrift_segment_rows": {"segment"},
    "gpudrift_bad_rows": {"cause"},
    "gpudrift_cluster_contribution_ratio": {"rank", "kind"},
    "gpudrift_cluster_share_ratio": {"rank", "kind"},
    "gpudrift_cluster_reference_share_ratio": {"rank", "kind"},
    "gpudrift_outcome_value": {"segment", "metric"},
    "gpudrift_outcome_usual": {"segment", "metric"},
    "gpudrift_outcome_limit": {"segment", "metric"},
    "gpudrift_outcome_degraded": {"segment", "metric"},
    "gpudrift_outcome_q_value": {"segment", "metric"},
    "gpudrift_outcome_worse_with_drift": {"segment", "metric"},
    "gpudrift_duration_seconds": {"stage"},
    "gpudrift_last_success_timestamp_seconds": set(),
    "gpudrift_window_start_timestamp_seconds": set(),
    "gpudrift_window_end_timestamp_seconds": set(),
    "gpudrift_sink_success": {"sink"},
    "gpudrift_build_info": {"version"},
}
LEVEL = Level("2026-W15", 0.81, 900.0, 0.86, 0.83, 0.004, 40, True)
Samples = dict[str, dict[frozenset[tuple[str, str]], float]]


@dataclass(frozen=True)
class Made:
    """A whole run, and what it wrote."""

    ran: Run
    result: dict[str, Any]

    def samples(self, outcomes: Outcomes | None = None, deliveries: Mapping[str, bool] | None = None) -> Samples:
        return read(samples_of(self.ran, outcomes, deliveries or {}, ended=ENDED))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """A run of the job without pictures, and the record it was written from."""

    def made(corpus: Path, settings: dict[str, Any]) -> Made:
        caught: list[Run] = []
        with pytest.MonkeyPatch.context() as patch:
            from gpudrift import pipeline

            write = pipeline.write_outputs

            def written(ran: Run, *rest: Any, **more: Any) -> Any:
                caught.append(ran)
                return write(ran, *rest, **more)

            patch.setattr("gpudrift.report.pictures.draw", lambda *_, **__: [])
            patch.setattr(pipeline, "write_outputs", written)
            result = run(corpus, tmp_path_factory.mktemp("made"), settings).result
        return Made(caught[0], result)

    return made


@pytest.fixture(scope="module")
def moved(make: Callable[..., Made], drifted: Path) -> Made:
    return make(drifted, SEGMENTS | {"name": "weekly"})


@pytest.fixture(scope="module")
def too_few(make: Callable[..., Made], quiet: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The last window has too few rows, so that there is neither score nor attribution."""
    rows = table_of(quiet)
    last = week(WEEKS - 1)
    path = tmp_path_factory.mktemp("few") / "rows.parquet"
    pq.write_table(rows.take([*range(last.start), *range(last.start, last.stop, 10), last.stop - 1]), path)
    return make(path, {})


def read(registry: CollectorRegistry) -> Samples:
    """The samples as another program reads them from the text, by name and labels besides ``drift_job``."""
    found: Samples = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            assert sample.timestamp is None
            own = frozenset((k, v) for k, v in sample.labels.items() if k != "drift_job")
            assert own not in found.setdefault(sample.name, {})
            found[sample.name][own] = sample.value
    return found


def by(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get(name, {}).get(frozenset(labels.items()))


def lint(registry: CollectorRegistry) -> None:
    """What promtool has to say of the text: nothing."""
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"],
        input=generate_latest(registry),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def finding(metric: str, segment: str = ALL, **changes: Any) -> Finding:
    made = Finding(
        metric=metric, worse="lower", segment=segment, windows=50, missing=(), lag=1, effect=-0.02, ci=(-0.03, -0.01),
        r=-0.5, p=0.001, q=0.003, lags=(), events=None, level=LEVEL, link="worse", sentence="",
    )  # fmt: skip
    return replace(made, **changes)


def outcomes_of(*findings: Finding) -> Outcomes:
    return Outcomes(findings, {}, {})


def point_of(made: Made, **changes: Any) -> HistoryPoint:
    return replace(made.ran.scored.point(made.ran.verdict), **changes)


def test_names_and_labels_are_those_that_others_rely_on() -> None:
    assert {family.name: set(family.labels) for family in FAMILIES} == NAMES
    assert not [name for name in NAMES if name.endswith("_total")]


def test_every_metric_has_a_help_text_that_is_the_same_in_every_job(moved: Made, too_few: Made) -> None:
    """node_exporter refuses two files that explain one metric differently."""
    assert all(family.text.endswith(".") for family in FAMILIES)
    texts = [generate_latest(samples_of(m.ran, None, {}, ended=ENDED)).decode() for m in (moved, too_few)]
    helps = [{line for line in text.splitlines() if line.startswith("# HELP")} for text in texts]
    assert helps[1] < helps[0]
    assert {line.split()[2] for line in helps[0]} <= NAMES.keys()


def test_the_docs_have_every_metric_as_it_is() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines()
    told = [line for line in lines if line.startswith("| `gpudrift_")]
    labels = [", ".join(f"`{name}`" for name in family.labels) or "-" for family in FAMILIES]
    assert told == [
        f"| `{family.name}` | {own} | {family.text.removesuffix('.')} |"
        for family, own in zip(FAMILIES, labels, strict=True)
    ]


def test_all_are_gauges_of_the_job(moved: Made) -> None:
    registry = samples_of(moved.ran, outcomes_of(finding("success")), {"pushgateway": True}, ended=ENDED)
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert [family.name for family in families] == list(NAMES)
    assert {family.type for family in families} == {"gauge"}
    for family in families:
        assert {frozenset(sample.labels) for sample in family.samples} == {
            frozenset(NAMES[family.name] | {"drift_job"})
        }
        assert {sample.labels["drift_job"] for sample in family.samples} == {"weekly"}


def test_the_whole_s_numbers_are_those_of_the_result(moved: Made) -> None:
    samples, result = moved.samples(), moved.result
    found = result["calibration"]
    assert by(samples, "gpudrift_score", segment=ALL) == result["metrics"]["energy"]["value"] == found["score"]
    assert by(samples, "gpudrift_score_standard_error", segment=ALL) == found["se"]
    assert by(samples, "gpudrift_score_usual", segment=ALL) == found["aa_median"]
    assert by(samples, "gpudrift_score_threshold", segment=ALL) == found["delta"]
    assert by(samples, "gpudrift_score_ratio", segment=ALL) == found["ratio"]
    assert by(samples, "gpudrift_p_value", segment=ALL) == found["p_aa"]
    assert by(samples, "gpudrift_panel_p_value") == result["p_panel"]
    gates = {gate["metric"]: gate for gate in result["gates"]}
    assert len(gates) == 6
    for name, key in (("gpudrift_metric_value", "value"), ("gpudrift_metric_p_value", "p_holm")):
        assert samples[name] == {frozenset({("metric", metric)}): gate[key] for metric, gate in gates.items()}
    assert by(samples, "gpudrift_rows", cloud="current") == result["rows"]["current"]
    assert by(samples, "gpudrift_rows", cloud="reference") == result["rows"]["reference"]
    for edge in ("start", "end"):
        moment = datetime.fromisoformat(result["window"][edge]).timestamp()
        assert by(samples, f"gpudrift_window_{edge}_timestamp_seconds") == moment
    assert by(samples, "gpudrift_last_success_timestamp_seconds") == ENDED.timestamp()
    assert by(samples, "gpudrift_build_info", version=__version__) == 1
    assert samples["gpudrift_bad_rows"] == {frozenset({("cause", cause)}): 0 for cause in CAUSES}
    for stage, seconds in result["run"]["seconds"].items():
        assert stage == "report" or by(samples, "gpudrift_duration_seconds", stage=stage) == seconds


def test_each_segment_s_numbers_are_those_of_the_result(moved: Made) -> None:
    samples, segments = moved.samples(), moved.result["segments"]
    assert len(segments) > 2
    assert "alert" in {one["verdict"] for one in segments}
    for one in segments:
        found, name = one["calibration"] or {}, one["name"]
        energy = one["metrics"].get("energy", {})
        assert by(samples, "gpudrift_score", segment=name) == energy.get("value")
        assert by(samples, "gpudrift_score_standard_error", segment=name) == energy.get("se")
        for suffix, key in (("usual", "aa_median"), ("threshold", "delta"), ("ratio", "ratio")):
            assert by(samples, f"gpudrift_score_{suffix}", segment=name) == found.get(key)
        assert by(samples, "gpudrift_p_value", segment=name) == found.get("p_aa")
        assert by(samples, "gpudrift_segment_rows", segment=name) == one["rows"]
    assert by(samples, "gpudrift_segment_rows", segment=ALL) == moved.result["rows"]["current"]


def test_one_verdict_of_four_is_set_and_its_code(moved: Made, too_few: Made) -> None:
    codes = {"stable": 0, "warning": 1, "alert": 2, "insufficient": 3}
    for made in (moved, too_few):
        samples = made.samples()
        verdicts = {ALL: made.result["verdict"]} | {one["name"]: one["verdict"] for one in made.result["segments"]}
        assert samples["gpudrift_verdict"] == {
            frozenset({("segment", segment), ("verdict", name)}): float(name == verdict)
            for segment, verdict in verdicts.items()
            for name in codes
        }
        assert samples["gpudrift_verdict_code"] == {
            frozenset({("segment", segment)}): codes[verdict] for segment, verdict in verdicts.items()
        }


def test_clusters_that_changed_come_first_and_five_at_most(moved: Made) -> None:
    samples, parts = moved.samples(), moved.result["attribution"]
    clusters = sorted(parts["clusters"], key=lambda c: (c["kind"] == "same", -abs(c["contribution"])))[:5]
    assert len(parts["clusters"]) > 5
    for place, one in enumerate(clusters, start=1):
        labels = {"rank": str(place), "kind": one["kind"]}
        contribution = one["contribution"] / parts["score"]
        assert by(samples, "gpudrift_cluster_contribution_ratio", **labels) == contribution
        assert by(samples, "gpudrift_cluster_share_ratio", **labels) == one["share"]
        assert by(samples, "gpudrift_cluster_reference_share_ratio", **labels) == one["reference_share"]
    assert len(samples["gpudrift_cluster_share_ratio"]) == 5


def test_a_cluster_that_did_not_change_comes_last_however_large(moved: Made) -> None:
    parts = moved.ran.attribution
    assert parts is not None
    first, *others = (replace(one, kind="grown", contribution=0.001 * k) for k, one in enumerate(parts.clusters[:4]))
    clusters = (replace(first, kind="same", contribution=-9.0), *others)
    samples = Made(replace(moved.ran, attribution=replace(parts, clusters=clusters, score=0.1)), {}).samples()
    assert samples["gpudrift_cluster_contribution_ratio"] == {
        frozenset({("rank", str(place)), ("kind", kind)}): part / 0.1
        for place, kind, part in ((1, "grown", 0.003), (2, "grown", 0.002), (3, "grown", 0.001), (4, "same", -9.0))
    }


def test_nothing_is_a_part_of_a_score_that_is_no_positive_number(moved: Made) -> None:
    parts = moved.ran.attribution
    assert parts is not None
    samples = Made(replace(moved.ran, attribution=replace(parts, score=-0.001)), {}).samples()
    assert "gpudrift_cluster_contribution_ratio" not in samples
    assert len(samples["gpudrift_cluster_share_ratio"]) == 5


def test_bad_rows_by_cause(moved: Made) -> None:
    found = moved.ran.scored.quality
    assert found is not None
    bad = replace(found, dropped={"ragged": 3, "zero": 1})
    samples = Made(replace(moved.ran, scored=replace(moved.ran.scored, quality=bad)), {}).samples()
    counts = {"null": 0, "ragged": 3, "non_finite": 0, "zero": 1}
    assert samples["gpudrift_bad_rows"] == {frozenset({("cause", cause)}): n for cause, n in counts.items()}


def test_the_causes_are_those_of_the_source() -> None:
    assert CAUSES == quality.CAUSES


def test_without_enough_data_there_are_a_verdict_and_a_last_success_and_no_score(too_few: Made) -> None:
    assert too_few.result["verdict"] == "insufficient"
    samples = too_few.samples()
    assert by(samples, "gpudrift_verdict", segment=ALL, verdict="insufficient") == 1
    assert by(samples, "gpudrift_last_success_timestamp_seconds") == ENDED.timestamp()
    assert by(samples, "gpudrift_rows", cloud="current") == too_few.result["rows"]["current"]
    gone = ("gpudrift_score", "gpudrift_p", "gpudrift_panel", "gpudrift_metric", "gpudrift_cluster")
    assert not [name for name in samples if name.startswith(gone)]


def test_a_run_may_lack_anything(moved: Made) -> None:
    scored = replace(moved.ran.scored, calibration=None, judgement=None, gates=(), quality=None)
    bare = Made(replace(moved.ran, scored=scored, attribution=None, segments=(), seconds={}), {}).samples()
    # a score that cannot be judged is a score all the same
    assert by(bare, "gpudrift_score", segment=ALL) == moved.result["metrics"]["energy"]["value"]
    assert "gpudrift_score_threshold" not in bare
    assert "gpudrift_bad_rows" not in bare


def test_product_metrics_and_whether_they_got_worse(moved: Made) -> None:
    name = moved.ran.segments[0].name
    findings = (
        finding("success"),
        finding("success", name, link="none", q=0.4, level=replace(LEVEL, degraded=False)),
        finding("escalations", link="insufficient", q=None, level=None),
        finding("clicks", link="better"),
    )
    samples = moved.samples(outcomes_of(*findings))
    whole = {"segment": ALL, "metric": "success"}
    assert by(samples, "gpudrift_outcome_value", **whole) == 0.81
    assert by(samples, "gpudrift_outcome_usual", **whole) == 0.86
    assert by(samples, "gpudrift_outcome_limit", **whole) == 0.83
    assert by(samples, "gpudrift_outcome_q_value", **whole) == 0.003
    degraded, worse = samples["gpudrift_outcome_degraded"], samples["gpudrift_outcome_worse_with_drift"]
    own = {"segment": name, "metric": "success"}
    assert (degraded[frozenset(whole.items())], degraded[frozenset(own.items())]) == (1, 0)
    assert (worse[frozenset(whole.items())], worse[frozenset(own.items())]) == (1, 0)
    assert worse[frozenset({("segment", ALL), ("metric", "clicks")})] == 0
    assert not [labels for family in samples.values() for labels in family if ("metric", "escalations") in labels]


def test_a_product_metric_of_long_ago_is_not_degraded_now(moved: Made) -> None:
    windows = list(moved.ran.reference.windows)[:8]
    drift = DriftSeries(ALL, tuple(windows), *(np.zeros(8) for _ in range(2)), *(np.zeros(8, bool) for _ in range(2)))
    labels = {"segment": ALL, "metric": "success"}
    for place, degraded in ((7, 1), (3, 1), (2, None)):  # the last window, four before it, five
        level = replace(LEVEL, window=windows[place].label)
        samples = moved.samples(Outcomes((finding("success", level=level),), {}, {ALL: drift}))
        assert by(samples, "gpudrift_outcome_degraded", **labels) == degraded
        assert by(samples, "gpudrift_outcome_value", **labels) == 0.81


def test_a_product_metric_without_a_limit_has_a_value(moved: Made) -> None:
    """Too few quiet windows to tell what is usual; the last value there is, none after the drift's windows."""
    windows = tuple(moved.ran.reference.windows)[:8]
    none = np.zeros(6, bool)
    drift = DriftSeries(ALL, windows[:6], np.zeros(6), np.zeros(6), none, none)
    values = np.array([0.1, 0.2, 0.3, 0.4, np.nan, np.nan, 0.7, 0.8])
    series = OutcomeSeries("success", "lower", ALL, windows, values, np.full(8, np.nan))
    told = Outcomes((finding("success", level=None),), {("success", ALL): series}, {ALL: drift})
    samples = moved.samples(told)
    assert by(samples, "gpudrift_outcome_value", segment=ALL, metric="success") == 0.4
    assert "gpudrift_outcome_limit" not in samples
    assert "gpudrift_outcome_degraded" not in samples


def test_how_the_sinks_went(moved: Made) -> None:
    samples = moved.samples(deliveries={"pushgateway": False, "webhook": True})
    assert by(samples, "gpudrift_sink_success", sink="pushgateway") == 0
    assert by(samples, "gpudrift_sink_success", sink="webhook") == 1
    assert "gpudrift_sink_success" not in moved.samples()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_value_that_does_not_exist_has_no_sample(moved: Made, value: float | None) -> None:
    points = {ALL: point_of(moved, score=value, ratio=value, p_aa=0.5)}
    samples = read(samples_of_points("weekly", points, ended=ENDED))
    assert not {"gpudrift_score", "gpudrift_score_ratio"} & samples.keys()
    assert by(samples, "gpudrift_p_value", segment=ALL) == 0.5


def test_what_the_history_knows_of_the_window_says_the_same(moved: Made) -> None:
    known = read(samples_of_points("weekly", moved.ran.history[-1], ended=ENDED))
    assert known.items() <= (moved.samples() | {"gpudrift_rows": known["gpudrift_rows"]}).items()
    assert by(known, "gpudrift_rows", cloud="current") == moved.result["rows"]["current"]
    left = {"gpudrift_bad_rows", "gpudrift_duration_seconds", *(n for n in NAMES if "cluster" in n)}
    assert moved.samples().keys() - known.keys() == left


def test_promtool_finds_nothing_to_say(moved: Made, too_few: Made) -> None:
    told = outcomes_of(finding("success"), finding("clicks", q=None, level=None))
    lint(samples_of(moved.ran, told, {"pushgateway": True, "webhook": False}, ended=ENDED))
    lint(samples_of(too_few.ran, None, {}, ended=ENDED))
    lint(samples_of_points("weekly", moved.ran.history[-1], ended=ENDED))


def test_the_largest_segments_alone_are_told(moved: Made) -> None:
    names = [f"tenant={k:03d}" for k in range(300)]
    rows = {name: (k * 7919) % 1000 for k, name in enumerate(names)}
    points = {ALL: point_of(moved)} | {name: point_of(moved, rows=rows[name]) for name in names}
    others = [finding("success", name) for name in names] + [finding("success", "tenant=elsewhere")]
    samples = read(samples_of_points("weekly", points, outcomes_of(*others), ended=ENDED))
    told = {dict(labels)["segment"] for labels in samples["gpudrift_score"]}
    assert told == {ALL, *sorted(names, key=lambda name: (-rows[name], name))[:MOST_SEGMENTS]}
    assert {dict(labels)["segment"] for labels in samples["gpudrift_outcome_value"]} == told - {ALL}


def test_product_metrics_of_segments_that_are_not_scored_are_bounded_too(moved: Made) -> None:
    others = outcomes_of(*(finding("success", f"tenant={k:03d}") for k in range(300)))
    samples = read(samples_of_points("weekly", {ALL: point_of(moved)}, others, ended=ENDED))
    told = [dict(labels)["segment"] for labels in samples["gpudrift_outcome_value"]]
    assert told == [f"tenant={k:03d}" for k in range(MOST_SEGMENTS)]


HOSTILE = [
    'lang="} 1\ngpudrift_score{segment="x',
    "lang=\\",
    "lang=a\nb",
    "lang=a b",
    "lang=a\rb",
    "lang=\u202egnp.exe",
    "lang=\ud800",
    "lang=\x00\x1b[31m",
    "lang=" + "x" * 300,
    "lang=" + "x" * 300 + "y",
    "lang=日本語 ☃",
    "lang= spaced ",
    "lang=",
    "lang=NaN",
    "lang={{ $labels }}",
]


def test_segments_named_to_break_the_file_are_told_apart_and_harm_nothing(moved: Made) -> None:
    names = [*HOSTILE, label(HOSTILE[2])]  # the last one is, as it stands, what the third is made to
    points = {ALL: point_of(moved)} | {name: point_of(moved, rows=k) for k, name in enumerate(names)}
    registry = samples_of_points("weekly", points, outcomes_of(*(finding(name, name) for name in names)), ended=ENDED)
    samples = read(registry)
    lint(registry)
    told = {rows: dict(labels)["segment"] for labels, rows in samples["gpudrift_segment_rows"].items()}
    shown = [told[float(k)] for k in range(len(names))]
    assert len(set(shown)) == len(names)
    assert all(text.isprintable() and len(text) <= LABEL_LENGTH for text in shown)
    assert shown[-1] == names[-1]
    assert (shown[3], shown[10]) == (names[3], names[10])
    assert len(samples["gpudrift_outcome_value"]) == len(names)


@given(st.text(st.characters(exclude_categories=()), max_size=150))
def test_a_label_is_printable_short_and_the_same_again(text: str) -> None:
    shown = label(text)
    assert shown.isprintable()
    assert 0 < len(shown) <= LABEL_LENGTH
    assert label(shown) == shown
    assert label(text) == shown


@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=120), max_size=8))
def test_labels_of_different_texts_differ_whatever_the_texts_are(texts: list[str]) -> None:
    texts += [label(text) for text in texts] + [label(text, 1) for text in texts]
    shown = distinct_labels(texts)
    assert shown.keys() == set(texts)
    assert len(set(shown.values())) == len(shown)
    assert shown == distinct_labels(reversed(texts))


def test_the_textfile_is_there_for_every_reader(moved: Made, tmp_path: Path) -> None:
    registry, path = samples_of(moved.ran, None, {}, ended=ENDED), tmp_path / "made" / "gpudrift.prom"
    before = os.umask(0o077)
    try:
        write_textfile(registry, path)
    finally:
        os.umask(before)
    assert path.read_bytes() == generate_latest(registry)
    assert path.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in path.parent.iterdir()] == ["gpudrift.prom"]


def test_the_collector_never_reads_half_a_file(moved: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being written has a name that does not end in .prom, and the rights it will have."""
    path, seen = tmp_path / "gpudrift.prom", []
    replace_by = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append((self.suffix, self.parent, oct(self.stat().st_mode & 0o777)))
        return replace_by(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    write_textfile(samples_of(moved.ran, None, {}, ended=ENDED), path)
    assert seen == [(".tmp", tmp_path, "0o644")]


def test_a_textfile_that_cannot_be_written_is_one_error_and_leaves_the_old_one(
    moved: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gpudrift.prom"
    path.write_text("old 1\n", encoding="utf-8")

    def full(self: Path, _: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match="No space left on device") as raised:
        write_textfile(samples_of(moved.ran, None, {}, ended=ENDED), path)
    assert raised.value.field == "prometheus.textfile"
    assert [file.name for file in tmp_path.iterdir()] == ["gpudrift.prom"]
    assert path.read_text(encoding="utf-8") == "old 1\n"


def test_a_read_only_place_is_told_as_such(moved: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing the temporary file, which was never made, fails there too, and says nothing of its own."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(ConfigError, match="Read-only file system") as raised:
        write_textfile(samples_of(moved.ran, None, {}, ended=ENDED), tmp_path / "gpudrift.prom")
    assert raised.value.value == str(tmp_path / "gpudrift.prom")


def test_what_a_killed_run_left_beside_the_textfile_goes(moved: Made, tmp_path: Path) -> None:
    """Of this file alone: the collector's directory belongs to others too."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in ("weekly.prom", "other.prom"):
        (tmp_path / f".{name}.{dead.pid}.tmp").write_text("half", encoding="utf-8")
    write_textfile(samples_of(moved.ran, None, {}, ended=ENDED), tmp_path / "weekly.prom")
    assert {file.name for file in tmp_path.iterdir()} == {"weekly.prom", f".other.prom.{dead.pid}.tmp"}


def test_a_directory_in_the_place_of_the_textfile_is_one_error(moved: Made, tmp_path: Path) -> None:
    (tmp_path / "gpudrift.prom").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_textfile(samples_of(moved.ran, None, {}, ended=ENDED), tmp_path / "gpudrift.prom")
    assert [file.name for file in tmp_path.iterdir()] == ["gpudrift.prom"]


def test_a_link_into_the_collector_s_directory_stays_one(moved: Made, tmp_path: Path) -> None:
    link, target = tmp_path / "out" / "metrics.prom", tmp_path / "collector" / "weekly.prom"
    link.parent.mkdir()
    link.symlink_to(target)
    write_textfile(samples_of(moved.ran, None, {}, ended=ENDED), link)
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8").startswith("# HELP")


def test_links_that_form_a_loop_end_no_run(moved: Made, tmp_path: Path) -> None:
    path = tmp_path / "gpudrift.prom"
    path.symlink_to(tmp_path / "other.prom")
    (tmp_path / "other.prom").symlink_to(path)
    write_textfile(samples_of(moved.ran, None, {}, ended=ENDED), path)
    assert path.read_text(encoding="utf-8").startswith("# HELP")


def test_the_same_run_gives_the_same_bytes(moved: Made) -> None:
    first, second = (generate_latest(samples_of(moved.ran, None, {}, ended=ENDED)) for _ in range(2))
    assert first == second
    assert json.dumps(moved.result["window"]["label"]).encode() not in first  # a label a week would be a series a week
