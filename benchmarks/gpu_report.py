"""What a run of the GPU suite leaves: a JSON line a case, a table in Markdown, a picture, and a short table to read."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu_goals import DIMS, RATIOS, ROOT, SHARES, case_hash

Record = dict[str, Any]
# What must be in every line of a results file
SCHEMA = ("part", "name", "hash", "device", "date", "commit", "dirty", "versions")
_DEFINITION = ("part", "name", "d", "n", "pairs", "case")


def environment(dry: bool, commit: str = "") -> Record:
    """The device, its driver, versions and the commit (asked of git, or told). Once, at the start."""
    import torch

    found: Record = {
        "device": "cpu (dry)" if dry else torch.cuda.get_device_name(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or _git("rev-parse", "--short=12", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain")),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": _triton()},
    }
    if not dry:
        told = torch.cuda.get_device_properties(0)
        found |= {
            "capability": f"{told.major}.{told.minor}",
            "multiprocessors": told.multi_processor_count,
            "l2_mb": round(getattr(told, "L2_cache_size", 0) / 2**20, 1),
            "memory_gb": round(told.total_memory / 1e9, 1),
            "driver": _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
        }
    return found


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return "absent"
    return str(triton.__version__)


def _git(*words: str) -> str:
    return _run("git", "-C", str(ROOT), *words)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def stamped(record: Mapping[str, Any], where: Mapping[str, Any], digest: str) -> Record:
    """A record as it goes into the results file."""
    definition = {k: record[k] for k in _DEFINITION if k in record}
    stamp = {k: where[k] for k in ("device", "date", "commit", "dirty", "versions")}
    return {**record, "hash": case_hash(definition, digest), **stamp}


def plain_numbers(value: Any) -> Any:
    """NaN and infinity are not JSON: None."""
    if isinstance(value, dict):
        return {k: plain_numbers(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_numbers(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def withheld(record: Record, failing: set[str]) -> Record:
    """A rate whose variant failed a check is not told."""
    broken = sorted(set(record.get("variants", ())) & failing)
    if not broken:
        return record
    kept: Record = {k: record[k] for k in ("part", "name", "d", "n", "pairs", "variants") if k in record}
    return {**kept, "withheld": f"checks failed: {', '.join(broken)}"}


def failed(record: Mapping[str, Any]) -> bool:
    """Whether a record fails the suite: a sum that is wrong, or a part that could not do what it is there for."""
    if record.get("ok") is False:
        return True
    return "error" in record and record["part"] in ("checks", "rates", "ceilings", "million", "suite")


def stem(where: Mapping[str, Any]) -> str:
    """gpu-<device>-<date>."""
    device = "".join(c if c.isalnum() else "-" for c in str(where["device"]).lower())
    return f"gpu-{'-'.join(part for part in device.split('-') if part)}-{str(where['date'])[:10]}"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return [*lines, *("| " + " | ".join(shown(cell) for cell in row) + " |" for row in rows), ""]


def shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.3g}" if math.isfinite(value) else "-"
    if isinstance(value, (list, tuple)):
        return " / ".join(shown(one) for one in value)
    return str(value)


def markdown(where: Mapping[str, Any], records: Sequence[Record], unchecked: Sequence[str], dry: bool) -> str:
    lines = [f"# GPU suite: {where['device']}, {str(where['date'])[:10]}", ""]
    if dry:
        lines += ["**DRY RUN on the CPU: this shows that the suite works. No figure here says anything of a GPU.**", ""]
    told = {k: v for k, v in where.items() if k not in ("device", "versions")} | dict(where["versions"])
    lines += table(("what", "value"), told.items())
    lines += ["## Not checked", "", *(f"- {what}" for what in unchecked or ["nothing was left out"]), ""]
    checks = [r for r in records if r["part"] == "checks"]
    wrong = [r for r in records if failed(r)]
    lines += [f"## Checks: {len(checks)} made, {sum(not r.get('ok', False) for r in checks)} failed", ""]
    lines += [f"- FAILED {r['name']}: {r.get('wrong') or r.get('error')}" for r in wrong]
    lines += [
        "",
        "Errors as multiples of the bound (1 is allowed), the worst a precision; torch: tiled torch's own.",
        "",
    ]
    lines += table(("precision", "checks", "worst", "torch's worst"), _by_precision(checks))
    lines += ["## Rates", "", "Shares are of the bare 16-bit product of the same pairs, medians within rounds.", ""]
    lines += table(*_shares(records))
    lines += ["## Ratios", "", *table(*_ratios(records))]
    for part, title in (("ceilings", "Ceilings"), ("probes", "Open questions"), ("million", "A million rows")):
        found = [r for r in records if r["part"] == part]
        lines += [f"## {title}", "", *(f"- {r['name']}: {_told(r)}" for r in found), ""]
    lines += ["## Every rate", ""]
    rates = [r for r in records if r["part"] == "rates" and "ms" in r]
    columns = ("name", "d", "n", "ms", "spread", "rounds", "pairs_per_s", "share", "goal", "verdict")
    lines += table(columns, ([r.get(c) for c in columns] for r in rates))
    lines += ["## Time", ""]
    spent = [r for r in records if r["part"] in ("time", "compile")]
    lines += [f"- {r['part']} {r['name']}: {_told(r)}" for r in spent]
    return "\n".join(lines).rstrip() + "\n"


def _told(record: Record) -> str:
    hidden = ("part", "name", "variants", "statistics", *SCHEMA)
    return ", ".join(f"{k} {shown(v)}" for k, v in record.items() if k not in hidden and v not in ("", []))


def _by_precision(checks: Sequence[Record]) -> list[tuple[Any, ...]]:
    groups: dict[str, list[Record]] = {}
    for record in checks:
        groups.setdefault(str(record.get("case", {}).get("precision", "-")), []).append(record)
    return [
        (
            name,
            len(found),
            max((r.get("of_bound") or 0.0 for r in found), default=0.0),
            max((r.get("torch_of_bound") or 0.0 for r in found), default=0.0),
        )
        for name, found in groups.items()
    ]


def _shares(records: Sequence[Record]) -> tuple[list[str], list[list[Any]]]:
    """A row a contestant, a column a dimension: share, and the verdict where there is a goal."""
    rates = [r for r in records if r["part"] == "rates" and "d" in r and r["name"] != "gemm"]
    dims = sorted({r["d"] for r in rates})
    rows = []
    for name in dict.fromkeys(r["name"] for r in rates):
        cells: list[Any] = [name]
        for d in dims:
            found = next((r for r in rates if r["name"] == name and r["d"] == d), {})
            goal = f" ({found['verdict']})" if found.get("verdict") else ""
            cells.append("withheld" if "withheld" in found else shown(found.get("share")) + goal)
        rows.append(cells)
    for name, by_d in SHARES.items():
        rows.append([f"goal {name}", *(shown(by_d[d]) if d in by_d else "-" for d in dims)])
    return ["share of the bare product", *(f"d={d}" for d in dims)], rows


def _ratios(records: Sequence[Record]) -> tuple[list[str], list[list[Any]]]:
    found = [r for r in records if r["part"] == "ratios"]
    rows = []
    for r in found:
        goal = RATIOS.get(r["name"])
        told = f"{goal[0]} {goal[1]:g}" if goal and r.get("verdict") else ""
        rows.append([r["name"], r["d"], r.get("withheld") or r.get("ratio"), told, r.get("verdict", "")])
    return ["ratio", "d", "value", "goal", "verdict"], rows


def picture(path: Path, records: Sequence[Record], title: str) -> str:
    """Share of the bare product over the dimension; why there is none, or empty."""
    try:
        import matplotlib as mpl
    except ImportError:
        return "the picture: matplotlib is not installed"
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=120)
    for name in ("twin", "energy", "energy totals", "energy+4", "energy+5", "batch", "mm+compiled", "mm+eager"):
        points = sorted(
            (r["d"], r["share"])
            for r in records
            if r["part"] == "rates" and r["name"] == name and r.get("share") is not None
        )
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
    for name, by_d in SHARES.items():
        axes.plot(list(by_d), [goal[0] for goal in by_d.values()], linestyle=":", color="grey", label=f"must, {name}")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(DIMS, [str(d) for d in DIMS])
    axes.set(xlabel="d", ylabel="pairs a second, share of the bare product", title=title)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return ""


def lines(path: Path, records: Iterable[Record]) -> None:
    """Append to a results file."""
    with path.open("a", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(plain_numbers(record)) + "\n")


def short(where: Mapping[str, Any], records: Sequence[Record], unchecked: Sequence[str], seconds: float) -> str:
    """What the terminal shows last."""
    checks = [r for r in records if r["part"] == "checks"]
    wrong = [r for r in records if failed(r)]
    said = [f"NOT CHECKED: {what}" for what in unchecked] or ["NOT CHECKED: nothing was left out"]
    said += [f"FAILED: {r['part']} {r['name']}: {r.get('wrong') or r.get('error')}"[:300] for r in wrong]
    header, rows = _shares(records)
    said += _aligned([header, *[[shown(cell) for cell in row] for row in rows]])
    header, rows = _ratios(records)
    said += _aligned([header, *[[shown(cell) for cell in row] for row in rows]])
    said += [
        f"{r['part']} {r['name']}: {_told(r)}"[:200] for r in records if r["part"] in ("ceilings", "million", "tune")
    ]
    passed = sum(bool(r.get("ok")) for r in checks)
    said.append(f"{where['device']}: {passed} of {len(checks)} checks passed, {len(wrong)} failures, {seconds:.0f} s")
    return "\n".join(said)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
