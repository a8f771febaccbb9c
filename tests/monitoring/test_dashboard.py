"""The dashboard against a real Prometheus: every query of every panel gives what it promises."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from grafana_variables import ALL, Chosen, Json, interpolated, options, targets
from histories import backfilled, last_run, outcomes_of, textfile
from live_prometheus import Prometheus, polled, scraped, serving

from gpudrift.monitoring.dashboard import dashboard
from gpudrift.monitoring.job import write_monitoring
from gpudrift.monitoring.metrics import FAMILIES, VERDICT_CODES
from gpudrift.monitoring.openmetrics import write_openmetrics
from gpudrift.monitoring.panels import VERDICTS
from gpudrift.report.style import VERDICT_COLORS

DAY = 86400.0
ODD = "team.a-search"  # the job's name where a name could be taken for a pattern
JOBS = ["weekly", ODD]
# what only a textfile tells
RUN_ONLY = ("cluster_", "bad_rows", "duration_seconds", "sink_success")
MOVED, OLD, NEW = "moved", datetime(2026, 4, 20, tzinfo=UTC), datetime(2026, 4, 21, tzinfo=UTC)


@dataclass(frozen=True)
class World:
    """A server with the history of ``JOBS`` until ``end``, and their textfiles scraped from ``scraped`` for a few
    minutes; the same dashboard as written by ``job=dashboard``."""

    server: Prometheus
    board: Json
    start: float
    end: float
    scraped: float
    segments: set[str]

    def offered(self, chosen: Chosen | None = None) -> dict[str, list[str]]:
        return options(self.server, self.board, self.start, self.scraped, chosen)

    def ask(self, expr: str, chosen: Chosen, board: Json | None = None) -> str:
        return interpolated(expr, board or self.board, chosen, self.offered(chosen), self.scraped - self.start)


@pytest.fixture(scope="module")
def world(drifted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("world")
    windows = backfilled(drifted, directory / "out")
    ran = last_run(drifted, directory / "out")
    outcomes = outcomes_of(windows)
    end = windows[-1]["all"].window.end
    seen = end + timedelta(hours=6)
    texts = []
    for name in JOBS:
        write_openmetrics(name, windows, directory / f"{name}.history", outcomes)
        told = textfile(ran, outcomes, seen - timedelta(minutes=20))
        moments = [(seen - timedelta(minutes=k)).timestamp() for k in (2, 1, 0)]
        text = scraped(told, moments, drift_job=name, instance="host:9100", job="node")
        (directory / f"{name}.scraped").write_text(text, encoding="utf-8")
        texts += [directory / f"{name}.history", directory / f"{name}.scraped"]
    (directory / "moved").write_text(_moved(), encoding="utf-8")
    write_monitoring(directory, JOBS, period="week")
    board = json.loads((directory / "monitoring" / "dashboard.json").read_text(encoding="utf-8"))
    with serving(directory, [*texts, directory / "moved"], [directory / "monitoring" / "rules.yml"]) as server:
        yield World(
            server=server,
            board=board,
            start=windows[0]["all"].window.end.timestamp(),
            end=end.timestamp(),
            scraped=seen.timestamp(),
            segments=set(windows[-1]),
        )


def _moved() -> str:
    """A job that moved to another machine, while the textfile of the old one stands for ever. Its second run there, ten
    minutes after the first, has no score, and other clusters."""
    of, old, new = f'drift_job="{MOVED}"', 'instance="old:9100"', 'instance="new:9100"'
    moments = [int(NEW.timestamp()) + 60 * k for k in range(30)]
    first, then = moments[:10], moments[10:]
    samples = {
        "gpudrift_last_success_timestamp_seconds": [
            (old, OLD.timestamp(), moments),
            (new, NEW.timestamp(), first),
            (new, NEW.timestamp() + 600, then),
        ],
        "gpudrift_verdict_code": [
            (f'segment="all",{old}', 2, moments),
            (f'segment="all",{new}', 0, first),
            (f'segment="all",{new}', 3, then),
        ],
        "gpudrift_score_ratio": [(f'segment="all",{old}', 50, moments), (f'segment="all",{new}', 1, first)],
        "gpudrift_cluster_contribution_ratio": [
            (f'rank="1",kind="new",{new}', 0.5, first),
            (f'rank="1",kind="grown",{new}', 0.25, then),
        ],
    }
    lines = []
    for name, series in samples.items():
        lines.append(f"# TYPE {name} gauge")
        lines += [f"{name}{{{of},{labels}}} {value} {moment}" for labels, value, when in series for moment in when]
    return "\n".join((*lines, "# EOF\n"))


def problems(world: World, board: Json, chosen: Chosen, moment: float, *, history: bool) -> list[str]:
    """Titles of panels with a query that gives no series, or lacks a job or a segment that is chosen. history: those
    alone that a history can answer."""
    offered = options(world.server, world.board, world.start, world.scraped, chosen)
    jobs = _meant(chosen.get("job", [ALL]), offered["job"])
    segments = _meant(chosen.get("segment", ["all"]), sorted(world.segments))
    found = []
    for panel, target in targets(board):
        expr = target["expr"]
        if history and any(f"gpudrift_{name}" in expr for name in RUN_ONLY):
            continue
        asked = interpolated(expr, board, chosen, offered, world.scraped - world.start)
        got = world.server.now(asked, moment)
        told = {labels["drift_job"] for labels, _ in got}
        right = told == jobs and len({tuple(sorted(labels.items())) for labels, _ in got}) == len(got)
        if 'segment=~"$segment"' in expr and "sum by (drift_job)" not in expr:
            right = right and {labels["segment"] for labels, _ in got} == segments
        if not right:
            found.append(f"{panel['title']} {target['refId']}")
    return found


def _meant(chosen: list[str], offered: list[str]) -> set[str]:
    return set(offered) if chosen == [ALL] else set(chosen)


CHOICES: list[Chosen] = [
    {},
    {"job": ["weekly"], "segment": [ALL]},
    {"job": [ODD], "segment": ["all", "language=(others)"], "metric": ["energy"]},
    {"job": [*JOBS], "segment": ["language=en"], "outcome": ["success_rate"], "metric": ["energy", "mmd2_b1"]},
]


@pytest.mark.parametrize("chosen", CHOICES, ids=["first", "a job", "an odd job", "both jobs"])
def test_every_query_gives_every_job_and_segment_from_the_history_alone(world: World, chosen: Chosen) -> None:
    assert problems(world, world.board, chosen, world.end, history=True) == []
    assert problems(world, world.board, chosen, world.end + 3 * 3600, history=True) == []


@pytest.mark.parametrize("chosen", CHOICES, ids=["first", "a job", "an odd job", "both jobs"])
def test_every_query_gives_every_job_and_segment_from_a_textfile(world: World, chosen: Chosen) -> None:
    assert problems(world, world.board, chosen, world.scraped, history=False) == []


@pytest.mark.parametrize("family", ["score_ratio", "verdict_code", "bad_rows", "outcome_limit", "cluster_share_ratio"])
def test_a_name_that_does_not_exist_is_seen(world: World, family: str) -> None:
    """The check itself: a dashboard with a name that is none is told by its panels, and by no others."""
    broken = copy.deepcopy(world.board)
    expected = []
    for panel, target in targets(broken):
        if f"gpudrift_{family}{{" in target["expr"]:
            target["expr"] = target["expr"].replace(f"gpudrift_{family}{{", f"gpudrift_{family}s{{")
            expected.append(f"{panel['title']} {target['refId']}")
    assert expected
    assert problems(world, broken, {}, world.scraped, history=False) == expected


def test_a_weekly_history_draws_without_gaps(world: World) -> None:
    """Lines and states, a point a day: a window's value from its end until that of the next."""
    chosen: Chosen = {"job": ["weekly"]}
    checked = 0
    for panel, target in targets(world.board):
        ratio = "gpudrift_outcome" not in target["expr"]
        if not target["range"] or any(f"gpudrift_{name}" in target["expr"] for name in RUN_ONLY):
            continue
        for labels, values in world.server.over(world.ask(target["expr"], chosen), world.start, world.end, DAY):
            drawn = sorted(values)
            assert drawn[-1] == world.end
            if ratio:
                assert len(drawn) == 13 * 7 + 1, (panel["title"], labels)
        checked += 1
    assert checked >= 15


def test_drawn_values_are_those_of_the_history(world: World) -> None:
    panel = next(one for one in world.board["panels"] if one["title"] == "Verdicts")
    asked = world.ask(panel["targets"][0]["expr"], {"job": [ODD]})
    ((labels, values),) = world.server.over(asked, world.start, world.end, 7 * DAY)
    assert labels == {"drift_job": ODD, "segment": "all"}
    assert list(values.values()) == [0.0] * 12 + [1.0, 2.0]


def test_a_window_without_a_value_leaves_a_gap(world: World) -> None:
    """The outcome has none in the second window: nothing of the first is drawn in its place."""
    panel = next(one for one in world.board["panels"] if one["title"] == "$outcome beside the drift")
    asked = world.ask(panel["targets"][0]["expr"], {"job": ["weekly"], "outcome": ["success_rate"]})
    ((_, values),) = world.server.over(asked, world.start, world.end, DAY)
    days = {round((moment - world.start) / DAY) for moment in values}
    assert days == set(range(92)) - set(range(7, 14))


def test_the_variables_offer_what_there_is(world: World) -> None:
    offered = world.offered()
    assert offered["job"] == sorted(JOBS)
    assert set(offered["segment"]) == world.segments
    assert {"energy", "classifier_auc"} <= set(offered["metric"])
    assert offered["outcome"] == ["no_answer_rate", "success_rate"]
    assert offered["hold"] == ["1d", "7d", "31d"]


def test_of_all_jobs_only_those_named_are_offered(world: World) -> None:
    end = NEW.timestamp() + 1800
    assert options(world.server, dashboard(), world.start, end)["job"] == sorted([*JOBS, MOVED])
    assert options(world.server, world.board, world.start, end)["job"] == sorted(JOBS)
    assert options(world.server, dashboard(["eekly", "team.a.search"]), world.start, end)["job"] == []


def _moved_value(world: World, title: str, minutes: int) -> list[tuple[dict[str, str], float]]:
    board = dashboard()
    panel = next(one for one in board["panels"] if one["title"] == title)
    moment = NEW.timestamp() + 60 * minutes
    offered = options(world.server, board, world.start, moment)
    asked = interpolated(panel["targets"][0]["expr"], board, {"job": [MOVED]}, offered, 30 * DAY)
    return world.server.now(asked, moment)


def test_of_a_job_that_moved_the_newest_run_counts(world: World) -> None:
    whole = {"drift_job": MOVED}
    assert _moved_value(world, "Verdict", 5) == [(whole, 0.0)]
    assert _moved_value(world, "Verdict", 20) == [(whole, 3.0)]
    assert _moved_value(world, "Since the last run", 20) == [(whole, 600.0)]


def test_what_the_last_run_does_not_have_is_not_drawn_from_the_one_before(world: World) -> None:
    assert _moved_value(world, "Times usual", 5) == [({"drift_job": MOVED}, 1.0)]
    assert _moved_value(world, "Times usual", 25) == []  # five minutes after its last sample
    clusters = _moved_value(world, "Clusters that make up the score", 25)
    assert clusters == [({"drift_job": MOVED, "rank": "1", "kind": "grown"}, 0.25)]


def test_a_machine_that_is_away_leaves_what_was_known(world: World) -> None:
    assert _moved_value(world, "Verdict", 24 * 60) == [({"drift_job": MOVED}, 3.0)]
    assert _moved_value(world, "Verdict", 8 * 24 * 60) == []
    assert _moved_value(world, "Since the last run", 8 * 24 * 60) == [({"drift_job": MOVED}, 8 * DAY - 600)]


def test_the_rules_load_and_run_without_an_error(world: World) -> None:
    def groups() -> list[Json]:
        found: list[Json] = world.server.get("/api/v1/rules")["groups"]
        return found

    polled(lambda: all(rule["health"] != "unknown" for group in groups() for rule in group["rules"]))
    rules = [rule for group in groups() for rule in group["rules"]]
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule.get("lastError")] == []
    assert {rule["health"] for rule in rules} == {"ok"}
    assert sum(rule["type"] == "alerting" for rule in rules) >= 5


@pytest.fixture(scope="module")
def board() -> Json:
    return dashboard(JOBS)


def test_panels_have_ids_of_their_own_and_do_not_overlap(board: Json) -> None:
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert set(at) == {"x", "y", "w", "h"}
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        taken |= cells
        if "repeat" in panel:
            assert at["w"] == 24  # Grafana gives a single copy the whole line


def test_every_query_is_told_apart_and_goes_to_the_chosen_source(board: Json) -> None:
    for panel in board["panels"]:
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert letters == sorted(set(letters))
        assert panel["type"] == "row" or letters
    for panel, target in targets(board):
        assert panel["datasource"] == target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert target["instant"] != target["range"]
        assert (target["format"] == "table") == (panel["type"] == "table")
        assert target["range"] == (panel["type"] in ("timeseries", "state-timeline"))


def test_every_panel_says_what_it_shows(board: Json) -> None:
    for panel in board["panels"]:
        if panel["type"] != "row":
            assert len(panel["description"]) > 40, panel["title"]
            assert panel["description"].endswith(".")
    titles = [panel["title"] for panel in board["panels"]]
    assert len(set(titles)) == len(titles)


def test_no_panel_calls_an_unadjusted_p_what_a_window_warns_by(board: Json) -> None:
    """A window may be stable with a p of its score below calibrate.warn_p: the adjusted ones decide."""
    told = {panel["title"]: panel["description"] for panel in board["panels"] if "gpudrift_p_value" in str(panel)}
    assert told
    assert all("not adjusted" in text and "a window warns" not in text for text in told.values())


def test_overrides_and_columns_name_what_there_is(board: Json) -> None:
    for panel in board["panels"]:
        if panel["type"] == "row":
            continue
        letters = {target["refId"] for target in panel["targets"]}
        names = {target["legendFormat"] for target in panel["targets"]}
        for change in panel["transformations"]:
            if change["id"] == "organize":
                names = set(change["options"]["renameByName"].values())
                columns = {name.removeprefix("Value #") for name in change["options"]["renameByName"] if "#" in name}
                assert columns == letters
                assert {one["displayName"] for one in panel["options"]["sortBy"]} <= names
        for override in panel["fieldConfig"]["overrides"]:
            matcher = override["matcher"]
            assert matcher["options"] in (letters if matcher["id"] == "byFrameRefID" else names)
            for one in override["properties"]:
                if one["id"] == "custom.fillBelowTo":
                    assert one["value"] in names


def test_only_metrics_that_runs_tell_are_asked_for_and_none_is_forgotten(board: Json) -> None:
    asked = {name for _, target in targets(board) for name in re.findall(r"gpudrift_\w+", target["expr"])}
    told = {family.name for family in FAMILIES}
    assert asked <= told
    # told as a code; the start of a window is its end; a version is no matter of drift
    assert told - asked == {"gpudrift_verdict", "gpudrift_window_start_timestamp_seconds", "gpudrift_build_info"}


def test_verdicts_have_their_words_and_colours() -> None:
    shown = VERDICTS[0]["options"]
    for verdict, code in VERDICT_CODES.items():
        assert (shown[str(code)]["text"], shown[str(code)]["color"]) == (verdict, VERDICT_COLORS[verdict])
    assert len(shown) == len(VERDICT_CODES)


def test_the_uid_follows_from_the_title() -> None:
    first, second = dashboard(title="A"), dashboard(title="B")
    assert first["uid"] == dashboard(["x"], title="A")["uid"] != second["uid"]
    assert len(first["uid"]) <= 40
    assert dashboard(JOBS) == dashboard(JOBS)


def test_the_length_of_a_window_is_what_values_are_held_for() -> None:
    for days, offered in ((1, "1d,7d,31d"), (31, "1d,7d,31d"), (10, "1d,7d,10d,31d")):
        made = dashboard(window_days=days)
        hold = made["templating"]["list"][-1]
        assert (hold["query"], hold["current"]["value"]) == (offered, f"{days}d")
        assert made["time"] == {"from": f"now-{60 * days}d", "to": "now"}
