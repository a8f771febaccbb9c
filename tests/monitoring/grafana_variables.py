"""What Grafana makes of a dashboard's variables and queries: the rules of its Prometheus data source, in Python."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from live_prometheus import Prometheus

Json = dict[str, Any]
ALL = "$__all"
Chosen = Mapping[str, list[str]]  # of each variable; [ALL]: all of them


def options(
    server: Prometheus, board: Json, start: float, end: float, chosen: Chosen | None = None
) -> dict[str, list[str]]:
    """The values each variable offers, from the first to the last: each sees those chosen before it."""
    found: dict[str, list[str]] = {}
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            asked = variable["query"]["query"]
            assert asked == variable["definition"]
            parts = re.fullmatch(r"label_values\((.+), (\w+)\)", asked)
            assert parts is not None
            series = interpolated(parts[1], board, chosen or {}, found, end - start)
            values = server.get(f"/api/v1/label/{parts[2]}/values", **{"match[]": series}, start=start, end=end)
            known = server.get("/api/v1/series", **{"match[]": series}, start=start, end=end)
            assert sorted({one[parts[2]] for one in known}) == sorted(values)  # older Grafanas ask this way
            pattern = variable["regex"].strip("/")
            found[variable["name"]] = [value for value in values if re.search(pattern, value)]
        elif variable["type"] == "custom":
            found[variable["name"]] = variable["query"].split(",")
    return found


def interpolated(text: str, board: Json, chosen: Chosen, offered: Mapping[str, list[str]], span: float) -> str:
    """A query as it is sent. chosen: by variable, else what the dashboard starts with. offered: their values."""
    for variable in board["templating"]["list"]:
        name = variable["name"]
        if name not in offered:
            continue
        value = chosen.get(name) or variable["current"]["value"]
        text = re.sub(rf"\$(?:{name}\b|\{{{name}\}})", lambda _, v=value, of=variable: _shown(v, of, offered), text)
    return text.replace("$__range", f"{span:.0f}s")


def _shown(value: str | list[str], variable: Json, offered: Mapping[str, list[str]]) -> str:
    if not variable["multi"] and not variable["includeAll"]:
        assert isinstance(value, str)
        return value
    values = [value] if isinstance(value, str) else value
    if values == [ALL]:
        if variable["allValue"]:
            return str(variable["allValue"])  # as it stands
        values = offered[variable["name"]]
    escaped = [re.sub(r"[$^*{}\[\]'+?.()|]", r"\\\\\g<0>", one.replace("\\", "\\" * 4)) for one in values]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


def targets(board: Json) -> Iterator[tuple[Json, Json]]:
    """Every query with its panel."""
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel, target
