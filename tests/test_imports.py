"""The arrows between modules, read from the source: who may import whom, and what is loaded late."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import gpudrift

ROOT = Path(gpudrift.__file__).parent


@dataclass(frozen=True)
class Import:
    """One imported name. ``name``: dotted, as far as it is a module of this package, else the top package's full name.
    ``when``: "load" (runs when the module is imported), "call" (inside a function), "typing" (never runs)."""

    module: str
    name: str
    when: str


class _Finder(ast.NodeVisitor):
    def __init__(self, module: str, package: str) -> None:
        self.module, self.package, self.when = module, package, "load"
        self.found: list[Import] = []

    def _within(self, when: str, nodes: list[ast.stmt]) -> None:
        before, self.when = self.when, self.when if self.when == "typing" else when
        for node in nodes:
            self.visit(node)
        self.when = before

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._within("call", node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        typing = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        self._within("typing" if typing else self.when, node.body)
        self._within(self.when, node.orelse)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [Import(self.module, alias.name, self.when) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
            base = ".".join([*above, *([base] if base else [])])
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            self.found.append(Import(self.module, inner if inner in modules() else base, self.when))

    def visit_Call(self, node: ast.Call) -> None:
        """``importlib.import_module("x")`` and ``__import__("x")`` are imports too."""
        called = ast.unparse(node.func)
        literal = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if called in ("__import__", "import_module", "importlib.import_module"):
            self.found.append(Import(self.module, str(literal), self.when))
        self.generic_visit(node)


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["gpudrift", *path.relative_to(ROOT).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_in(source: str, module: str, package: str) -> list[Import]:
    finder = _Finder(module, package)
    finder.visit(ast.parse(source))
    return finder.found


@cache
def imports() -> tuple[Import, ...]:
    found: list[Import] = []
    for module, path in modules().items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found += imports_in(path.read_text(encoding="utf-8"), module, package)
    return tuple(found)


def inside(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def offenders(importers: tuple[str, ...], allowed: tuple[str, ...]) -> list[Import]:
    """Imports of this package by ``importers`` that are none of ``allowed``; for typing alone all are allowed."""
    return [
        i
        for i in imports()
        if inside(i.module, *importers)
        and inside(i.name, "gpudrift")
        and i.when != "typing"
        and not inside(i.name, *importers, *allowed)
    ]


def users(package: str, *whens: str) -> set[str]:
    return {i.module for i in imports() if inside(i.name, package) and i.when in (whens or ("load", "call", "typing"))}


def named(*names: str) -> tuple[str, ...]:
    return tuple(f"gpudrift.{name}" for name in names)


def test_the_parser_sees_every_kind_of_import() -> None:
    source = """
import triton.language as tl
from gpudrift import kernels
from . import errors
from ..x import y
class A:
    import ray
def f():
    import numpy
    if True:
        from gpudrift.kernels import layout
if TYPE_CHECKING:
    import pyarrow
    def g():
        import gpudrift.pipeline
else:
    import fcntl
try:
    importlib.import_module("torch")
except ImportError:
    import json
"""
    found = {(i.name, i.when) for i in imports_in(source, "gpudrift.metrics.new", "gpudrift.metrics")}
    assert found == {
        ("triton.language", "load"),
        ("gpudrift.kernels", "load"),
        ("gpudrift.metrics", "load"),
        ("gpudrift.x", "load"),
        ("ray", "load"),
        ("numpy", "call"),
        ("gpudrift.kernels.layout", "call"),
        ("pyarrow", "typing"),
        ("gpudrift.pipeline", "typing"),
        ("fcntl", "load"),
        ("torch", "load"),
        ("json", "load"),
    }


def test_the_package_is_read_whole() -> None:
    assert {"gpudrift", "gpudrift.kernels.torch_ops", "gpudrift.__main__"} <= modules().keys()
    assert Import("gpudrift.pipeline", "gpudrift.history", "load") in imports()
    assert Import("gpudrift.pipeline", "gpudrift.backfill", "call") in imports()


def test_every_import_of_the_package_names_a_module_that_exists() -> None:
    assert [i for i in imports() if inside(i.name, "gpudrift") and i.name not in modules()] == []


def test_kernels_import_no_stage_and_run_with_torch_alone() -> None:
    assert offenders(named("kernels"), named("errors", "device", "records")) == []
    outside = {
        i.name.partition(".")[0]
        for i in imports()
        if inside(i.module, "gpudrift.kernels") and not inside(i.name, "gpudrift")
    }
    assert outside - set(sys.stdlib_module_names) <= {"torch", "numpy", "triton"}


def test_metrics_import_no_stage() -> None:
    assert offenders(named("metrics"), named("kernels", "errors", "records")) == []


def test_sketches_know_the_panel_and_no_stage_after_it() -> None:
    allowed = named("metrics", "kernels", "panel", "project", "fingerprint", "files", "errors", "records")
    assert offenders(named("sketch"), allowed) == []


@pytest.mark.parametrize("leaf", ["errors", "records"])
def test_errors_and_records_import_nothing_of_the_package(leaf: str) -> None:
    assert offenders(named(leaf), ()) == []


def test_the_encoder_check_needs_metrics_and_records_alone() -> None:
    assert offenders(named("encoder", "matching"), named("metrics", "records")) == []


def test_the_source_imports_no_other_stage() -> None:
    assert offenders(named("source"), named("errors", "records", "device")) == []


def test_only_config_and_main_know_hydra() -> None:
    allowed = set(named("config.compose", "__main__"))
    assert users("hydra") <= allowed
    assert users("omegaconf") <= allowed


def test_stages_take_no_config() -> None:
    """Those who may know the job record: the entry, the jobs, and what records a run's settings."""
    outside = {module for module in users("gpudrift.config", "load", "call") if not inside(module, "gpudrift.config")}
    assert outside <= set(
        named(
            *("__main__", "pipeline", "context", "pinning", "verdict", "lagged"),
            *("backfill", "backtest", "compare", "result", "stream.job", "outcomes.stage"),
        )
    )


def test_matplotlib_stays_under_report_and_is_loaded_late() -> None:
    assert all(inside(module, "gpudrift.report") for module in users("matplotlib"))
    drawing = {m for m in modules() if m != "gpudrift.report" and "matplotlib" in reached(m)}
    loads = {(i.module, i.name) for i in imports() if i.when == "load" and i.name in drawing}
    assert {module for module, _ in loads if not inside(module, "gpudrift.report")} == set()


@pytest.mark.parametrize("package", ["triton", "ray", "fsspec"])
def test_optional_engines_are_nowhere_loaded_with_a_module(package: str) -> None:
    """A Triton kernel's own module is loaded by the backend chooser alone, inside a function."""
    late = {m for m in users(package, "load") if not m.startswith("gpudrift.kernels.triton_")}
    assert late == set()
    kernels = {m for m in modules() if m.startswith("gpudrift.kernels.triton_")}
    assert {i.module for i in imports() if i.name in kernels and i.when == "load"} <= kernels


def test_the_engine_knows_its_tasks_and_no_stage() -> None:
    allowed = named("kernels", "source", "sketch", "records", "errors", "files", "device")
    assert [
        i
        for i in offenders(named("engine"), allowed)
        if i.name != "gpudrift"  # its version, which finished blocks depend on
    ] == []
    assert users("ray") <= {"gpudrift.engine.ray"}
    assert users("gpudrift.engine.ray") <= {"gpudrift.context"}


def test_stages_know_that_pairs_are_computed_and_not_where() -> None:
    stages = named("movement", "reference", "scoring", "lagged", "segments", "pinning", "examine")
    known = {i.name for i in imports() if inside(i.module, *stages) and inside(i.name, "gpudrift.engine")}
    assert known == {"gpudrift.engine.pairs"}


def test_only_files_knows_the_lock() -> None:
    assert users("fcntl") == {"gpudrift.files"}


def test_no_stage_calls_back() -> None:
    """Jobs know context, pinning and verdict; these know no job; the pipeline is known to the entry alone."""
    assert users("gpudrift.pipeline") == {"gpudrift.__main__"}
    shared = ("context", "pinning", "verdict", "notes", "lagged", "examine", "outcomes.stage", "sinks")
    jobs = named("pipeline", "backfill", "backtest", "compare", "plan", "stream", *shared)
    assert all(inside(module, *jobs) for name in shared for module in users(f"gpudrift.{name}"))
    assert [
        i for i in imports() if inside(i.module, *named(*shared)) and inside(i.name, *named("stream", "backfill"))
    ] == []


def test_what_a_stream_remembers_of_files_knows_no_rows() -> None:
    assert offenders(named("stream.inbox", "stream.ledger", "stream.waiting", "stream.stages"), named("errors")) == []


def test_the_reference_implementation_is_for_tests() -> None:
    assert users("gpudrift.kernels.reference") == set()


@cache
def reached(module: str) -> frozenset[str]:
    """Everything that importing a module loads, by the source: this package's modules, and others by top package."""
    found: set[str] = set()
    left = [module]
    while left:
        current = left.pop()
        if current in found:
            continue
        found.add(current)
        if current not in modules():
            continue
        left += [current.rpartition(".")[0]] if "." in current else []  # a package is loaded before its modules
        left += [
            i.name if inside(i.name, "gpudrift") else i.name.partition(".")[0]
            for i in imports()
            if i.module == current and i.when == "load"
        ]
    return frozenset(found)


HEAVY = {"torch", "numpy", "pyarrow", "matplotlib", "rich", "hydra", "omegaconf", "safetensors"}


@pytest.mark.parametrize("module", ["gpudrift", *named("errors", "records", "config", "windows", "calibrate", "files")])
def test_light_modules_reach_nothing_heavy(module: str) -> None:
    assert reached(module) & HEAVY == set()


def test_the_command_line_loads_torch_and_plots_late() -> None:
    assert reached("gpudrift.__main__") & HEAVY == {"hydra"}
    assert "matplotlib" not in reached("gpudrift.pipeline")


def test_importing_the_light_modules_loads_no_torch() -> None:
    """What the source says, seen in an interpreter."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT.parent)!r}); before = set(sys.modules)\n"
        "import gpudrift, gpudrift.errors, gpudrift.records, gpudrift.config\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "gpudrift" in loaded
    assert set(loaded) & HEAVY == set()
