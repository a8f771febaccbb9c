"""How the fused pair kernel is cut into tiles, by GPU architecture, precision, statistics and dimension.

The table is ``schedules.json``; ``benchmarks/gpu_suite.py --tune`` measures candidates and rewrites it, so a nightly
job never tunes on its first call. ``timed`` tells which rows were measured (device and date) and which were chosen from
compile reports alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("schedules.json")

# What a pass computes, as far as tiles are concerned: the distance alone; one RBF or more beside it; z'Kz of labels.
# Cluster codes take registers of their own.
STATISTICS = ("distance", "ladder", "labels", "clustered distance", "clustered ladder", "clustered labels")

# The element type of the rows in a kernel's signature, and how tl.dot is to multiply them.
ELEMENTS = {"float16": "fp16", "bfloat16": "bf16", "tf32": "fp32", "float32": "fp32"}
INPUT_PRECISION = {"float16": "ieee", "bfloat16": "ieee", "tf32": "tf32", "float32": "tf32x3"}


@dataclass(frozen=True)
class Schedule:
    """Tile (rows, columns, depth), warps, pipeline stages, column pieces of the epilogue, lane partials for column
    sums, tensor descriptors (TMA), flattened loops, a cap on registers (0: none), row tiles a strip, column tiles that
    run side by side."""

    BM: int = 128
    BN: int = 128
    BK: int = 64
    WARPS: int = 8
    STAGES: int = 3
    SUBTILES: int = 1
    PARTIALS: bool = False
    DESCRIPTORS: bool = True
    FLATTEN: bool = False
    MAXNREG: int = 0
    STRIP: int = 16
    GROUP: int = 16


@dataclass(frozen=True)
class Row:
    """One line of the table: where a schedule applies (dimensions up to ``d``, 0: all above) and where it is from."""

    arch: int
    precisions: tuple[str, ...]
    statistics: tuple[str, ...]
    d: int
    schedule: Schedule
    timed: str


@cache
def table(path: Path = TABLE) -> tuple[Row, ...]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    return tuple(
        Row(r["arch"], tuple(r["precisions"]), tuple(r["statistics"]), r["d"], Schedule(**r["schedule"]), r["timed"])
        for r in rows
    )


def dump(rows: tuple[Row, ...]) -> str:
    """The JSON text of a table: a line a row, defaults left out."""
    plain = asdict(Schedule())
    lines = []
    for row in rows:
        fields = asdict(row)
        fields["schedule"] = {k: v for k, v in asdict(row.schedule).items() if v != plain[k]}
        lines.append("  " + json.dumps(fields))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def architecture(capability: tuple[int, int]) -> int:
    """80: mma (Ampere, Ada, and consumer Blackwell, which has neither wgmma nor tcgen05); 90: wgmma; 100: tcgen05."""
    return {9: 90, 10: 100, 11: 100}.get(capability[0], 80)


def choose(arch: int, precision: str, statistics: str, d: int, rows: tuple[Row, ...] | None = None) -> Schedule:
    """The schedule of the narrowest bucket that holds d."""
    fitting = [
        row
        for row in (table() if rows is None else rows)
        if row.arch == arch
        and precision in row.precisions
        and statistics in row.statistics
        and (d <= row.d or not row.d)
    ]
    if not fitting:
        raise LookupError(f"no schedule for sm_{arch}, {precision}, {statistics}, d = {d}")
    return min(fitting, key=lambda row: row.d or 1 << 30).schedule


@dataclass(frozen=True)
class Pass:
    """What a launch of ``pair_tiles`` computes, as compile-time constants; see the kernel."""

    DISTANCE: bool = True
    RUNGS: int = 0
    CHAINED: int = 0
    SQUARES: bool = False
    COLUMNS: bool = True
    LABELS: int = 0
    MASKED: bool = False
    SYMMETRIC: bool = False
    CLUSTERS: bool = False
    TRIVIAL: bool = False

    @property
    def statistics(self) -> str:
        plain = "labels" if self.LABELS else "ladder" if self.RUNGS else "distance"
        return f"clustered {plain}" if self.CLUSTERS else plain

    @property
    def functions(self) -> int:
        return int(self.DISTANCE) + self.RUNGS

    @property
    def squared(self) -> int:
        """Squared sums that are added up (the distance's have a closed form without clusters)."""
        return self.RUNGS + int(self.DISTANCE and self.CLUSTERS) if self.SQUARES else 0


_LAUNCH_ONLY = ("MAXNREG", "STRIP", "GROUP")


def constants(schedule: Schedule, what: Pass, precision: str) -> dict[str, Any]:
    """The compile-time constants of ``pair_tiles``."""
    tiles = {k: v for k, v in asdict(schedule).items() if k not in _LAUNCH_ONLY}
    return {**tiles, **asdict(what), "PRECISION": INPUT_PRECISION[precision]}


def options(schedule: Schedule) -> dict[str, Any]:
    """Launch options. Fused multiply-adds are asked for: from Triton 3.10 on they are off by default."""
    found = {"num_warps": schedule.WARPS, "num_stages": schedule.STAGES, "enable_fp_fusion": True}
    return found | ({"maxnreg": schedule.MAXNREG} if schedule.MAXNREG else {})


def signature(schedule: Schedule, precision: str) -> dict[str, str]:
    """Types of the run-time arguments of ``pair_tiles`` in its order, for compiling without a GPU."""
    element = ELEMENTS[precision]
    rows = [f"tensordesc<{element}[{side}, {schedule.BK}]>" for side in (schedule.BM, schedule.BN)]
    if not schedule.DESCRIPTORS:
        rows = ["*" + element] * 2
    label = "*fp32" if element == "fp32" else "*fp16"
    types = dict(zip(("x", "y"), rows, strict=True))
    types |= {"norms_x": "*fp32", "norms_y": "*fp32", "codes_x": "*i32", "codes_y": "*i32"}
    types |= {"labels_x": label, "labels_y": label}
    types |= {"table": "*i32", "gammas": "*fp32"}
    types |= dict.fromkeys(("row_parts", "col_parts", "square_parts", "label_parts"), "*fp32")
    return types | {"row_base": "i32", "col_base": "i32", "stride_x": "i64", "stride_y": "i64", "depth": "i32"}


def variants() -> list[dict[str, Any]]:
    """Every kind of launch the table ships, for the checks without a GPU: name, constexprs, signature, options, arches,
    tensor_cores, aligned (arguments divisible by 16 beside the pointers)."""
    default = {"RUNGS": 4, "CHAINED": 0b1110, "SQUARES": True}  # the default bandwidths, a factor 2 apart
    five = {"RUNGS": 5, "CHAINED": 0b11110, "SQUARES": True}
    masks: dict[str, dict[str, Any]] = {
        "": {},
        "masked": {"MASKED": True},
        "diagonal": {"MASKED": True, "SYMMETRIC": True},
    }
    clustered = {"clusters": {"MASKED": True, "SYMMETRIC": True, "CLUSTERS": True}}
    sums: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "distance": [("energy", {"SQUARES": True}), ("totals", {"COLUMNS": False})],
        "ladder": [("default", default), ("five", five), ("own", default | {"CHAINED": 0})],
        "labels": [("labels", {"LABELS": 128, "SQUARES": True})],
    }
    found = []
    for row in table():
        for precision in row.precisions:
            for statistics in row.statistics:
                for sums_name, what in sums[statistics.removeprefix("clustered ")]:
                    for mask, extra in (clustered if statistics.startswith("clustered ") else masks).items():
                        launch = Pass(**{**what, **extra})
                        parts = (f"sm_{row.arch}", precision, f"d{row.d or 'all'}", sums_name, mask)
                        found.append(
                            {
                                "name": " ".join(part for part in parts if part),
                                "constexprs": constants(row.schedule, launch, precision),
                                "signature": signature(row.schedule, precision),
                                "options": options(row.schedule),
                                "arches": (row.arch,),
                                "tensor_cores": True,
                                "aligned": ("stride_x", "stride_y"),
                            }
                        )
    return found
