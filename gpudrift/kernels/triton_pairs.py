"""The fused pair kernel: a tile of dot products stays in registers while every pair function and sum is taken from it.

One program works through a strip: a run of row tiles of X against one column tile of Y. For each tile

    acc   = X_tile Y_tile^T                         tensor cores, float32 accumulation
    d2    = | |x|^2 + |y|^2 - 2 acc |               abs, not max: half the issue cost, and never NaN
    k_0   = sqrt(d2)       k_f = exp2(-gamma_f d2)  a chained bandwidth is the fourth power of the one before

Row sums are written for each tile: in the layout of a Hopper accumulator (a thread holds two rows of every 16 and a
quarter of the columns) they are nearly free. Column sums would cost 1 to 2 shuffles a pair; with PARTIALS each thread
adds up its own rows along the whole strip instead, and the lanes meet once at its end. Everything goes to a slot of its
own and ``reduce_slots`` adds the slots in float64 in a fixed order: no atomics, so a result is the same to the bit from
run to run, and sums stay in float32 only within a strip.

The table says what a strip covers: row start, row end, column start, column end (relative to ``row_base`` and
``col_base``) and the slot of its first row tile. The host thus decides the order (which tiles share the L2 cache),
ragged batches, and which strips need masks: interior strips run the variant without, those at an edge or on the
diagonal of a symmetric pass the masked one.

Norms are those of the rounded rows, in float32. Offsets into the clouds are 64-bit.
"""

# Triton's language is not Python: parameters have no types, tuples grow.
# mypy: ignore-errors
# ruff: noqa: RUF005, SIM102, F821 -- Triton's language has no star in tuples; nested ifs are compile-time ones

import triton
import triton.language as tl


@triton.jit
def _product(
    x, y, row0, col0, row_last, col_last, stride_x, stride_y, depth,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """(BM, BN) float32 dot products of BM rows of x from row0 with BN rows of y from col0, over ``depth`` steps of BK.

    Rows beyond the last one repeat it (pointers) or are whatever follows in the cloud (descriptors): the caller masks
    what they give.
    """
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    if DESCRIPTORS:
        for step in tl.range(0, depth, num_stages=STAGES):
            a = x.load([row0, step * BK])
            b = y.load([col0, step * BK])
            acc = tl.dot(a, b.T, acc, input_precision=PRECISION)
    else:
        rows = row0 + tl.arange(0, BM)
        cols = col0 + tl.arange(0, BN)
        if MASKED:
            rows = tl.minimum(rows, row_last)
            cols = tl.minimum(cols, col_last)
        k = tl.arange(0, BK)
        a_at = x + rows[:, None].to(tl.int64) * stride_x + k[None, :]
        b_at = y + cols[None, :].to(tl.int64) * stride_y + k[:, None]
        for _ in tl.range(0, depth, num_stages=STAGES):
            acc = tl.dot(tl.load(a_at), tl.load(b_at), acc, input_precision=PRECISION)
            a_at += BK
            b_at += BK
    return acc


@triton.jit
def _halves(tile, BM: tl.constexpr, WIDTH: tl.constexpr):
    """The left and the right half of a (BM, WIDTH) tile: registers only, columns stay with their threads."""
    return tl.split(tl.permute(tl.reshape(tile, (BM, 2, WIDTH // 2)), (0, 2, 1)))


@triton.jit
def _pieces(tile, BM: tl.constexpr, BN: tl.constexpr, SUBTILES: tl.constexpr):
    """``SUBTILES`` (1, 2 or 4) pieces of equal width, from left to right."""
    if SUBTILES == 1:
        pieces = (tile,)
    else:
        left, right = _halves(tile, BM, BN)
        if SUBTILES == 2:
            pieces = (left, right)
        else:
            first, second = _halves(left, BM, BN // 2)
            third, fourth = _halves(right, BM, BN // 2)
            pieces = (first, second, third, fourth)
    return pieces


@triton.jit
def _own_rows(tile, BM: tl.constexpr, WIDTH: tl.constexpr, WARPS: tl.constexpr):
    """(WARPS, 8, WIDTH): column sums over the rows a thread of a Hopper accumulator holds. Right in any layout."""
    return tl.sum(tl.sum(tl.reshape(tile, (BM // (16 * WARPS), WARPS, 2, 8, WIDTH)), 0), 1)


@triton.jit
def _own(tile, BM: tl.constexpr, WIDTH: tl.constexpr, WARPS: tl.constexpr):
    """(WARPS, 8, 4): the sum over what a thread of a Hopper accumulator holds. Right in any layout."""
    parts = tl.reshape(tile, (BM // (16 * WARPS), WARPS, 2, 8, WIDTH // 8, 4, 2))
    return tl.sum(tl.sum(tl.sum(tl.sum(parts, 6), 4), 2), 0)


@triton.jit
def _none(COUNT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    """COUNT zero tensors of shape (A, B, C)."""
    zeros = ()
    for _ in tl.static_range(COUNT):
        zeros = zeros + (tl.zeros((A, B, C), dtype=tl.float32),)
    return zeros


@triton.jit
def _store(parts, slot, vectors, COUNT: tl.constexpr, LENGTH: tl.constexpr):
    """parts[slot, f, :] = vectors[f]; parts is (slots, COUNT, LENGTH)."""
    out = parts + slot.to(tl.int64) * (COUNT * LENGTH) + tl.arange(0, LENGTH)
    for f in tl.static_range(COUNT):
        tl.store(out + f * LENGTH, tl.reshape(vectors[f], (LENGTH,)))


# One compiled kernel serves every place and depth: a depth of 1 must not become a constant.
@triton.jit(do_not_specialize=["row_base", "col_base", "depth"], do_not_specialize_on_alignment=["table"])
def pair_tiles(
    x, y, norms_x, norms_y, codes_x, codes_y, labels_x, labels_y, table, gammas,
    row_parts, col_parts, square_parts, label_parts,
    row_base, col_base, stride_x, stride_y, depth,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WARPS: tl.constexpr, STAGES: tl.constexpr,
    SUBTILES: tl.constexpr, PARTIALS: tl.constexpr, DESCRIPTORS: tl.constexpr, FLATTEN: tl.constexpr,
    PRECISION: tl.constexpr, MASKED: tl.constexpr, SYMMETRIC: tl.constexpr, CLUSTERS: tl.constexpr,
    DISTANCE: tl.constexpr, RUNGS: tl.constexpr, CHAINED: tl.constexpr, SQUARES: tl.constexpr, COLUMNS: tl.constexpr,
    LABELS: tl.constexpr, TRIVIAL: tl.constexpr,
):  # fmt: skip
    """Sums of one strip; see the module.

    Pointers: x, y (n, stride) rows or descriptors of them; norms (n,) float32; codes (n,) int32, read where CLUSTERS;
    labels_x, labels_y (n, LABELS) in the dtype K is rounded to for z'Kz; table (programs, 5) int32; gammas (RUNGS + 2,)
    float32: -gamma log2(e) of each rung, then the constant taken from k before it meets the labels, and the factor.
    Out, float32, with F functions and S squared sums. PARTIALS: row_parts (slots, F, BM), col_parts (programs, F, BN),
    square_parts (programs, S, 32 WARPS); else row_parts (slots, F + S, BM), col_parts (slots, F, BN). label_parts
    (programs, LABELS).

    DISTANCE: function 0 is the distance (else the rungs alone). CHAINED: bit r set where rung r is the fourth power of
    rung r - 1. SQUARES: also sum k^2 of each rung, and d2 under CLUSTERS (else a closed form gives it). COLUMNS: column
    sums. LABELS: their number, for the one function there is; 0 for none. CLUSTERS and SYMMETRIC imply MASKED. SUBTILES
    above 1 go without PARTIALS and LABELS. TRIVIAL: sums the dot products instead: what the main loop costs.
    """
    FUNCTIONS: tl.constexpr = DISTANCE + RUNGS
    SUMS: tl.constexpr = RUNGS + (DISTANCE if CLUSTERS else 0) if SQUARES else 0
    WIDTH: tl.constexpr = BN // SUBTILES
    ONCE: tl.constexpr = "tf32" if PRECISION == "tf32x3" else PRECISION  # labels are 0 and 1: one product will do
    program = tl.program_id(0)
    entry = table + program * 5
    row_begin = row_base + tl.load(entry)
    row_end = row_base + tl.load(entry + 1)
    col0 = col_base + tl.load(entry + 2)
    col_end = col_base + tl.load(entry + 3)
    slot = tl.load(entry + 4)

    columns = _none(FUNCTIONS if PARTIALS and COLUMNS else 0, WARPS, 8, BN)
    squares = _none(SUMS if PARTIALS else 0, WARPS, 8, 4)
    if LABELS > 0:
        label = tl.arange(0, LABELS)
        met = tl.zeros((WARPS, 8, LABELS), dtype=tl.float32)

    # read here once: left in the loop, the 64-bit addresses would be kept in registers instead
    norm_y, code_y = (), ()
    for piece in tl.static_range(SUBTILES):
        cols = col0 + piece * WIDTH + tl.arange(0, WIDTH)
        col_at = (tl.minimum(cols, col_end - 1) if MASKED else cols).to(tl.int64)
        norm_y = norm_y + (tl.load(norms_y + col_at),)
        if CLUSTERS:
            code_y = code_y + (tl.load(codes_y + col_at),)

    for row0 in tl.range(row_begin, row_end, BM, flatten=FLATTEN):
        acc = _product(
            x, y, row0, col0, row_end - 1, col_end - 1, stride_x, stride_y, depth,
            BM, BN, BK, STAGES, DESCRIPTORS, PRECISION, MASKED,
        )  # fmt: skip
        rows = row0 + tl.arange(0, BM)
        row_at = (tl.minimum(rows, row_end - 1) if MASKED else rows).to(tl.int64)
        norm_x = tl.load(norms_x + row_at)
        if CLUSTERS:
            code_x = tl.load(codes_x + row_at)
        row_sums = _none(FUNCTIONS if PARTIALS else FUNCTIONS + SUMS, BM, 1, 1)
        pieces = _pieces(acc, BM, BN, SUBTILES)
        for piece in tl.static_range(SUBTILES):
            cols = col0 + piece * WIDTH + tl.arange(0, WIDTH)
            col_out = col_parts + slot.to(tl.int64) * (FUNCTIONS * BN) + piece * WIDTH + tl.arange(0, WIDTH)
            d2 = tl.abs(norm_x[:, None] + norm_y[piece][None, :] - 2 * pieces[piece])
            if MASKED:
                keep = cols[None, :] < tl.where(rows < row_end, col_end, 0)[:, None]
                if SYMMETRIC:
                    keep &= cols[None, :] > rows[:, None]
                if CLUSTERS:
                    keep &= code_x[:, None] != code_y[piece][None, :]
                d2 = tl.where(keep, d2, 0.0)
            new_rows, new_columns, new_squares, extra = (), (), (), ()
            # each function is summed as soon as it is there: little else then stays in registers
            for f in tl.static_range(FUNCTIONS):
                if f < DISTANCE:
                    k = pieces[piece] if TRIVIAL else tl.sqrt(d2)
                elif (CHAINED >> (f - DISTANCE)) & 1:
                    k = square * square
                else:
                    k = tl.exp2(d2 * tl.load(gammas + (f - DISTANCE)))
                    if MASKED:
                        k = tl.where(keep, k, 0.0)
                new_rows = new_rows + (row_sums[f] + tl.reshape(tl.sum(k, 1), (BM, 1, 1)),)
                if COLUMNS:
                    if PARTIALS:
                        new_columns = new_columns + (columns[f] + _own_rows(k, BM, BN, WARPS),)
                    else:
                        tl.store(col_out + f * BN, tl.sum(k, 0))
                if f >= DISTANCE:
                    if SQUARES or (CHAINED >> (f - DISTANCE + 1)) & 1:
                        square = k * k
                if SQUARES:
                    if f >= DISTANCE or CLUSTERS:
                        two = d2 if f < DISTANCE else square
                        if PARTIALS:
                            new_squares = new_squares + (squares[f - (FUNCTIONS - SUMS)] + _own(two, BM, BN, WARPS),)
                        else:
                            extra = extra + (row_sums[f + SUMS] + tl.reshape(tl.sum(two, 1), (BM, 1, 1)),)
                if LABELS > 0:
                    col_at = (tl.minimum(cols, col_end - 1) if MASKED else cols).to(tl.int64)
                    k = (k - tl.load(gammas + RUNGS)) * tl.load(gammas + RUNGS + 1)
                    if MASKED:
                        k = tl.where(keep, k, 0.0)
                    z_y = tl.load(labels_y + col_at[:, None] * LABELS + label[None, :])
                    z_x = tl.load(labels_x + row_at[:, None] * LABELS + label[None, :])
                    meeting = tl.dot(k.to(z_y.dtype), z_y, input_precision=ONCE) * z_x.to(tl.float32)
                    met += _own_rows(meeting, BM, LABELS, WARPS)
            row_sums = new_rows + extra
            if PARTIALS:
                columns = new_columns
                squares = new_squares
        _store(row_parts, slot, row_sums, FUNCTIONS if PARTIALS else FUNCTIONS + SUMS, BM)
        slot += 1

    if PARTIALS and COLUMNS:
        out = col_parts + program.to(tl.int64) * (FUNCTIONS * BN) + tl.arange(0, BN)
        for f in tl.static_range(FUNCTIONS):
            tl.store(out + f * BN, tl.sum(tl.sum(columns[f], 0), 0))
    if PARTIALS:
        _store(square_parts, program, squares, SUMS, WARPS * 32)
    if LABELS > 0:
        tl.store(label_parts + program.to(tl.int64) * LABELS + label, tl.sum(tl.sum(met, 0), 0))


@triton.jit
def reduce_slots(
    parts, order, starts, dest, length, out, out_stride, VECTORS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[f, dest[t] : dest[t] + length[t]] += the sum of parts[s, f, :length[t]] over the slots s of target t.

    Program (t, f); the slots of t are order[starts[t] : starts[t + 1]], added in that order in float64. parts: (slots,
    VECTORS, BLOCK) float32; order, starts, length int32, dest int64; out: float64, out_stride apart from function to
    function. Targets must not overlap.
    """
    target = tl.program_id(0)
    f = tl.program_id(1)
    at = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for place in range(tl.load(starts + target), tl.load(starts + target + 1)):
        slot = tl.load(order + place).to(tl.int64)
        total += tl.load(parts + (slot * VECTORS + f) * BLOCK + at).to(tl.float64)
    valid = at < tl.load(length + target)
    place_out = out + f.to(tl.int64) * out_stride + tl.load(dest + target) + at
    tl.store(place_out, tl.load(place_out, mask=valid, other=0.0) + total, mask=valid)
