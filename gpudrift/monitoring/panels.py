"""The panels of the dashboard: what each asks of Prometheus, and what it says to somebody who was not there."""

from __future__ import annotations

from gpudrift.monitoring.grafana import (
    COLUMNS,
    Json,
    bars,
    by_name,
    by_query,
    fixed,
    lines,
    query,
    stat,
    states,
    steps,
    table,
    words,
)
from gpudrift.monitoring.promql import JOB, METRIC, OUTCOME, SEGMENT, SUCCESS, WHOLE, WINDOW_END, floored, held, latest

STABLE, WARNING, ALERT, MUTED = "#2e8b7d", "#e0a000", "#a8123e", "#6f7a86"  # as in the pictures of a run
SCORE = "#d4500f"
VERDICTS = words({0: ("stable", STABLE), 1: ("warning", WARNING), 2: ("alert", ALERT), 3: ("insufficient", MUTED)})
DEGRADED = words({0: ("as usual", STABLE), 1: ("degraded", ALERT)})
LINKED = words({0: ("no such link found", MUTED), 1: ("worse as drift rises", WARNING)})
TOLD = words({0: ("failed", ALERT), 1: ("told", STABLE)})
CODED: Json = {"color": {"mode": "thresholds"}, "thresholds": steps((None, MUTED))}  # the words bring their colours
TIMES: Json = {"unit": "suffix:x", "decimals": 1}


def now(stale_hours: float) -> list[Json]:
    """How things stand."""
    return [
        stat(
            "Verdict",
            "What the last window is called. Stable: it moved no more than the reference's own windows do. Warning: "
            "more, but for the first time or not clearly. Alert: clearly more, and not for the first time in a row. "
            "Insufficient: too little data to tell.",
            held("gpudrift_verdict_code", WHOLE),
            width=6,
            defaults=CODED | {"mappings": VERDICTS},
            empty="no run",
        ),
        stat(
            "Since the last run",
            "Time since a run last ended with a verdict. Red: the job is overdue, and what stands here is old.",
            f"time() - {latest(SUCCESS)}",
            width=5,
            defaults={"unit": "s", "decimals": 1, "color": {"mode": "thresholds"}, "thresholds": _stale(stale_hours)},
            empty="no run",
        ),
        stat(
            "Data until",
            "End of the last window that was looked at. Nothing later is known yet.",
            f"1000 * {latest(WINDOW_END)}",
            width=5,
            defaults={"unit": "dateTimeAsIso", "color": fixed(MUTED)},
            empty="no run",
        ),
        stat(
            "Times usual",
            "Distance of the last window from the reference, over the median distance of the reference's own windows. "
            "1 is usual; what is too much says the threshold of the score below.",
            held("gpudrift_score_ratio", WHOLE),
            width=4,
            defaults=TIMES | {"color": fixed(MUTED)},
            empty="no score",
        ),
        stat(
            "Outcomes worse than usual",
            "Product metrics, counted over all segments, that are worse now than 99% of windows without drift.",
            f"sum by (drift_job) ({held('gpudrift_outcome_degraded', JOB, 'segment', 'metric')})",
            width=4,
            defaults={"decimals": 0, "color": {"mode": "thresholds"}, "thresholds": steps((None, STABLE), (1, ALERT))},
            empty="none known",
        ),
    ]


def drift(warn_p: float) -> list[Json]:
    """How far from the reference, since when, and how unusual that is."""
    small = {"max": 1, "thresholds": steps((None, ALERT), (warn_p, MUTED))}
    log = {"scaleDistribution": {"type": "log", "log": 10}, "thresholdsStyle": {"mode": "dashed"}}
    return [
        _history(),
        lines(
            "Times the usual movement",
            "The score over the usual movement, for the segments chosen above. A segment far above the others is where "
            "the drift is.",
            [query(held("gpudrift_score_ratio", SEGMENT, "segment"), "{{drift_job}} {{segment}}")],
            defaults=TIMES | {"min": 0},
        ),
        lines(
            "p-value of the score",
            "Chance that a window like the reference's lies this far out, on a log scale: the smaller, the less usual. "
            "Of the score alone and not adjusted: a verdict is made of the adjusted ones, beside this, and that of a "
            "segment of q. Dashed: the level of those. p-values below 1e-12 are drawn there.",
            [query(floored(held("gpudrift_p_value", SEGMENT, "segment")), "{{drift_job}} {{segment}}")],
            defaults=small,
            custom=log,
        ),
        lines(
            "p-values of the metrics that decide",
            "Each metric that the verdict is made of, adjusted for all of them, on a log scale: the distance, the "
            "local structure, the spread, what lies outside the principal components, what a classifier tells apart. "
            "Heavy: the smallest. Dashed: where a window warns.",
            [
                query(floored(held("gpudrift_metric_p_value", METRIC, "metric")), "{{drift_job}} {{metric}}"),
                query(floored(held("gpudrift_panel_p_value", JOB)), "{{drift_job}} smallest"),
            ],
            defaults=small,
            custom=log,
            overrides=[by_query("B", custom__lineWidth=4)],
        ),
        table(
            "Metrics that decide, now",
            "Value of each metric in the last window, in its own unit, and its p-value, adjusted for all of them.",
            {
                "Value": held("gpudrift_metric_value", METRIC, "metric"),
                "p": held("gpudrift_metric_p_value", METRIC, "metric"),
            },
            labels={"drift_job": "Job", "metric": "Metric"},
            size=(12, 9),
            sort=[("p", False)],
        ),
        states(
            "Verdicts",
            "The verdict of every window, for the segments chosen above. A gap: no run, or too few rows of the segment "
            "to be looked at.",
            [query(held("gpudrift_verdict_code", SEGMENT, "segment"), "{{drift_job}} {{segment}}")],
            size=(COLUMNS, 7),
            mappings=VERDICTS,
        ),
    ]


def _history() -> Json:
    """The score with its interval over the band of usual movement, a panel a job: a band needs names of its own."""
    score, error = held("gpudrift_score", WHOLE), held("gpudrift_score_standard_error", WHOLE)
    edge = {"color": fixed(SCORE), "custom__lineWidth": 0, "custom__showPoints": "never"}
    flat = {"custom__lineWidth": 1, "custom__showPoints": "never"}
    return lines(
        "Score of $job",
        "Energy distance of all rows of a window from the reference, with its 95% interval. Green: up to the "
        "threshold, which 99% of windows as usual stay below. Dotted: the usual movement. What lies above the green is "
        "more than usual.",
        [
            query(score, "score"),
            query(f"{score} + 1.96 * {error}", "upper 95%"),
            query(f"{score} - 1.96 * {error}", "lower 95%"),
            query(held("gpudrift_score_threshold", WHOLE), "threshold"),
            query(held("gpudrift_score_usual", WHOLE), "usual movement"),
        ],
        overrides=[
            by_name("score", color=fixed(SCORE)),
            by_name("upper 95%", **edge, custom__fillOpacity=20, custom__fillBelowTo="lower 95%"),
            by_name("lower 95%", **edge),
            by_name("threshold", **flat, color=fixed(STABLE), custom__fillOpacity=12),
            by_name("usual movement", **flat, color=fixed(MUTED), custom__lineStyle={"fill": "dash", "dash": [2, 4]}),
        ],
        size=(COLUMNS, 9),
        repeat="job",
    )


def who() -> list[Json]:
    """Which rows moved: clusters and segments."""
    labels = ("rank", "kind")
    return [
        bars(
            "Clusters that make up the score",
            "Parts of the last window's score, of the clusters that changed most: new, grown, shrunk or gone. The "
            "report of the run names rows of each.",
            query(
                held("gpudrift_cluster_contribution_ratio", JOB, *labels), "{{drift_job}} {{rank}} {{kind}}", now=True
            ),
            size=(8, 9),
            defaults={"unit": "percentunit", "decimals": 0, "min": 0, "color": fixed(SCORE)},
        ),
        table(
            "Clusters, then and now",
            "The same clusters: share of the rows of the last window and of the reference.",
            {
                "Of the score": held("gpudrift_cluster_contribution_ratio", JOB, *labels),
                "Of the window": held("gpudrift_cluster_share_ratio", JOB, *labels),
                "Of the reference": held("gpudrift_cluster_reference_share_ratio", JOB, *labels),
            },
            labels={"drift_job": "Job", "rank": "Rank", "kind": "Change"},
            size=(8, 9),
            sort=[("Job", False), ("Rank", False)],
            overrides=[
                by_name(name, unit="percentunit", decimals=1)
                for name in ("Of the score", "Of the window", "Of the reference")
            ],
        ),
        table(
            "Segments, worst first",
            "Each segment by itself, against its own rows of the reference. p: not adjusted for their number; the "
            "verdict is.",
            {
                "Times usual": held("gpudrift_score_ratio", SEGMENT, "segment"),
                "p": held("gpudrift_p_value", SEGMENT, "segment"),
                "Verdict": held("gpudrift_verdict_code", SEGMENT, "segment"),
                "Rows": held("gpudrift_segment_rows", SEGMENT, "segment"),
            },
            labels={"drift_job": "Job", "segment": "Segment"},
            size=(8, 9),
            sort=[("Times usual", True)],
            overrides=[
                by_name("Times usual", **TIMES),
                by_name("Verdict", mappings=VERDICTS, custom__cellOptions={"type": "color-text"}),
                by_name("Rows", unit="none", decimals=0),
            ],
        ),
    ]


def outcomes() -> list[Json]:
    """Product metrics beside the drift."""
    labels = ("segment", "metric")
    names = "{{drift_job}} {{segment}}"
    return [
        table(
            "Outcomes now",
            "Product metrics of the last window that has them, for the segments chosen above. Usual: the mean of "
            "windows without drift. Limit: what 99% of those stay within, on the worse side. Linked: whether the "
            "metric has been worse in windows of more drift, or soon after; q is the false discovery rate of that "
            "link. Neither says what made it so.",
            {
                "Value": held("gpudrift_outcome_value", OUTCOME, *labels),
                "Usual": held("gpudrift_outcome_usual", OUTCOME, *labels),
                "Limit": held("gpudrift_outcome_limit", OUTCOME, *labels),
                "Now": held("gpudrift_outcome_degraded", OUTCOME, *labels),
                "Linked": held("gpudrift_outcome_worse_with_drift", OUTCOME, *labels),
                "q": held("gpudrift_outcome_q_value", OUTCOME, *labels),
            },
            labels={"drift_job": "Job", "segment": "Segment", "metric": "Outcome"},
            size=(14, 8),
            sort=[("Now", True), ("q", False)],
            overrides=[
                by_name("Now", mappings=DEGRADED, custom__cellOptions={"type": "color-text"}),
                by_name("Linked", mappings=LINKED, custom__cellOptions={"type": "color-text"}),
            ],
        ),
        states(
            "Outcomes degraded",
            "When a product metric was beyond its limit, for the segments chosen above.",
            [query(held("gpudrift_outcome_degraded", OUTCOME, *labels), f"{names} {{{{metric}}}}")],
            size=(10, 8),
            mappings=DEGRADED,
        ),
        lines(
            "$outcome beside the drift",
            "Left: the product metric, its usual value (dotted) and the limit that 99% of windows without drift stay "
            "within on the worse side (dashed). Right, shaded: the drift, in times the usual movement. That both move "
            "together is no proof that one moves the other.",
            [
                query(held("gpudrift_outcome_value", OUTCOME, *labels), names),
                query(held("gpudrift_outcome_usual", OUTCOME, *labels), f"{names} usual"),
                query(held("gpudrift_outcome_limit", OUTCOME, *labels), f"{names} limit"),
                query(held("gpudrift_score_ratio", SEGMENT, "segment"), f"{names} drift"),
            ],
            overrides=[
                by_query("B", color=fixed(MUTED), custom__lineStyle={"fill": "dash", "dash": [2, 4]}),
                by_query("C", color=fixed(ALERT), custom__lineStyle={"fill": "dash", "dash": [10, 6]}),
                by_query(
                    "D",
                    **TIMES,
                    min=0,
                    color=fixed(SCORE),
                    custom__axisPlacement="right",
                    custom__axisLabel="times the usual movement",
                    custom__lineWidth=1,
                    custom__fillOpacity=15,
                ),
            ],
            size=(COLUMNS, 9),
            repeat="outcome",
        ),
    ]


def job(stale_hours: float) -> list[Json]:
    """Whether the job itself is well."""
    piled = {"fillOpacity": 40, "lineWidth": 1, "stacking": {"mode": "normal", "group": "A"}}
    return [
        lines(
            "Rows",
            "Rows scored, of each window and of the reference. A sudden change is often a change of the data's way in.",
            [query(held("gpudrift_rows", JOB, "cloud"), "{{drift_job}} {{cloud}}")],
            defaults={"decimals": 0, "min": 0},
            size=(8, 8),
        ),
        lines(
            "Bad rows by cause",
            "Rows of each window that could not be used: null, of another length, not finite, all zero.",
            [query(held("gpudrift_bad_rows", JOB, "cause"), "{{drift_job}} {{cause}}")],
            defaults={"decimals": 0, "min": 0},
            custom=piled,
            size=(8, 8),
        ),
        lines(
            "Duration by stage",
            "How long the last run took, and with what.",
            [query(held("gpudrift_duration_seconds", JOB, "stage"), "{{drift_job}} {{stage}}")],
            defaults={"unit": "s", "min": 0},
            custom=piled,
            size=(8, 8),
        ),
        lines(
            "Age of the last run",
            "Rises until a run ends with a verdict. Dashed: where the job counts as stale.",
            [query(f"time() - {held('gpudrift_last_success_timestamp_seconds', JOB)}", "{{drift_job}}")],
            defaults={"unit": "s", "min": 0, "thresholds": _stale(stale_hours)},
            custom={"lineInterpolation": "linear", "thresholdsStyle": {"mode": "dashed"}, "showPoints": "never"},
            size=(12, 8),
        ),
        states(
            "Told",
            "Whether the last run could tell those who are to know: the Pushgateway, the webhook. One that fails never "
            "changes the verdict.",
            [query(held("gpudrift_sink_success", JOB, "sink"), "{{drift_job}} {{sink}}")],
            size=(12, 8),
            mappings=TOLD,
        ),
    ]


def _stale(hours: float) -> Json:
    return steps((None, STABLE), (3600 * hours, ALERT))
