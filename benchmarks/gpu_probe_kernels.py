"""Small kernels behind the suite's open questions: what tensor cores give in int8, and with specialised warps.

One tile a program, one row sum stored: next to no epilogue. They need Triton alone.
"""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def row_sums(
    x, y, out, depth, columns,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, GROUP: tl.constexpr,
    WHOLE: tl.constexpr, SPECIALISED: tl.constexpr,
):  # fmt: skip
    """out[tile of columns, i] = the sum over this tile's columns j of the root of |x_i . y_j|.

    x, y: descriptors of rows, tiles (BM, BK) and (BN, BK); out: (tiles of columns, n) float32; columns: tiles of
    columns. GROUP tiles of rows run side by side. WHOLE: int8 rows, int32 sums. SPECIALISED: loads by a warp of their
    own.
    """
    program = tl.program_id(0)
    height = tl.num_programs(0) // columns
    in_group = GROUP * columns
    first = program // in_group * GROUP
    size = tl.minimum(height - first, GROUP)
    row = first + program % in_group % size
    column = program % in_group // size
    acc = tl.zeros((BM, BN), dtype=tl.int32 if WHOLE else tl.float32)
    for step in tl.range(0, depth, num_stages=STAGES, warp_specialize=SPECIALISED):
        a = x.load([row * BM, step * BK])
        b = y.load([column * BN, step * BK])
        acc = tl.dot(a, b.T, acc, out_dtype=tl.int32 if WHOLE else tl.float32)
    k = tl.sqrt(tl.abs(acc.to(tl.float32)))
    at = column.to(tl.int64) * (height * BM) + row * BM + tl.arange(0, BM)
    tl.store(out + at, tl.sum(k, 1))
