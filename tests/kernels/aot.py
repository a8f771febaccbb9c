"""Compile every shipped variant of a GPU kernel without a GPU, and judge the machine code.

``python tests/kernels/aot.py [--all] [--write-budget]`` prints one table a Triton release and exits with 1 on a fault.
The parent imports no Triton: each release lies in a folder of its own, and a child process has that folder in front.

What is compiled is a choice of what the schedule table ships (``--all``: everything, which takes many minutes), or the
``variants()`` of a module given instead: dicts with

    name           unique
    kernel         the jit function
    constexprs     {argument: value}
    signature      {argument: type} of all others: "*fp16", "i32", "tensordesc<fp16[128, 64]>"
    options        num_warps and other launch options
    arches         a subset of 80, 90, 100
    tensor_cores   whether tensor cores must do the products (else they must not: they would round)
    aligned        the scalar arguments that are multiples of 16 (pointers always are)

What is judged (``faults``): tensor-core instructions, stack and spills, shared memory, and registers against a budget
kept a release in aot_budget.json. One thread's machine code is counted; nothing is run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
SHIPPED = ("chosen", "everything")
KERNELS = ROOT / "gpudrift" / "kernels"
BUDGET = Path(__file__).with_name("aot_budget.json")
RELEASES = ("3.6.0", "newest")

Row = dict[str, Any]

# Shared memory a block may ask for (CUDA programming guide, technical specifications), and what a multiprocessor has
# for all its blocks, of which each block takes 1 KiB for the system.
_SHARED_A_BLOCK = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
_SHARED = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
_REGISTERS, _THREADS = 65536, 2048

# The product instructions: (SASS family, PTX opcode)
_TENSOR_CORES = {80: ("HMMA", "mma.sync"), 90: ("HGMMA", "wgmma.mma_async"), 100: ("UTCHMMA", "tcgen05.mma")}
_COUNTED = ("HMMA", "HGMMA", "UTCHMMA", "SHFL", "MUFU", "FFMA", "LDL", "STL")
EDGE_STACK = 64  # bytes a thread an edge launch may spill
KNOWN_STACK = {("tf32 dall labels clusters", 100): 8}  # no tile was found without, on Triton 3.6.0
SLACK = 8  # registers a thread are handed out in eights


# ---- the parent: plain Python ----


def folder(release: str) -> Path:
    """Where a Triton release lies: ``GPUDRIFT_TRITON``, or .triton in the checkout."""
    found = Path(os.environ.get("GPUDRIFT_TRITON", ROOT / ".triton")) / release
    if not (found / "triton").is_dir():
        raise FileNotFoundError(f"no Triton in {found}: run `make triton`, or set GPUDRIFT_TRITON")
    return found


def start(release: str, script: Path, *arguments: str, root: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    """A child process that runs a script with this Triton in front of any other, and the gpudrift that lies in root."""
    home = folder(release)
    paths = [str(home), str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {
        "PYTHONPATH": os.pathsep.join(paths),
        "TRITON_CACHE_DIR": str(ROOT / ".triton" / "cache" / release),  # keyed by a hash of the source and options
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "error", str(script), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=os.environ | settings | environment, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Its standard output; an error with the end of its standard error if it failed."""
    output, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args} ended with {process.returncode}:\n{errors[-3000:]}")
    return output


def compile_all(module: str = "chosen", releases: Sequence[str] = RELEASES) -> dict[str, list[Row]]:
    """One row a variant and architecture, by release; the releases are compiled side by side. module: the path of one,
    or which of the shipped variants: ``SHIPPED``."""
    children = {release: start(release, Path(__file__), "--child", module) for release in releases}
    outputs = {release: finish(child).splitlines() for release, child in children.items()}
    return {release: [json.loads(line) for line in lines if _is_row(line)] for release, lines in outputs.items()}


def _is_row(line: str) -> bool:
    """The compiler prints its own complaints among the rows."""
    return line.startswith('{"name": ')


def faults(row: Row, budget: Mapping[str, Mapping[str, int]] | None) -> list[str]:
    """All that is wrong with a compiled variant, in words. budget: of its release, ``title`` -> registers, shared;
    None: judge it without."""
    name, arch = title(row), row["arch"]
    if "error" in row:
        return [f"{name}: does not compile: {row['error']}"]
    found = []
    sass, ptx = _TENSOR_CORES[arch]
    uses = row["counts"][sass] > 0 and row["ptx_products"] > 0
    if row["tensor_cores"] and not uses:
        found.append(f"{name}: no {sass} ({ptx}): the products run on CUDA cores")
    if not row["tensor_cores"] and any(row["counts"][family] for family, _ in _TENSOR_CORES.values()):
        found.append(f"{name}: tensor cores in a variant that must not round its operands")
    # Launches at an edge or on the diagonal cover few tiles; those of whole tiles, or with clusters, spill nothing.
    edge = row["name"].endswith((" masked", " diagonal"))
    allowed = EDGE_STACK if edge else KNOWN_STACK.get((row["name"], arch), 0)
    if row["stack"] > allowed or (not allowed and row["counts"]["LDL"] + row["counts"]["STL"]):
        spills = row["counts"]["LDL"] + row["counts"]["STL"]
        found.append(f"{name}: spills: {row['stack']} B of stack, {spills} local loads and stores")
    if row["shared"] > _SHARED_A_BLOCK[arch]:
        found.append(f"{name}: {row['shared']} B of shared memory, a block has {_SHARED_A_BLOCK[arch]}")
    if budget is None:
        return found
    kept = budget.get(name)
    if kept is None:
        return [*found, f"{name}: not in the budget: run `make budget` and look at the difference"]
    if row["registers"] > kept["registers"] + SLACK:
        found.append(f"{name}: {row['registers']} registers, {kept['registers']} before")
    if row["shared"] > kept["shared"]:
        found.append(f"{name}: {row['shared']} B of shared memory, {kept['shared']} before")
    before = blocks(arch, row["threads"], kept["registers"], kept["shared"])
    if row["blocks"] < before:
        found.append(f"{name}: {row['blocks']} blocks a multiprocessor, {before} before")
    return found


def blocks(arch: int, threads: int, registers: int, shared: int) -> int:
    """Blocks that fit a multiprocessor at once."""
    by_registers = _REGISTERS // (threads * (-(-registers // 8) * 8))
    return min(by_registers, _THREADS // threads, _SHARED[arch] // (shared + 1024))


def title(row: Row) -> str:
    return f"{row['name']} sm_{row['arch']}"


def table(rows: Sequence[Row]) -> str:
    """Rows as text; counts are instructions in the machine code, of one thread."""
    heads = ["variant", "arch", "thr", "regs", "shared", "stack", "blk/SM", *_COUNTED, "all", "s"]
    lines = [heads]
    for row in rows:
        start = [row["name"], f"sm_{row['arch']}"]
        if "error" in row:
            lines.append([*start, row["error"]])
            continue
        numbers = [row[key] for key in ("threads", "registers", "shared", "stack", "blocks")]
        counts = [row["counts"][family] for family in _COUNTED]
        lines.append([*start, *map(str, [*numbers, *counts, row["instructions"]]), f"{row['seconds']:.1f}"])
    widths = [max(len(line[at]) for line in lines if len(line) == len(heads)) for at in range(len(heads))]
    left = [True, True] + [False] * (len(heads) - 2)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if words else cell.rjust(width)
            for cell, width, words in zip(line, widths, left, strict=False)
        )
        for line in lines
    )


def budget_of(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    return {title(row): {"registers": row["registers"], "shared": row["shared"]} for row in rows if "error" not in row}


def _a_line_a_variant(budget: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """JSON, so that a change of one variant is a change of one line."""
    parts = []
    for version, kept in sorted(budget.items()):
        lines = ",\n".join(f'  "{name}": {json.dumps(numbers)}' for name, numbers in sorted(kept.items()))
        parts.append(f' "{version}": {{\n{lines}\n }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read_budget() -> dict[str, dict[str, dict[str, int]]]:
    """By Triton version, then ``title``."""
    return json.loads(BUDGET.read_text()) if BUDGET.exists() else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--all", action="store_true", help="every variant the schedule table ships, without a budget")
    parser.add_argument("--write-budget", action="store_true", help="keep today's registers and shared memory")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        for row in _rows(options.child):
            print(json.dumps(row), flush=True)
        return 0
    found = compile_all("everything" if options.all else "chosen")
    if options.write_budget and not options.all:
        kept = {rows[0]["triton"]: budget_of(rows) for rows in found.values()}
        BUDGET.write_text(_a_line_a_variant(kept))
    kept, wrong = read_budget(), []
    for rows in found.values():
        version = rows[0]["triton"]
        budget = None if options.all else kept.get(version, {})
        print(f"\nTriton {version}\n{table(rows)}")
        wrong += [f"Triton {version}: {fault}" for row in rows for fault in faults(row, budget)]
    print("\n" + "\n".join(wrong or ["no faults"]))
    return 1 if wrong else 0


# ---- the child: one Triton release ----


# What is compiled of all the schedule table ships, by the sums and the mask in a variant's name. The default precision
# in every kind of sum: the unmasked pass is the one whose speed counts, the one with clusters holds the most and spills
# first. The others share its code but for the products: where they hold the most.
_MOST = [("five", "clusters"), ("labels", "clusters")]
_CHOSEN = {
    "float16": [(sums, mask) for sums in ("energy", "default", "labels") for mask in ("", "diagonal", "clusters")]
    + [("own", ""), ("five", "clusters")],
    "bfloat16": [("energy", "")],
    "tf32": _MOST,
    "float32": _MOST,
}


def _shipped(everything: bool) -> Iterator[dict[str, Any]]:
    """The variants of the schedule table: those chosen above, or all."""
    pairs, schedules = _load(KERNELS / "triton_pairs.py"), _load(KERNELS / "schedules.py")
    for variant in schedules.variants():
        arch, precision, _, sums, *mask = variant["name"].split()
        if everything or (sums, "".join(mask)) in _CHOSEN[precision]:
            yield variant | {"name": variant["name"].removeprefix(f"{arch} "), "kernel": pairs.pair_tiles}


def _rows(module: str) -> Iterator[Row]:
    import triton

    listed = _load(Path(module)).variants() if module not in SHIPPED else _shipped(module == "everything")
    for variant in listed:
        for arch in variant["arches"]:
            row: Row = {"name": variant["name"], "arch": arch, "triton": triton.__version__}
            print(title(row), file=sys.stderr, flush=True)  # the last line if the compiler dies
            try:
                row |= _measured(variant, arch)
            except Exception as error:  # noqa: BLE001 -- whatever the compiler raises is the finding
                row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[-200:]}"
            yield row


def _load(path: Path) -> ModuleType:
    """The module at a path, without its package: that would import torch."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module at {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _measured(variant: Mapping[str, Any], arch: int) -> Row:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    started = _processor_seconds()
    kernel, given = variant["kernel"], variant["signature"]
    signature = {name: given.get(name, "constexpr") for name in kernel.arg_names}
    aligned = [
        at for at, (name, kind) in enumerate(signature.items()) if kind.startswith("*") or name in variant["aligned"]
    ]
    source = ASTSource(kernel, signature, variant["constexprs"], {(at,): [["tt.divisibility", 16]] for at in aligned})
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=variant["options"])
    counts, usage = _machine_code(Path(triton.__file__).parent, compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", ptx)
    if threads is None:
        raise ValueError("the PTX states no number of threads")
    row = {
        "tensor_cores": variant["tensor_cores"],
        "threads": int(threads[1]),
        "registers": usage["REG"],
        "stack": usage["STACK"],
        "shared": compiled.metadata.shared,
        "ptx_products": ptx.count(_TENSOR_CORES[arch][1]),
        "counts": {family: counts[family] for family in _COUNTED},
        "instructions": sum(counts.values()),
        "seconds": _processor_seconds() - started,
    }
    return row | {"blocks": blocks(arch, row["threads"], row["registers"], row["shared"])}


def _processor_seconds() -> float:
    """Of this process and the assemblers it has run."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _machine_code(triton: Path, cubin: bytes) -> tuple[Counter[str], dict[str, int]]:
    """Instructions by family (the opcode up to its first dot), and what the cubin says it uses."""
    tool = triton / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        sass, usage = (
            subprocess.run([tool, option, file.name], check=True, capture_output=True, text=True).stdout
            for option in ("-sass", "-res-usage")
        )
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", sass, re.MULTILINE)
    used = {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    if not opcodes or used.keys() != {"REG", "STACK"}:
        raise ValueError(f"cuobjdump said nothing of use: {usage[-200:]!r}")
    return Counter(opcodes), used


if __name__ == "__main__":
    raise SystemExit(main())
