"""The shipped GPU kernels compile to good machine code on two Triton releases, and the checks see planted faults."""

from __future__ import annotations

from pathlib import Path

import aot
import pytest

# A product tile with row and column sums. Every variant but the first has one fault, planted by its arguments.
TOY = """
import triton
import triton.language as tl


@triton.jit
def tile(x, y, out, depth, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    rows, cols, k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    a_at = x + rows[:, None] * depth + k[None, :]
    b_at = y + cols[None, :] * depth + k[:, None]
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for _ in range(0, depth, BK):
        acc = tl.dot(tl.load(a_at), tl.load(b_at), acc, input_precision=PRECISION)
        a_at += BK
        b_at += BK
    root = tl.sqrt(acc)
    tl.store(out + rows, tl.sum(root, 1))
    tl.store(out + BM + cols, tl.sum(root, 0))


def variants():
    def variant(name, dtype="*fp16", tensor_cores=True, arches=(90,), **changed):
        constexprs = {"BM": 64, "BN": 128, "BK": 64, "PRECISION": "tf32"}
        options = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
        for key, value in changed.items():
            (constexprs if key in constexprs else options)[key] = value
        return {
            "name": name, "kernel": tile, "constexprs": constexprs, "options": options, "arches": arches,
            "signature": {"x": dtype, "y": dtype, "out": "*fp32", "depth": "i32"},
            "tensor_cores": tensor_cores, "aligned": {"depth"},
        }

    return [
        variant("good", arches=(80, 90, 100)),
        variant("good in tf32", dtype="*fp32", arches=(80, 90, 100), BK=32),
        variant("spilled", BM=128, BN=256),
        variant("shared", BM=128, BK=128, num_stages=5),
        variant("cuda cores", dtype="*fp32", PRECISION="ieee"),
        variant("rounded", dtype="*fp32", tensor_cores=False),
        variant("uncompilable", BM=96),
    ]
"""


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, aot.Row]]:
    """By release, then ``aot.title``."""
    source = tmp_path_factory.mktemp("toys") / "toy.py"
    source.write_text(TOY)
    return {release: {aot.title(row): row for row in rows} for release, rows in aot.compile_all(str(source)).items()}


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[aot.Row]]:
    found = aot.compile_all()
    for rows in found.values():
        print(f"\nTriton {rows[0]['triton']}\n{aot.table(rows)}")
    return found


@pytest.mark.parametrize("release", aot.RELEASES)
def test_shipped_kernels_use_tensor_cores_and_never_spill_within_their_budget(
    release: str, shipped: dict[str, list[aot.Row]]
) -> None:
    rows = shipped[release]
    version = rows[0]["triton"]
    budget = aot.read_budget().get(version, {})
    assert [fault for row in rows for fault in aot.faults(row, budget)] == []
    assert {row["arch"] for row in rows} == {80, 90, 100}
    assert budget.keys() == {aot.title(row) for row in rows}, "the budget names what is no longer shipped"


@pytest.mark.parametrize("release", aot.RELEASES)
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("good", None),
        ("good in tf32", None),
        ("spilled", "spills: "),
        ("shared", "B of shared memory, a block has 232448"),
        ("cuda cores", "no HGMMA"),
        ("rounded", "tensor cores in a variant that must not round"),
        ("uncompilable", "does not compile"),
    ],
)
def test_a_planted_fault_is_found_and_nothing_else(
    release: str, name: str, fault: str | None, toys: dict[str, dict[str, aot.Row]]
) -> None:
    rows = [row for row in toys[release].values() if row["name"] == name]
    found = [told for row in rows for told in aot.faults(row, aot.budget_of(rows))]
    assert len(rows) == (3 if fault is None else 1)
    assert len(found) == (0 if fault is None else 1)
    assert fault is None or fault in found[0]


@pytest.mark.parametrize("release", aot.RELEASES)
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"registers": -aot.SLACK}, None),
        ({"registers": -aot.SLACK - 1}, "registers"),
        ({"shared": -1}, "B of shared memory"),
    ],
)
def test_a_regression_against_the_budget_is_found(
    release: str, change: dict[str, int], fault: str | None, toys: dict[str, dict[str, aot.Row]]
) -> None:
    row = toys[release]["good sm_80"]
    kept = {key: row[key] + change.get(key, 0) for key in ("registers", "shared")}
    found = aot.faults(row, {"good sm_80": kept})
    assert [fault in told for told in found if fault] == ([True] if fault else [])
    assert bool(found) is (fault is not None)


def test_a_variant_without_a_budget_is_a_fault(toys: dict[str, dict[str, aot.Row]]) -> None:
    (fault,) = aot.faults(toys["3.6.0"]["good sm_90"], {})
    assert "make budget" in fault


def test_losing_a_block_a_multiprocessor_is_a_fault_within_the_slack() -> None:
    counts = dict.fromkeys(("HMMA", "HGMMA", "UTCHMMA", "LDL", "STL"), 0) | {"HGMMA": 4}
    row = {"name": "edge", "arch": 90, "tensor_cores": True, "counts": counts, "ptx_products": 4, "stack": 0}
    row |= {"threads": 256, "registers": 136, "shared": 1024, "blocks": aot.blocks(90, 256, 136, 1024)}
    (fault,) = aot.faults(row, {"edge sm_90": {"registers": 128, "shared": 1024}})
    assert "1 blocks a multiprocessor, 2 before" in fault


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "fit"),
    [(90, 256, 128, 98304, 2), (90, 256, 129, 98304, 1), (90, 256, 64, 113 << 10, 2), (90, 256, 64, 114 << 10, 1),
     (80, 128, 32, 0, 16), (90, 1024, 128, 0, 0)],
)  # fmt: skip
def test_blocks_a_multiprocessor_follow_from_registers_shared_memory_and_threads(
    arch: int, threads: int, registers: int, shared: int, fit: int
) -> None:
    assert aot.blocks(arch, threads, registers, shared) == fit


def test_a_missing_release_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPUDRIFT_TRITON", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="make triton"):
        aot.compile_all()
