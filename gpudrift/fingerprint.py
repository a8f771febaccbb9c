"""What identifies the rows of a window, and an order of rows that does not depend on how files hold them.

A row's hash is a 64-bit multilinear hash of its float32 bits (Carter and Wegman 1979, with fixed odd multipliers, then
the splitmix64 finaliser). A window's fingerprint is its row count and the sum of its row hashes modulo 2^64: equal for
equal rows in any order, on any file layout. It guards against change, not against an adversary.

``canonical`` sorts a window's rows by a seeded hash: a pseudo-random order that is the same however the rows arrived.
Every sum after it is therefore the same to the bit, and the first n0 rows of a window are a random sample of it.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpudrift.errors import ConfigError, DataError
from gpudrift.records import Cloud, Repeats, RowFindings

_CHUNK = 1 << 21  # elements at a time: 16 MB of int64
_EXAMPLES = 10  # groups of duplicate rows that are named


def row_hashes(rows: Tensor) -> NDArray[np.uint64]:
    """(n,) uint64 hashes of rows (n, d) float32 on the CPU."""
    n, d = rows.shape
    multipliers = np.random.default_rng(0x6770).integers(0, 2**63, size=d, dtype=np.uint64) * np.uint64(2) + np.uint64(
        1
    )
    weights = torch.from_numpy(multipliers.view(np.int64))
    hashes = torch.empty(n, dtype=torch.int64)
    step = max(1, _CHUNK // d)
    for start in range(0, n, step):
        # + 0.0 makes -0.0 and 0.0 one value; int64 wraps modulo 2^64, which is what the hash wants
        bits = (rows[start : start + step] + 0.0).view(torch.int32).to(torch.int64)
        hashes[start : start + step] = (bits * weights).sum(1)
    return mix(hashes.numpy().view(np.uint64))


def fingerprint(hashes: NDArray[np.uint64]) -> str:
    """``rows-hash`` of a window from its row hashes."""
    return f"{len(hashes)}-{int(hashes.sum(dtype=np.uint64)):016x}"


def canonical(cloud: Cloud, seed: int) -> tuple[Cloud, tuple[str, ...]]:
    """Bring each window's rows into their canonical order, in place, fingerprint the windows and count duplicate rows.

    Returns the cloud with ids, clusters and segments in the same order, and one fingerprint a window. Needs a few
    columns of the largest window as extra memory.
    """
    import pyarrow as pa

    orders, prints, quality = [], [], []
    for k, (start, end) in enumerate(itertools.pairwise(cloud.offsets)):
        hashes = row_hashes(cloud.embeddings[start:end])
        prints.append(fingerprint(hashes))
        found = repeats(hashes, None if cloud.ids is None else cloud.ids.slice(start, end - start))
        quality.append(replace(cloud.quality[k], found=RowFindings(duplicates=found)))
        order = _order(hashes, seed, _ties(cloud, start, hashes))
        _permute(cloud.embeddings[start:end], torch.from_numpy(order))
        orders.append(order + start)
    take = pa.array(np.concatenate(orders) if orders else np.zeros(0, dtype=np.int64))
    ordered = Cloud(
        embeddings=cloud.embeddings,
        windows=cloud.windows,
        offsets=cloud.offsets,
        quality=tuple(quality),
        ids=None if cloud.ids is None else cloud.ids.take(take),
        clusters=None if cloud.clusters is None else cloud.clusters.take(take),
        segments={name: column.take(take) for name, column in cloud.segments.items()},
        encoder_id=cloud.encoder_id,
    )
    return ordered, tuple(prints)


def repeats(keys: NDArray[np.uint64], ids: Any) -> Repeats:
    """Rows of equal key; ``ids``: Arrow array of their names, or None. A group is named by the least of its ids."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    firsts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(ranked) else np.zeros(0, dtype=np.int64)
    sizes = np.diff(np.r_[firsts, len(ranked)])
    groups = np.flatnonzero(sizes > 1)
    if not len(groups):
        return Repeats(0, 0)
    largest = groups[np.lexsort((ranked[firsts[groups]], -sizes[groups]))][:_EXAMPLES]
    names: list[str] = []
    for group in largest if ids is not None else ():
        own = ids.take(order[firsts[group] : firsts[group] + sizes[group]]).to_pylist()
        names += sorted(str(name) for name in own if name is not None)[:1]
    return Repeats(int((sizes - 1).sum()), int(sizes.max()), tuple(names))


def _ties(cloud: Cloud, start: int, hashes: NDArray[np.uint64]) -> NDArray[np.int64] | None:
    """Ranks of equal rows of the window at ``start`` by what is carried along with them, so that which of them comes
    first does not depend on files: they may be of different clusters or segments. None: there are none."""
    carried = [cloud.ids, cloud.clusters, *(cloud.segments[name] for name in sorted(cloud.segments))]
    columns = [column for column in carried if column is not None]
    order = np.argsort(hashes, kind="stable")
    same = hashes[order][1:] == hashes[order][:-1]
    if not columns or not same.any():
        return None
    import pyarrow as pa

    from gpudrift.source.names import as_text

    rows = order[np.r_[False, same] | np.r_[same, False]]
    texts = [as_text(column.take(pa.array(start + rows))).to_pylist() for column in columns]
    keys = [tuple((text is not None, text or "") for text in values) for values in zip(*texts, strict=True)]
    ranks = np.zeros(len(hashes), dtype=np.int64)
    ranks[rows[sorted(range(len(rows)), key=keys.__getitem__)]] = np.arange(len(rows))
    return ranks


def _order(hashes: NDArray[np.uint64], seed: int, ties: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Positions in canonical order. Equal rows get hashes of their own by a running number, so that a sample does not
    take all copies of a row or none."""
    by_hash = np.argsort(hashes, kind="stable") if ties is None else np.lexsort((ties, hashes))
    ranked = hashes[by_hash]
    index = np.arange(len(ranked))
    starts = np.r_[True, ranked[1:] != ranked[:-1]] if len(ranked) else np.zeros(0, dtype=bool)
    copy = (index - np.maximum.accumulate(np.where(starts, index, 0))).astype(np.uint64)
    keys = mix(ranked ^ mix(copy * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)))
    return by_hash[np.argsort(keys, kind="stable")].astype(np.int64)


def _permute(rows: Tensor, order: Tensor) -> None:
    """rows = rows[order] in place, a few columns at a time."""
    n, d = rows.shape
    width = max(1, (1 << 24) // max(n, 1))
    for start in range(0, d, width):
        rows[:, start : start + width] = rows[:, start : start + width].index_select(0, order)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea and Flood 2014)."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)


def id_hashes(column: Any) -> NDArray[np.uint64]:
    """(n,) uint64 hashes of row ids: an Arrow array, or chunked array, of text, bytes or whole numbers.

    Hashes the bytes of ``id_bytes``, so equal ids hash alike in whatever type their column holds them. Multilinear
    (Carter and Wegman 1979), then splitmix64's finaliser; no loop over rows in Python. Errors as ``id_bytes``.
    """
    ids = id_bytes(column)
    values, offsets = binary_parts(ids)
    lengths = np.diff(offsets)
    longest = int(lengths.max(initial=0))
    multipliers = np.random.PCG64(0x6964).random_raw(longest).astype(np.uint64) | np.uint64(1)
    hashes = lengths.astype(np.uint64)
    start = 0
    while start < len(ids):
        # rows whose bytes make at most one chunk, one row at least
        end = max(start + 1, int(np.searchsorted(offsets, offsets[start] + _CHUNK, side="right")) - 1)
        sizes, base = lengths[start:end], offsets[start]
        filled = np.flatnonzero(sizes)
        if len(filled):
            firsts = offsets[start:end][filled] - base
            places = np.arange(offsets[end] - base) - np.repeat(firsts, sizes[filled])
            terms = (values[base : offsets[end]].astype(np.uint64) + np.uint64(1)) * multipliers[places]
            hashes[start + filled] += np.add.reduceat(terms, firsts)
        start = end
    return mix(mix(hashes))


def id_bytes(column: Any) -> Any:
    """Row ids as one large_binary array: text as UTF-8, numbers as their decimal digits, bytes as they are.

    Raises DataError for nulls and for other types.
    """
    import pyarrow as pa

    ids = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    kind = ids.type
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    raw = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    if not (pa.types.is_integer(kind) or any(fits(kind) for fits in (*text, *raw))):
        raise DataError(
            "a column of this type cannot identify rows",
            field="source.id_column",
            value=str(kind),
            allowed="text, bytes, whole numbers",
            hint="cast it to text where the rows are written",
        )
    if ids.null_count:
        raise DataError(
            "row ids are missing",
            field="source.id_column",
            value=f"{ids.null_count} nulls",
            allowed="an id in each row",
        )
    if pa.types.is_integer(kind):
        ids = ids.cast(pa.large_string())
    return ids.cast(pa.large_binary())


def binary_parts(ids: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of a large_binary array and the (n + 1,) offsets into them, as views."""
    _, places, data = ids.buffers()
    offsets = np.zeros(1, dtype=np.int64)
    if len(ids):
        offsets = np.frombuffer(places, dtype=np.int64)[ids.offset : ids.offset + len(ids) + 1]
    values = np.zeros(0, dtype=np.uint8) if data is None else np.frombuffer(data, dtype=np.uint8)
    return values, offsets


def cluster_codes(column: Any, cloud_name: str) -> Tensor:
    """(n,) int64 codes of cluster labels, the same label the same code in every cloud. A null is a cluster of its own.

    Args:
        column: Arrow array or chunked array of any hashable type.
        cloud_name: keeps the nulls of different clouds apart.
    """
    import pyarrow as pa

    try:
        encoded = column.dictionary_encode()
    except pa.ArrowException as error:
        raise ConfigError(
            "a column of this type cannot name clusters",
            field="source.cluster_column",
            value=str(column.type),
            allowed="text, numbers, dates",
        ) from error
    if hasattr(encoded, "combine_chunks"):
        encoded = encoded.combine_chunks()
    labels = [_label_code(str(value)) for value in encoded.dictionary.to_pylist()]
    places = encoded.indices.to_numpy(zero_copy_only=False)
    missing = np.asarray(encoded.indices.is_null().to_numpy(zero_copy_only=False), dtype=bool)
    codes = np.empty(len(places), dtype=np.int64)
    codes[~missing] = np.asarray([*labels, 0], dtype=np.int64)[places[~missing].astype(np.int64)]
    codes[missing] = [_label_code(f"\0{cloud_name}\0{i}") for i in range(int(missing.sum()))]
    return torch.from_numpy(codes)


def _label_code(label: str) -> int:
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest(), "little", signed=True)
