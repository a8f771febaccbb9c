"""The fused kernels give the float64 definition's sums under Triton's interpreter, and a dropped mask is seen."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import aot
import pytest

SCRIPT = Path(__file__).with_name("interpreter.py")
Found = dict[str, dict[str, str]]


def start(release: str, *arguments: str, root: Path = aot.ROOT) -> subprocess.Popen[str]:
    return aot.start(release, SCRIPT, *arguments, root=root, TRITON_INTERPRET="1")


def finish(child: subprocess.Popen[str]) -> dict[str, str]:
    """What was wrong, by case."""
    rows = [json.loads(line) for line in aot.finish(child).splitlines()]
    return {row["name"]: row["wrong"] for row in rows}


@pytest.fixture(scope="module")
def interpreted() -> Found:
    children = {release: start(release) for release in aot.RELEASES}
    return {release: finish(child) for release, child in children.items()}


@pytest.mark.parametrize("release", aot.RELEASES)
def test_sums_equal_the_definition(release: str, interpreted: Found) -> None:
    assert {name: wrong for name, wrong in interpreted[release].items() if wrong} == {}
    assert len(interpreted[release]) > 50


def test_each_switch_of_the_kernel_is_in_a_case_that_can_show_it(interpreted: Found) -> None:
    names = list(interpreted["3.6.0"])
    switches = [f"kind={k}" for k in ("cross", "self", "batch")] + [f"arch={a}" for a in (80, 90, 100)]
    switches += [f"{s}={on}" for s in ("clusters", "squares", "margins", "groups") for on in (True, False)]
    for precision in ("float16", "float32"):
        of_it = [name for name in names if f"precision={precision} " in name]
        assert [switch for switch in switches if not any(f"{switch} " in name for name in of_it)] == []


# Each fault is planted by a change of the kernels' source text, in a copy.
PLANTED = {
    "columns beyond the last count": ("(rows < row_end, col_end, 0)", "(rows < row_end, col_end + 1, 0)"),
    "rows beyond the last count": ("(rows < row_end, col_end, 0)", "(rows < row_end + 1, col_end, 0)"),
    "self pairs count": ("cols[None, :] > rows[:, None]", "cols[None, :] >= rows[:, None]"),
    "pairs of one cluster count": ("keep &= code_x[:, None] !=", "keep |= code_x[:, None] !="),
    "a piece of the tile is not stored": ("piece * WIDTH + tl.arange(0, WIDTH)", "tl.arange(0, WIDTH)"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_seen(fault: str, tmp_path: Path) -> None:
    shutil.copytree(aot.ROOT / "gpudrift", tmp_path / "gpudrift", ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "gpudrift" / "kernels" / "triton_pairs.py"
    before, after = PLANTED[fault]
    assert before in source.read_text(), "the text to change is gone: plant the fault anew"
    source.write_text(source.read_text().replace(before, after))
    found = finish(start("newest", "--short", root=tmp_path))
    assert any(found.values())


def test_the_short_form_alone_passes() -> None:
    found = finish(start("newest", "--short"))
    assert found
    assert not any(found.values())
