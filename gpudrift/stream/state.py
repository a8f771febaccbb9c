"""What a streaming job knows: open windows with sketches, the ledger, counters. The checkpoint holds all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from torch import Tensor

from gpudrift.errors import DataError
from gpudrift.records import GateMetric, HistoryPoint, Quality, Window
from gpudrift.sketch import Sketch, SketchPlan
from gpudrift.source.quality import EXAMPLES, total
from gpudrift.stream.ledger import Ledger

REFUSED = 100  # refused batches remembered with their errors

# What has been counted since the job's first run, by name in the output
COUNTERS = (
    "files",  # consumed
    "batches",  # applied
    "rows",  # in a sketch
    "bad",  # dropped: null, ragged, not finite, zero, without event time
    "late",  # of windows already closed
    "in_reference",  # of windows the reference is made of: they are its own rows
    "duplicate_files",
    "quarantined_files",
    "replayed_batches",  # at or below the checkpointed sequence
    "refused_batches",
    "broken_connections",
)


@dataclass
class OpenWindow:
    """A window that takes rows. emitted: its rows at the last emission, None before the first. point: what that
    emission found, for the verdict of the window after it."""

    window: Window
    sketch: Sketch
    quality: Quality
    emitted: int | None = None
    point: HistoryPoint | None = None

    @property
    def rows(self) -> int:
        return self.sketch.count


@dataclass(frozen=True)
class Part:
    """What a file or a batch brings to one window."""

    sketch: Sketch
    quality: Quality


@dataclass
class Taken:
    """What a file or a batch brings; nothing of it is in the state yet.

    parts: by window. late, in_reference: rows of windows that take none. bad: rows dropped. first: the earliest event
    time, until: the end of the last window touched, late ones too; None without rows.
    """

    parts: dict[Window, Part] = field(default_factory=dict)
    late: int = 0
    in_reference: int = 0
    bad: int = 0
    first: datetime | None = None
    until: datetime | None = None

    @property
    def rows(self) -> int:
        return sum(part.sketch.count for part in self.parts.values())


@dataclass
class State:
    """Everything a run goes on from. ``identity``: what it must share with the runs before (reference, plan, settings).

    floor: windows that begin before it are closed. first: the earliest event time so far. sequences: the last one
    applied, by partition. refused: the newest refused batches. emission: number of the last one. emitted_rows: rows
    there were when it was made. offset: bytes of stream.jsonl that belong to this state. conditions: the settings that
    files were refused under.
    """

    identity: dict[str, Any]
    windows: dict[str, OpenWindow] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    counts: Counter[str] = field(default_factory=Counter)
    floor: datetime | None = None
    first: datetime | None = None
    sequences: dict[str, int] = field(default_factory=dict)
    refused: list[dict[str, Any]] = field(default_factory=list)
    emission: int = 0
    emitted_rows: int = 0
    offset: int = 0
    conditions: str = ""

    def in_order(self) -> list[OpenWindow]:
        return sorted(self.windows.values(), key=lambda open_: open_.window.start)

    def apply(self, taken: Taken) -> None:
        """Add what was taken: all of it, or nothing where a merge fails."""
        merged: dict[str, OpenWindow] = {}
        for window, part in taken.parts.items():
            held = self.windows.get(window.label)
            if held is None:
                merged[window.label] = OpenWindow(window, part.sketch, part.quality)
            else:
                sketch, quality = held.sketch.merge(part.sketch), added(held.quality, part.quality)
                merged[window.label] = replace(held, sketch=sketch, quality=quality)
        self.windows |= merged
        self.counts["rows"] += taken.rows
        self.counts["bad"] += taken.bad
        self.counts["late"] += taken.late
        self.counts["in_reference"] += taken.in_reference
        if taken.first is not None:
            self.first = taken.first if self.first is None else min(self.first, taken.first)

    def refuse(self, entry: dict[str, Any]) -> None:
        self.counts["refused_batches"] += 1
        self.refused = [*self.refused, entry][-REFUSED:]

    def tensors(self) -> dict[str, Tensor]:
        """Sketches as flat tensors, ``<place in order>.<name>``."""
        return {
            f"{k}.{name}": tensor
            for k, held in enumerate(self.in_order())
            for name, tensor in held.sketch.state().items()
        }

    def to_json(self) -> dict[str, Any]:
        """All but the sketches."""
        return {
            "identity": self.identity,
            "windows": [
                {
                    "window": _window_json(held.window),
                    "quality": asdict(held.quality),
                    "emitted": held.emitted,
                    "point": None if held.point is None else _point_json(held.point),
                }
                for held in self.in_order()
            ],
            "ledger": self.ledger.to_json(),
            "counts": dict(self.counts),
            "floor": _moment_json(self.floor),
            "first": _moment_json(self.first),
            "sequences": self.sequences,
            "refused": self.refused,
            "emission": self.emission,
            "emitted_rows": self.emitted_rows,
            "offset": self.offset,
            "conditions": self.conditions,
        }

    @classmethod
    def from_parts(cls, plain: dict[str, Any], tensors: Mapping[str, Tensor], plan: SketchPlan) -> State:
        """Raises DataError, KeyError, ValueError or TypeError for what is no state."""
        windows = {}
        for k, item in enumerate(plain["windows"]):
            own = {name.removeprefix(f"{k}."): t for name, t in tensors.items() if name.startswith(f"{k}.")}
            window, point = _window(item["window"]), item["point"]
            examples = {cause: tuple(names) for cause, names in item["quality"]["examples"].items()}
            quality = Quality(**(item["quality"] | {"examples": examples}))
            sketch = Sketch.from_state(plan, own)
            if sketch.count != quality.rows_kept:
                raise DataError(f"{window.label}: {sketch.count} rows in the sketch, {quality.rows_kept} counted")
            held = OpenWindow(window, sketch, quality, item["emitted"])
            if point is not None:
                held.point = _point(point)
            windows[window.label] = held
        return cls(
            identity=plain["identity"],
            windows=windows,
            ledger=Ledger.from_json(plain["ledger"]),
            counts=Counter(plain["counts"]),
            floor=_moment(plain["floor"]),
            first=_moment(plain["first"]),
            sequences=dict(plain["sequences"]),
            refused=list(plain["refused"]),
            emission=plain["emission"],
            emitted_rows=plain["emitted_rows"],
            offset=plain["offset"],
            conditions=plain["conditions"],
        )


def added(one: Quality, other: Quality) -> Quality:
    """The quality of two parts of a window together."""
    together = total([one, other])
    examples = {c: (*one.examples.get(c, ()), *other.examples.get(c, ()))[:EXAMPLES] for c in together.dropped}
    return replace(together, examples=examples)


def _window_json(window: Window) -> list[Any]:
    return [window.start.isoformat(), window.end.isoformat(), window.label, window.complete]


def _window(plain: list[Any]) -> Window:
    return Window(datetime.fromisoformat(plain[0]), datetime.fromisoformat(plain[1]), plain[2], plain[3])


def _point_json(point: HistoryPoint) -> dict[str, Any]:
    return vars(point) | {"window": _window_json(point.window), "gates": [asdict(gate) for gate in point.gates]}


def _point(plain: dict[str, Any]) -> HistoryPoint:
    gates = tuple(GateMetric(**gate) for gate in plain["gates"])
    return HistoryPoint(**(plain | {"window": _window(plain["window"]), "gates": gates}))


def _moment_json(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
