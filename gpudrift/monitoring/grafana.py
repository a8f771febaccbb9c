"""Parts of a Grafana dashboard as plain JSON values: queries, panels of each type, variables, and where panels stand.

The forms are those of Grafana 9.0 (schema 36), which every later release reads and migrates by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]

SCHEMA_VERSION = 36
COLUMNS = 24  # of Grafana's grid
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


def query(expr: str, legend: str = "", *, table: bool = False, now: bool = False) -> Json:
    """One query of a panel; ``refId`` is given by ``panel``. table: as rows with label columns, at the end of the time
    range; now: at its end alone."""
    instant = table or now
    return {
        "datasource": DATASOURCE,
        "expr": expr,
        "legendFormat": legend or "__auto",
        "instant": instant,
        "range": not instant,
        "format": "table" if table else "time_series",
        "editorMode": "code",
    }


def panel(
    kind: str,
    title: str,
    description: str,
    queries: Sequence[Json],
    *,
    size: tuple[int, int],
    defaults: Json | None = None,
    custom: Json | None = None,
    overrides: Sequence[Json] = (),
    options: Json | None = None,
    transformations: Sequence[Json] = (),
    repeat: str | None = None,
) -> Json:
    """A panel of any type. size: columns and rows of the grid. repeat: the variable it is repeated for,
    two in a line; alone it takes the whole line."""
    made: Json = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"w": size[0], "h": size[1]},
        "fieldConfig": {"defaults": (defaults or {}) | {"custom": custom or {}}, "overrides": list(overrides)},
        "options": options or {},
        "targets": [one | {"refId": chr(ord("A") + k)} for k, one in enumerate(queries)],
        "transformations": list(transformations),
    }
    if repeat is not None:
        made |= {"repeat": repeat, "repeatDirection": "h", "maxPerRow": 2}
    return made


def row(title: str) -> Json:
    """A heading over the panels that follow."""
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": COLUMNS, "h": 1}}


def stat(
    title: str, description: str, expr: str, *, width: int, defaults: Json, empty: str, legend: str = "{{drift_job}}"
) -> Json:
    """One number a series, as it is now."""
    return panel(
        "stat",
        title,
        description,
        [query(expr, legend, now=True)],
        size=(width, 4),
        defaults=defaults | {"noValue": empty},
        options={
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "background",
            "graphMode": "none",
            "textMode": "auto",
            "justifyMode": "auto",
            "orientation": "auto",
        },
    )


def lines(
    title: str,
    description: str,
    queries: Sequence[Json],
    *,
    size: tuple[int, int] = (12, 9),
    defaults: Json | None = None,
    custom: Json | None = None,
    overrides: Sequence[Json] = (),
    repeat: str | None = None,
) -> Json:
    """Values over time. Steps: a value holds from its window's end until that of the next."""
    return panel(
        "timeseries",
        title,
        description,
        queries,
        size=size,
        defaults={"color": {"mode": "palette-classic"}, "unit": "short"} | (defaults or {}),
        custom={
            "drawStyle": "line",
            "lineInterpolation": "stepAfter",
            "lineWidth": 2,
            "fillOpacity": 0,
            "showPoints": "auto",
            "pointSize": 4,
            "spanNulls": False,
        }
        | (custom or {}),
        overrides=overrides,
        options={
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        repeat=repeat,
    )


def states(
    title: str, description: str, queries: Sequence[Json], *, size: tuple[int, int], mappings: Sequence[Json]
) -> Json:
    """States over time, a band a series."""
    return panel(
        "state-timeline",
        title,
        description,
        queries,
        size=size,
        defaults={"mappings": list(mappings), "color": {"mode": "thresholds"}, "thresholds": steps((None, "#6f7a86"))},
        custom={"fillOpacity": 85, "lineWidth": 0, "spanNulls": False},
        options={
            "mergeValues": True,
            "showValue": "auto",
            "alignValue": "left",
            "rowHeight": 0.85,
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
            "tooltip": {"mode": "single", "sort": "none"},
        },
    )


def bars(title: str, description: str, of: Json, *, size: tuple[int, int], defaults: Json) -> Json:
    """A bar a series, as it is now."""
    return panel(
        "bargauge",
        title,
        description,
        [of],
        size=size,
        defaults=defaults,
        options={
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "orientation": "horizontal",
            "displayMode": "basic",
            "showUnfilled": True,
        },
    )


def table(
    title: str,
    description: str,
    columns: Mapping[str, str],
    *,
    labels: Mapping[str, str],
    size: tuple[int, int],
    sort: Sequence[tuple[str, bool]],
    overrides: Sequence[Json] = (),
) -> Json:
    """Series as rows. columns: heading -> expression, each with the same labels. labels: label -> heading. sort:
    (heading, descending), the first first."""
    names = {f"Value #{chr(ord('A') + k)}": heading for k, heading in enumerate(columns)}
    order = {name: k for k, name in enumerate((*labels, *names))}
    return panel(
        "table",
        title,
        description,
        [query(expr, table=True) for expr in columns.values()],
        size=size,
        defaults={"unit": "short"},
        custom={"align": "auto", "filterable": True},
        overrides=overrides,
        options={
            "showHeader": True,
            "cellHeight": "sm",
            "footer": {"show": False, "reducer": ["sum"], "fields": ""},
            "sortBy": [{"displayName": heading, "desc": descending} for heading, descending in sort],
        },
        transformations=[
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "indexByName": order,
                    "renameByName": dict(labels) | names,
                },
            },
        ],
    )


def by_query(letter: str, **properties: Any) -> Json:
    """Properties of the series of one query; ``__`` stands for the dot: ``custom__fillOpacity=10``."""
    return _override("byFrameRefID", letter, properties)


def by_name(name: str, **properties: Any) -> Json:
    """Properties of the series, or the column, of one name."""
    return _override("byName", name, properties)


def _override(matcher: str, of: str, properties: Mapping[str, Any]) -> Json:
    listed = [{"id": name.replace("__", "."), "value": value} for name, value in properties.items()]
    return {"matcher": {"id": matcher, "options": of}, "properties": listed}


def fixed(color: str) -> Json:
    return {"mode": "fixed", "fixedColor": color}


def steps(*colors: tuple[float | None, str]) -> Json:
    """Colours from a value up; the first from below any value."""
    return {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in colors]}


def words(texts: Mapping[int, tuple[str, str]]) -> list[Json]:
    """Codes as (text, colour)."""
    shown = {str(k): {"text": text, "color": color, "index": k} for k, (text, color) in texts.items()}
    return [{"type": "value", "options": shown}]


def choice(name: str, label: str, of: str, *, regex: str = "", every: str | None = None, first: str = "") -> Json:
    """A variable whose values come from a query, several at a time. every: the regular expression that "All" stands
    for, else all values. first: the value chosen at first, else "All"."""
    text, value = (first, first) if first else ("All", "$__all")
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "definition": of,
        "query": {"query": of, "refId": "StandardVariableQuery"},
        "regex": regex,
        "multi": True,
        "includeAll": True,
        "allValue": every,
        "refresh": 2,  # when the time range changes
        "sort": 1,
        "hide": 0,
        "current": {"selected": True, "text": [text], "value": [value]},
        "options": [],
    }


def constants(name: str, label: str, values: Sequence[str], chosen: str) -> Json:
    """A variable with given values, one at a time."""
    return {
        "type": "custom",
        "name": name,
        "label": label,
        "query": ",".join(values),
        "multi": False,
        "includeAll": False,
        "hide": 0,
        "current": {"selected": True, "text": chosen, "value": chosen},
        "options": [{"text": value, "value": value, "selected": value == chosen} for value in values],
    }


def source(label: str) -> Json:
    """The variable that says which Prometheus."""
    return {
        "type": "datasource",
        "name": "datasource",
        "label": label,
        "query": "prometheus",
        "regex": "",
        "multi": False,
        "includeAll": False,
        "refresh": 1,
        "hide": 0,
        "current": {},
        "options": [],
    }


def assemble(title: str, panels: Sequence[Json], variables: Sequence[Json], *, days: int, tags: Sequence[str]) -> Json:
    """The dashboard: panels from left to right and from top to bottom, a new line where one does not fit. Its uid
    follows from the title alone, so that a second import replaces the first. days: shown at first."""
    placed: list[Json] = []
    x = y = height = 0
    for number, one in enumerate(panels, start=1):
        size = one["gridPos"]
        if x + size["w"] > COLUMNS:
            x, y, height = 0, y + height, 0
        placed.append(one | {"id": number, "gridPos": {"x": x, "y": y, **size}})
        x, height = x + size["w"], max(height, size["h"])
    return {
        "uid": "gpudrift-" + hashlib.sha256(title.encode()).hexdigest()[:12],
        "title": title,
        "tags": list(tags),
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one cursor over all panels
        "timezone": "utc",
        "time": {"from": f"now-{days}d", "to": "now"},
        "refresh": "15m",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": list(variables)},
        "panels": placed,
    }
