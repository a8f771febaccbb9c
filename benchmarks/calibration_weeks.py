"""The calibration study of whole verdicts: references pinned and weeks scored by the job's own code, on rows in memory.

A world deals windows: K of a reference, and the weeks that follow it. The rule is the job's (hygiene, panel, gates,
two windows running, an alert that holds); the window before the first week is the reference's last one, scored as the
job would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from calibration_families import Generator, Rows, quiet_rows, quiet_weeks, stream

from gpudrift import reference
from gpudrift.arithmetic import Arithmetic
from gpudrift.calibrate import Limits, decide
from gpudrift.config.statistics import CalibrateConfig
from gpudrift.fingerprint import canonical
from gpudrift.metrics.accumulate import mean_of
from gpudrift.panel import PanelSettings, centre
from gpudrift.records import Cloud, HistoryPoint, Quality, Window
from gpudrift.sampling import Limit
from gpudrift.scoring import Scored, Scorer

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
PANEL, LIMITS = PanelSettings(), Limits()
EVERY = Limit(10**9, "all rows take part in pairs")
FLOAT32 = Arithmetic("float32", "the study's", 1.0)
RULE = CalibrateConfig()

DIM, CLUSTERS, TRUE_ROWS = 64, 10, 200
WOBBLE = 0.05  # length of a window's own mean, of a row's
LATER = 6  # weeks scored after each reference
REAL_ROWS = 150  # rows of a dealt real window
IN_A_ROW = "real weeks in a row"


# the job's code on rows in memory ----------------------------------------------------------------------------------


def _cloud(windows: Sequence[Rows], first: int) -> tuple[Cloud, tuple[str, ...]]:
    starts = [MONDAY + timedelta(weeks=first + k) for k in range(len(windows))]
    sizes = [len(rows) for rows in windows]
    return canonical(
        Cloud(
            embeddings=torch.from_numpy(np.concatenate(windows).astype(np.float32)),
            windows=tuple(Window(start, start + timedelta(weeks=1), f"{start:%Y-%m-%d}") for start in starts),
            offsets=tuple(int(b) for b in np.cumsum([0, *sizes])),
            quality=tuple(Quality(size, size, {}, {}) for size in sizes),
        ),
        0,
    )


def pin(windows: Sequence[Rows]) -> Scorer | None:
    """A scorer on a reference of these windows; None where the job would call the reference unstable."""
    cloud, _ = _cloud(windows, 0)
    screened = reference.screen(cloud, hygiene_sd=RULE.hygiene_sd, arithmetic=FLOAT32)
    kept, dropped = screened.hygiene.kept, screened.hygiene.dropped
    if len(dropped) > RULE.max_dropped * len(windows) or len(kept) < RULE.min_windows:
        return None
    cloud, prints = _cloud(windows, 0)
    if dropped:  # the windows left, each still under its own label
        parts = [cloud.window(k) for k in kept]
        sizes = [len(part) for part in parts]
        cloud = Cloud(
            embeddings=torch.cat([part.embeddings for part in parts]),
            windows=tuple(part.windows[0] for part in parts),
            offsets=tuple(int(b) for b in np.cumsum([0, *sizes])),
            quality=tuple(part.quality[0] for part in parts),
        )
        prints = tuple(prints[k] for k in kept)
    mean = mean_of(cloud.embeddings)
    centre(cloud.embeddings, mean)
    pinned, rows = reference.build(
        cloud,
        prints,
        mean,
        dropped=[],
        span=(MONDAY, MONDAY + timedelta(weeks=len(windows))),
        period="week",
        left_out=[],
        panel=PANEL,
        settings={},
        arithmetic=FLOAT32,
        limit=EVERY,
    )
    return Scorer(pinned, rows, PANEL, LIMITS, EVERY)


def scored(scorer: Scorer, rows: Rows, week: int) -> Scored:
    """Score rows as week ``week`` after the first of the reference."""
    cloud, _ = _cloud([rows], week)
    return scorer.score(cloud, None)


def verdicts(windows: Sequence[Rows], later: Sequence[Rows]) -> list[dict[str, float]] | None:
    """warn, alarm, alert and detectable (p < .05) of each later week as 0 or 1; None for an unstable reference."""
    scorer = pin(windows)
    if scorer is None:
        return None
    found, before = [], None
    last = len(windows) - 1
    if scorer.reference.kept[-1].window.start == MONDAY + timedelta(weeks=last):
        before = _point(scored(scorer, windows[-1], last), None)
    for k, rows in enumerate(later, start=len(windows)):
        one = scored(scorer, rows, k)
        now = _point(one, before)
        judged, calibration = one.judgement, one.calibration
        if judged is not None and calibration is not None:
            found.append(
                {
                    "warn": float(judged.warn),
                    "alarm": float(judged.alarm),
                    "alert": float(now.verdict == "alert"),
                    "detectable": float(calibration.detectable_p < 0.05),
                }
            )
        before = now
    return found


def _point(one: Scored, before: HistoryPoint | None) -> HistoryPoint:
    verdict, _ = decide(one.judgement, before, LIMITS)
    return one.point(verdict)


# worlds ------------------------------------------------------------------------------------------------------------

World = Callable[[Generator, int, int], tuple[list[Rows], list[Rows]]]


@lru_cache(maxsize=1)
def mixture() -> tuple[Rows, Rows]:
    """Centres (11, 64), the last one new, and noise axes (64, 64): ten topics whose rows have length about 1, with a
    spectrum that falls as j^-1/2, turned so that no axis is a coordinate."""
    rng = stream(0, "mixture")
    axes = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0].T
    spectrum = np.arange(1, DIM + 1) ** -0.5
    spectrum /= np.linalg.norm(spectrum)
    centres = np.sqrt(0.4) * rng.normal(size=(CLUSTERS + 1, DIM)) * spectrum @ axes
    return centres, np.sqrt(0.6) * spectrum[:, None] * axes


def topics(rng: Generator, n: int, weights: Rows | None = None) -> tuple[Rows, Rows]:
    """(rows, cluster of each)."""
    centres, axes = mixture()
    of = rng.choice(CLUSTERS, n, p=weights)
    return centres[of] + rng.normal(size=(n, DIM)) @ axes, of


def wander(rng: Generator) -> Rows:
    """What one window adds to all its rows where windows wobble: a random vector in the shape of the noise."""
    _, axes = mixture()
    return np.asarray(WOBBLE * rng.normal(size=DIM) @ axes / np.linalg.norm(axes))


def still(rng: Generator, count: int, later: int) -> tuple[list[Rows], list[Rows]]:
    return [topics(rng, TRUE_ROWS)[0] for _ in range(count)], [topics(rng, TRUE_ROWS)[0] for _ in range(later)]


def wobbling(shift: float, factor: int) -> World:
    """Every window's mean wanders by ``WOBBLE``; the later ones, of ``factor`` times the rows, also move by shift."""

    def world(rng: Generator, count: int, later: int) -> tuple[list[Rows], list[Rows]]:
        direction = wander(rng)
        direction *= shift * WOBBLE / np.linalg.norm(direction)
        quiet = [topics(rng, TRUE_ROWS)[0] + wander(rng) for _ in range(count)]
        return quiet, [topics(rng, factor * TRUE_ROWS)[0] + wander(rng) + direction for _ in range(later)]

    return world


def dealt_rows(data: str | None) -> World:
    """Rows of the quiet real weeks dealt at random into windows: no movement at all, real rows."""

    def world(rng: Generator, count: int, later: int) -> tuple[list[Rows], list[Rows]]:
        pool = quiet_rows(data)
        places = rng.choice(len(pool), (count + later) * REAL_ROWS, replace=False)
        windows = [pool[part] for part in np.split(places, count + later)]
        return windows[:count], windows[count:]

    return world


def dealt_weeks(data: str | None) -> World:
    """Quiet real weeks in random order: their real movement, without its order in time."""

    def world(rng: Generator, count: int, later: int) -> tuple[list[Rows], list[Rows]]:
        weeks = quiet_weeks(data)
        order = rng.permutation(len(weeks))[: count + later]
        windows = [weeks[k].rows for k in order]
        return windows[:count], windows[count:]

    return world


def consecutive(data: str | None, count: int, trial: int) -> tuple[list[Rows], list[Rows]]:
    """Quiet real weeks in a row: the weeks after the reference are those of a real job. Each start comes once, in an
    order of its own, so that a few trials are spread over all years."""
    found = runs(data, count + 1)
    start, length = found[stream(0, "starts").permutation(len(found))[trial]]
    chosen = [week.rows for week in quiet_weeks(data)[start : start + min(count + LATER, length)]]
    return chosen[:count], chosen[count:]


def runs(data: str | None, least: int) -> list[tuple[int, int]]:
    """(place, weeks from there on without a gap) of every quiet week that is followed closely by enough others."""
    weeks = quiet_weeks(data)
    found = []
    for start in range(len(weeks)):
        end = start
        while end + 1 < len(weeks) and weeks[end + 1].monday - weeks[end].monday == timedelta(weeks=1):
            end += 1
        if end + 1 - start >= least:
            found.append((start, end + 1 - start))
    return found


def worlds(data: str | None) -> dict[str, tuple[World | None, float]]:
    """Name -> (world, share of the references asked for that it gets: real rows cost five times as much). None:
    ``consecutive``."""
    return {
        "no movement": (still, 1.0),
        "wobbling": (wobbling(0, 1), 1.0),
        "wobbling, 3 times the rows": (wobbling(0, 3), 0.5),
        "no movement, real rows": (dealt_rows(data), 0.5),
        "real weeks in random order": (dealt_weeks(data), 0.5),
        IN_A_ROW: (None, 0.5),
        "wobbling, then moved by 4 wobbles": (wobbling(4, 1), 0.5),
        "wobbling, then moved by 4, 3 times the rows": (wobbling(4, 3), 0.5),
    }


def available(name: str, count: int, data: str | None) -> float:
    """How many references of ``count`` windows a world can make; infinity where they are drawn at random."""
    if name == IN_A_ROW:
        return len(runs(data, count + 1))
    enough = True
    if name == "real weeks in random order":
        enough = len(quiet_weeks(data)) >= count + LATER
    if name == "no movement, real rows":
        enough = len(quiet_rows(data)) >= (count + LATER) * REAL_ROWS
    return math.inf if enough else 0


def weeks_trial(name: str, count: int, seed: int, trial: int, data: str | None) -> list[dict[str, float]] | None:
    world, _ = worlds(data)[name]
    if world is None:
        return verdicts(*consecutive(data, count, trial))
    return verdicts(*world(stream(seed, "weeks", name, count, trial), count, LATER))


def weeks_table(cell: tuple[str, int], found: list[list[dict[str, float]] | None]) -> dict[str, Any]:
    """Shares of weeks, with errors over references: the weeks of one reference depend on each other."""
    name, count = cell
    usable = [weeks for weeks in found if weeks]
    row: dict[str, Any] = {
        "world": name,
        "windows": count,
        "references": len(found),
        "unstable": sum(weeks is None for weeks in found),
        "weeks": sum(map(len, usable)),
    }
    for key in ("warn", "alert", "detectable"):
        shares = np.array([np.mean([week[key] for week in weeks]) for weeks in usable])
        row[key] = float(shares.mean()) if len(shares) else None
        row[f"{key} error"] = float(shares.std(ddof=1) / np.sqrt(len(shares))) if len(shares) > 1 else None
    return row
