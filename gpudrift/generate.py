"""Synthetic embedding corpora of any size with drift planted from one week on (``job=generate``).

Rows of week k are a mixture on the unit sphere::

    x = z / |z|,   z = centre_c + shift + spread * g / sqrt(d),   g ~ N(0, I_d),   c ~ weights

so that for large d a cluster's mean has length 1 / sqrt(1 + spread^2) and its rows' mean squared distance from it is
spread^2 / (1 + spread^2). Where users repeat, g = sqrt(.5) g_user + sqrt(.5) g_row: half of the noise variance belongs
to the user and comes back with every row of that user, in every week.

One Parquet file a week, ``week=2026-W02/part-0.parquet``, rows in order of time. What a week holds depends on the seed
and its date alone, not on the other weeks, so weeks can be made separately and in any order. (NumPy may change its
normal stream between feature versions: same seed and same NumPy, same rows.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from math import expm1
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpudrift.errors import ConfigError
from gpudrift.files import atomic_path, make_directory

DTYPES = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}
NEW_CLUSTER = "new"  # label of the planted cluster
FILE_NAME = "part-0.parquet"
MARKER = b"gpudrift_generate"  # schema metadata key: this file may be replaced by another job=generate

_BLOCK_BYTES = 16 << 20  # of one row group's working array
_WEEK_US = 7 * 24 * 3600 * 10**6
_USER_SHARE = 0.5  # share of the noise variance that belongs to the user
_TURNOVER = 4  # a user stays in the pool for this many weeks
_LANGUAGES = (
    "en", "zh", "es", "de", "fr", "ja", "pt", "ru", "it", "ko", "nl", "pl", "tr", "ar", "vi", "cs", "sv", "fi",
)  # fmt: skip
# Streams of the seed: one for what all weeks share, one for each week's rows.
_SHARED, _WEEK = 0, 1


@dataclass(frozen=True)
class GenerateSummary:
    """What was written: one file a week, ``weeks`` the ISO labels in order, ``bytes`` on disk."""

    path: Path
    files: tuple[Path, ...]
    weeks: tuple[str, ...]
    drifted: tuple[str, ...]  # the weeks that hold the planted drift; empty when none was asked for
    rows: int
    dim: int
    dtype: str
    encoder_id: str
    bytes: int


@dataclass(frozen=True)
class _Mixture:
    """What one state of the corpus draws from. centres: (clusters + 1, d), any shift added, the last one the cluster
    that drift brings. edges: (clusters + 1,) cumulative masses. spread: norm of the noise."""

    centres: NDArray[np.floating[Any]]
    edges: NDArray[np.float64]
    spread: float


def generate(
    path: str | Path,
    *,
    start: date,
    weeks: int,
    rows_per_week: int,
    dim: int,
    clusters: int,
    spread: float,
    rows_per_user: float,
    dtype: str,
    drift_week: int,
    mean_shift: float,
    spread_change: float,
    new_cluster: float,
    reweight: float,
    seed: int,
    overwrite: bool,
    progress: Callable[[int, int], None] | None = None,
) -> GenerateSummary:
    """Write a corpus of ``weeks`` files of ``rows_per_week`` rows under ``path``. Ranges are those of
    ``config.GenerateConfig``.

    Columns: id (string, unique in the corpus), event_time (timestamp[us, UTC], the whole week, ascending), user,
    cluster and language (strings; language is a long-tailed segment that has nothing to do with the vectors),
    embedding (fixed_size_list<dtype>[dim], unit length). Schema metadata: ``encoder_id`` = ``synthetic-<dim>`` and all
    arguments.

    Args:
        start: Monday of the first week.
        rows_per_user: mean rows of one user within a week; 1: every row is a user of its own. Above 1 a quarter of the
            users is replaced from week to week.
        drift_week: first week, counted from 0, with mean_shift (length of one common vector added before the
            projection), spread_change (factor on spread), new_cluster (share of rows in a cluster not seen before) and
            reweight (share of the even clusters' mass that goes to the odd ones, in proportion to their weights).
        overwrite: needed where the directory holds anything. Earlier output of this function in it is removed first;
            no other file is touched.
        progress: called with (rows written, rows in all) after every row group.

    Memory: about 200 MiB, whatever the number of rows, plus twice the (clusters, dim) centres. A file appears under
    its name when it is complete: a killed run leaves whole weeks and one hidden temporary file.

    Raises ConfigError where an argument cannot work or the directory cannot be used.
    """
    if start.weekday() != 0:
        monday = start - timedelta(days=start.weekday())
        raise ConfigError(
            "a corpus starts on a Monday, since its files are ISO weeks",
            field="generate.start",
            value=start.isoformat(),
            allowed=[monday.isoformat(), (monday + timedelta(days=7)).isoformat()],
        )
    if dtype not in DTYPES:
        raise ConfigError("this value cannot be used", field="generate.dtype", value=dtype, allowed=list(DTYPES))
    if reweight > 0 and clusters < 2:
        raise ConfigError(
            "reweighting moves mass between clusters", field="generate.clusters", value=clusters, allowed="2 or more"
        )
    drifts = mean_shift > 0 or spread_change != 1 or new_cluster > 0 or reweight > 0
    if drifts and drift_week >= weeks:
        raise ConfigError(
            "the planted drift would begin after the last week",
            field="generate.drift_week",
            value=drift_week,
            allowed=f"0 to {weeks - 1} (generate.weeks is {weeks})",
        )
    encoder_id = f"synthetic-{dim}"
    arguments = {
        "start": start.isoformat(), "weeks": weeks, "rows_per_week": rows_per_week, "dim": dim, "clusters": clusters,
        "spread": spread, "rows_per_user": rows_per_user, "dtype": dtype, "drift_week": drift_week,
        "mean_shift": mean_shift, "spread_change": spread_change, "new_cluster": new_cluster, "reweight": reweight,
        "seed": seed,
    }  # fmt: skip
    schema = _schema(dim, dtype, {b"encoder_id": encoder_id.encode(), MARKER: json.dumps(arguments).encode()})
    mondays = [start + timedelta(days=7 * k) for k in range(weeks)]
    labels = [_iso_week(monday) for monday in mondays]
    root = Path(path)
    with _writing(root):
        _prepare(root, [_file(root, label) for label in labels], overwrite)

    work = np.dtype(np.float64 if dtype == "float64" else np.float32)
    quiet, drifted = _mixtures(dim, clusters, spread, mean_shift, spread_change, new_cluster, reweight, seed, work)
    block_rows = max(1, min(rows_per_week, _BLOCK_BYTES // (dim * work.itemsize)))
    files: list[Path] = []
    for k, (monday, label) in enumerate(zip(mondays, labels, strict=True)):
        mixture = drifted if k >= drift_week else quiet
        blocks = _blocks(monday, label, schema, mixture, rows_per_week, block_rows, rows_per_user, seed)

        def report(rows: int, before: int = k * rows_per_week) -> None:
            if progress is not None:
                progress(before + rows, weeks * rows_per_week)

        files.append(_write(_file(root, label), schema, blocks, report))
    return GenerateSummary(
        path=root,
        files=tuple(files),
        weeks=tuple(labels),
        drifted=tuple(labels[drift_week:]) if drifts else (),
        rows=weeks * rows_per_week,
        dim=dim,
        dtype=dtype,
        encoder_id=encoder_id,
        bytes=sum(file.stat().st_size for file in files),
    )


def _iso_week(day: date) -> str:
    """The ISO week that holds ``day``, such as ``2026-W02``."""
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02d}"


def _file(root: Path, label: str) -> Path:
    return root / f"week={label}" / FILE_NAME


def _schema(dim: int, dtype: str, metadata: dict[bytes, bytes]) -> pa.Schema:
    return pa.schema(
        [
            ("id", pa.string()),
            ("event_time", pa.timestamp("us", tz="UTC")),
            ("user", pa.string()),
            ("cluster", pa.string()),
            ("language", pa.string()),
            ("embedding", pa.list_(DTYPES[dtype], dim)),
        ],
        metadata=metadata,
    )


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))


def _mixtures(
    dim: int,
    clusters: int,
    spread: float,
    mean_shift: float,
    spread_change: float,
    new_cluster: float,
    reweight: float,
    seed: int,
    work: np.dtype[Any],
) -> tuple[_Mixture, _Mixture]:
    """The corpus before and after the planted drift."""
    rng = _generator(seed, _SHARED)
    directions = rng.standard_normal((clusters + 2, dim), dtype=np.float32).astype(work)
    directions /= np.sqrt(np.einsum("ij,ij->i", directions, directions))[:, None]
    centres, shift = directions[:-1], directions[-1] * work.type(mean_shift)
    # A few large topics and a tail, the sizes in random order so that even and odd clusters are alike.
    weights = rng.permutation((1.0 + np.arange(clusters)) ** -0.7)
    moved = weights.copy()
    if reweight > 0:
        even, odd = weights[0::2].sum(), weights[1::2].sum()
        moved[0::2] *= 1.0 - reweight
        moved[1::2] *= 1.0 + reweight * even / odd
    moved *= (1.0 - new_cluster) / weights.sum()
    return (
        _Mixture(centres, _edges(np.append(weights, 0.0)), spread),
        _Mixture(centres + shift, _edges(np.append(moved, new_cluster)), spread * spread_change),
    )


def _edges(weights: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    cumulative = np.cumsum(weights)
    return np.asarray(cumulative / cumulative[-1], dtype=np.float64)


def _draw(rng: np.random.Generator, edges: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """n categories with the cumulative masses ``edges``, the last of them 1; side="right" draws none of mass 0."""
    return np.asarray(np.searchsorted(edges, rng.random(n), side="right"), dtype=np.int64)


def _user_pool(rows: int, rows_per_user: float) -> int:
    """How many users a week draws from, uniformly, so that those it meets have ``rows_per_user`` rows on average: with
    Poisson(m) rows a user, m / (1 - exp(-m)) = rows_per_user."""
    low, high = 0.0, rows_per_user
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle / -expm1(-middle) < rows_per_user else (low, middle)
    return max(1, round(rows / high))


def _blocks(
    monday: date,
    label: str,
    schema: pa.Schema,
    mixture: _Mixture,
    rows: int,
    block_rows: int,
    rows_per_user: float,
    seed: int,
) -> Iterator[pa.RecordBatch]:
    """One week's rows, a row group at a time."""
    week = monday.toordinal() // 7
    rng = _generator(seed, _WEEK, week)
    dim = schema.field("embedding").type.list_size
    clusters = len(mixture.edges) - 1
    width = len(str(clusters - 1))
    cluster_names = pa.array([f"c{j:0{width}d}" for j in range(clusters)] + [NEW_CLUSTER])
    language_edges = _edges((1.0 + np.arange(len(_LANGUAGES))) ** -1.5)
    monday_us = int(datetime(monday.year, monday.month, monday.day, tzinfo=UTC).timestamp()) * 10**6
    pool = _user_pool(rows, rows_per_user) if rows_per_user > 1 else 0
    for first in range(0, rows, block_rows):
        index = np.arange(first, min(first + block_rows, rows))
        n = len(index)
        # A jittered grid: the whole week is covered and rows are in order without holding a week's times.
        offset = ((index + rng.random(n)) * (_WEEK_US / rows)).astype(np.int64)
        times = monday_us + np.minimum(offset, _WEEK_US - 1)
        cluster = _draw(rng, mixture.edges, n)
        language = _draw(rng, language_edges, n)
        ids = pc.binary_join_element_wise(label, pc.utf8_lpad(pc.cast(pa.array(index), pa.string()), 10, "0"), "-")
        z_nd = rng.standard_normal((n, dim), dtype=mixture.centres.dtype.type)
        if pool:
            user = week * max(1, pool // _TURNOVER) + rng.integers(0, pool, n)
            users = pc.binary_join_element_wise("u", pc.cast(pa.array(user), pa.string()), "")
            _add_user_noise(z_nd, user, seed)
        else:
            users = pc.binary_join_element_wise("u", ids, "-")
        z_nd *= mixture.spread / np.sqrt(dim)
        z_nd += mixture.centres[cluster]
        z_nd /= np.sqrt(np.einsum("ij,ij->i", z_nd, z_nd))[:, None]
        values = pa.array(z_nd.astype(schema.field("embedding").type.value_type.to_pandas_dtype(), copy=False).ravel())
        del z_nd
        columns = [
            ids,
            pa.array(times).cast(schema.field("event_time").type),
            users,
            cluster_names.take(pa.array(cluster)),
            pa.array(_LANGUAGES).take(pa.array(language)),
            pa.FixedSizeListArray.from_arrays(values, type=schema.field("embedding").type),
        ]
        yield pa.record_batch(columns, schema=schema)


def _add_user_noise(noise_nd: NDArray[np.floating[Any]], user: NDArray[np.int64], seed: int) -> None:
    """Mix each user's own vector into the rows' noise, in place, its variance kept. The vector comes from a generator
    keyed by (seed, user): no table of users is held, and a user brings the same vector in every week."""
    noise_nd *= np.sqrt(1.0 - _USER_SHARE)
    share = np.float32(np.sqrt(_USER_SHARE))
    order = np.argsort(user, kind="stable")
    names, starts = np.unique(user[order], return_index=True)
    for name, rows in zip(names.tolist(), np.split(order, starts[1:]), strict=True):
        own = np.random.Generator(np.random.Philox(key=[seed, name]))
        noise_nd[rows] += share * own.standard_normal(noise_nd.shape[1], dtype=np.float32)


def _write(file: Path, schema: pa.Schema, blocks: Iterator[pa.RecordBatch], report: Callable[[int], None]) -> Path:
    """The row groups of one file, under a temporary name until all are written."""
    make_directory(file.parent, "generate.path")
    rows = 0
    with (
        _writing(file),
        atomic_path(file) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            use_dictionary=["cluster", "language"],
            use_byte_stream_split=["embedding.list.element"],
            write_statistics=["event_time"],
            write_page_checksum=True,
        ) as writer,
    ):
        for block in blocks:
            writer.write_batch(block, row_group_size=len(block))
            rows += len(block)
            report(rows)
    return file


@contextmanager
def _writing(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"the corpus cannot be written: {error}", field="generate.path", where=where) from error


def _prepare(root: Path, targets: list[Path], overwrite: bool) -> None:
    """Refuse a directory in use, or take earlier output of this job out of it. All is checked before any is removed."""
    if root.exists() and not root.is_dir():
        raise ConfigError("this is a file", field="generate.path", value=str(root), allowed="a directory")
    if not root.exists() or not any(root.iterdir()):
        return
    if not overwrite:
        raise ConfigError(
            "the directory is not empty",
            field="generate.overwrite",
            value=overwrite,
            allowed="true, to replace an earlier corpus",
            where=root,
            hint="another generate.path, or generate.overwrite=true (only files of job=generate are replaced)",
        )
    earlier = [file for file in sorted(root.glob(f"week=*/{FILE_NAME}")) if _is_ours(file)]
    foreign = [file for file in targets if file.exists() and file not in earlier]
    if foreign:
        raise ConfigError(
            "this file was not written by job=generate and will not be replaced",
            field="generate.path",
            where=foreign[0],
            hint="choose another generate.path, or move the file away",
        )
    # All of them, also weeks this run does not write: a corpus made of two would be wrong without a sign of it.
    for file in [*earlier, *root.glob("week=*/.part-0.*.tmp.parquet")]:  # the latter: of a killed run
        file.unlink()
        with suppress(OSError):  # not empty: it holds files of others
            file.parent.rmdir()


def _is_ours(file: Path) -> bool:
    try:
        metadata = pq.read_schema(file).metadata
    except (pa.ArrowException, OSError):
        return False  # damaged or no Parquet: not known to be ours
    return metadata is not None and MARKER in metadata
