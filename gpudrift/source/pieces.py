"""A source cut for readers in other processes: runs of row groups with all it takes to read them, and no more.

The cut depends on the files and the windows alone. A piece and the ``Reading`` that all pieces share pickle; together
they hold the plan of that piece, not of the corpus. Reading goes the way of ``ParquetSource.read`` and ``scan``, so
rows, bad rows and errors are theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch
from pyarrow import fs
from torch import Tensor

from gpudrift.source.cleaning import BatchReader
from gpudrift.source.footers import Columns, DataFile
from gpudrift.source.planning import FilePlan, GroupPlan, SmallColumns, WindowIndex
from gpudrift.source.quality import BadRows
from gpudrift.source.reading import (
    Part,
    PartReader,
    PartResult,
    Places,
    batch_bytes,
    close_gaps,
    place_parts,
    placed,
)
from gpudrift.source.rowfilter import RowFilter
from gpudrift.source.scanning import Scan
from gpudrift.source.steady import Store

_TAIL = 8  # bytes behind a footer: its length, and PAR1


@dataclass(frozen=True)
class Piece:
    """Row groups in the order of their rows, of one file or of several.

    parts: placed within the piece alone. places: of its rows among all. labels: what files are called in examples.
    versions: of files in a store, as their footers were read.
    """

    parts: tuple[Part, ...]
    places: Places
    labels: Mapping[str, str]
    versions: Mapping[str, tuple[str, ...]]

    @property
    def rows(self) -> int:
        """Rows that lie in a window."""
        return sum(number for _, number in self.places.values())

    @property
    def decoded(self) -> int:
        """Rows of its row groups: those that lie in no window are decoded too."""
        return sum(item.group.rows for part in self.parts for item in part.groups)

    @property
    def files(self) -> dict[str, DataFile]:
        return {part.file.path: part.file for part in self.parts}


@dataclass(frozen=True)
class Reading:
    """What all pieces are read by."""

    filesystem: Any
    columns: Columns
    row_filter: RowFilter | None
    key_types: Mapping[str, Any]
    index: WindowIndex
    windows: int
    dim: int

    def rows(self, piece: Piece) -> BatchReader:
        if isinstance(self.filesystem, Store):
            for path, version in piece.versions.items():
                self.filesystem.expect(path, version)
        small = SmallColumns(self.filesystem, self.columns, self.row_filter, self.key_types)
        return BatchReader(
            self.columns, small, self.index, self.key_types, piece.labels, self.dim, batch_bytes(threads=1)
        )

    def read(self, piece: Piece) -> tuple[Tensor, PartResult]:
        """The good rows (n, d) float32 of a piece, window after window, and what ``PartReader.read`` tells of them.

        Raises:
            as ``ParquetSource.read`` does of these row groups.
        """
        out = torch.empty((piece.rows, self.dim), dtype=torch.float32)
        reader = PartReader(self.filesystem, self.rows(piece), out, lambda _: None)
        results = [reader.read(part) for part in piece.parts]
        offsets = close_gaps(out, piece.parts, results, self.windows)
        whole = PartResult()
        for k in sorted(piece.places):
            whole.kept[k] = offsets[k + 1] - offsets[k]
            whole.bad[k], whole.carried[k] = BadRows(), {}
            found = [result for result in results if k in result.bad]
            for result in found:
                whole.bad[k].merge(result.bad[k])
            for name in dict.fromkeys(name for result in found for name in result.carried[k]):
                # put together even where it is one: a slice pickles with all of the array it was cut from
                arrays = [array for result in found for array in result.carried[k][name]]
                whole.carried[k][name] = [pa.concat_arrays(arrays)]
        return out[: offsets[-1]], whole

    def scan(self, piece: Piece, progress: Callable[[int], None], bad: dict[int, BadRows]) -> Scan:
        """The rows of a piece in passing; bad ones are told in ``bad`` by window once it has come to its end."""

        def finish(found: Sequence[BadRows]) -> tuple[()]:
            bad.update((k, one) for k, one in enumerate(found) if one.total)
            return ()

        return Scan(
            self.filesystem,
            self.rows(piece),
            self.columns,
            piece.parts,
            piece.labels,
            self.windows,
            finish,
            progress,
        )

    def mark(self, path: str) -> str | None:
        """What tells apart two files of one name on two machines' disks: size and footer. None: in a store, where
        versions do, or not there."""
        if not isinstance(self.filesystem, fs.LocalFileSystem):
            return None
        try:
            with self.filesystem.open_input_file(path) as file:
                size = file.size()
                length = int.from_bytes(file.read_at(_TAIL, max(0, size - _TAIL))[:4], "little")
                footer = file.read_at(min(length + _TAIL, size), max(0, size - _TAIL - length))
        except OSError:
            return None
        return f"{size} {hashlib.sha256(footer).hexdigest()}"


@dataclass(frozen=True)
class Cut:
    """All pieces of what lies in some windows, in the order of files and rows. offsets: of the windows (windows + 1),
    bad rows counted in."""

    reading: Reading
    pieces: tuple[Piece, ...]
    offsets: tuple[int, ...]


def cut_pieces(reading: Reading, plans: Sequence[FilePlan], labels: Mapping[str, str], most: int) -> Cut:
    """Pieces of at most so many bytes of float32 rows, or of one row group that holds more."""
    store = reading.filesystem if isinstance(reading.filesystem, Store) else None
    pieces = []
    for share in _shares(plans, max(1, most // (4 * reading.dim))):
        parts, _ = place_parts([(_bare(plan.file), [_told(item) for item in items]) for plan, items in share],
                               reading.windows)  # fmt: skip
        paths = [plan.file.path for plan, _ in share]
        versions = {path: store.version(path) for path in paths} if store is not None else {}
        known = {path: version for path, version in versions.items() if version is not None}
        pieces.append(Piece(tuple(parts), {}, {path: labels[path] for path in paths}, known))
    counts = []
    for piece in pieces:
        count: dict[int, int] = {}
        for part in piece.parts:
            for k, (_, number) in part.places.items():
                count[k] = count.get(k, 0) + number
        counts.append(count)
    places, offsets = placed(counts, reading.windows)
    return Cut(reading, tuple(replace(piece, places=at) for piece, at in zip(pieces, places, strict=True)), offsets)


def _shares(plans: Sequence[FilePlan], most: int) -> list[list[tuple[FilePlan, list[GroupPlan]]]]:
    """Runs of row groups of at most ``most`` rows, by file."""
    shares: list[list[tuple[FilePlan, list[GroupPlan]]]] = []
    rows = 0
    for plan in plans:
        fresh = True  # no row group of this file is in the last share
        for item in plan.groups:
            if not shares or rows + item.group.rows > most:
                shares.append([])
                rows, fresh = 0, True
            if fresh:
                shares[-1].append((plan, []))
                fresh = False
            shares[-1][-1][1].append(item)
            rows += item.group.rows
    return shares


def _bare(file: DataFile) -> DataFile:
    """Without its row groups: the plan has those that are read."""
    return replace(file, groups=())


def _told(item: GroupPlan) -> GroupPlan:
    """Without what planning alone asks for."""
    return replace(item, group=replace(item.group, bounds=None, limits={}))
