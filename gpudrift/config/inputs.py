"""What is read: the source, its windows, the quality asked of its rows, the pinned reference."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gpudrift.config.checks import parse_date, require, require_local


class OnBadRows(Enum):
    drop = "drop"
    fail = "fail"


# those of gpudrift.source.layouts, which a module without torch cannot import
ENCODINGS = (
    *("float16", "float32", "float64", "bfloat16", "float16_be", "float32_be", "float64_be"),
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("bits", "bits_int8"),
)


POOLINGS = ("mean", "flatten")


@dataclass
class SourceConfig:
    """Where the embeddings are and which columns mean what."""

    uri: str = "sample"  # file, directory, glob or hive data set; "sample": the corpus that ships with gpudrift
    embedding_column: str = "embedding"  # or a path (payload.vector), or a pattern for one column a dimension (dim_*)
    id_column: str | None = None
    time_column: str = "event_time"
    cluster_column: str | None = None  # rows of one user or document: standard errors by cluster
    segment_columns: list[str] = field(default_factory=list)
    encoding: str | None = None  # what bytes, integers and packed bits stand for: float32, int8, bits, ... (ENCODINGS)
    scale: float = 1.0  # a stored integer or bit q stands for scale * (q - zero_point)
    zero_point: float = 0.0
    pooling: str | None = None  # several vectors a row: mean of them, or flatten matrices of one shape
    encoder_id: str | None = None  # name of the model that made the embeddings; pinned with the reference
    filter: Any = None  # rows to keep, in pyarrow's form: [[lang, "==", en], [tokens, ">", 3]]
    threads: int = 0  # files read at a time; 0: one a core, at most 8

    def __post_init__(self) -> None:
        require(bool(self.uri.strip()), "source.uri", self.uri, "a file, directory, glob, or 'sample'")
        require(bool(self.embedding_column), "source.embedding_column", self.embedding_column, "a column name")
        require(bool(self.time_column), "source.time_column", self.time_column, "a column name")
        require(self.encoding in (None, *ENCODINGS), "source.encoding", self.encoding, ["null", *ENCODINGS])
        require(
            math.isfinite(self.scale) and self.scale != 0, "source.scale", self.scale, "a finite number other than 0"
        )
        require(math.isfinite(self.zero_point), "source.zero_point", self.zero_point, "a finite number")
        require(self.pooling in (None, *POOLINGS), "source.pooling", self.pooling, ["null", *POOLINGS])
        require(0 <= self.threads <= 256, "source.threads", self.threads, "0 to 256")


@dataclass
class QualityConfig:
    on_bad_rows: OnBadRows = OnBadRows.drop
    max_bad_fraction: float = 0.01  # of a window's rows, all causes together

    def __post_init__(self) -> None:
        require(0 <= self.max_bad_fraction <= 1, "quality.max_bad_fraction", self.max_bad_fraction, "0 to 1")


@dataclass
class ReferenceRange:
    start: str | None = None  # first date of the reference range
    end: str | None = None  # excluded; both null: the first ``count`` complete windows of the data, announced
    count: int = 12

    def __post_init__(self) -> None:
        require(3 <= self.count <= 10_000, "windows.reference.count", self.count, "3 to 10000")


@dataclass
class WindowsConfig:
    period: str = "week"  # week (ISO), day, month, or Nd such as 10d
    reference: ReferenceRange = field(default_factory=ReferenceRange)
    min_rows: int = 100  # fewer rows in a window: insufficient data, not a score

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"week|day|month|[1-9]\d{0,3}d", str(self.period)) is not None,
            "windows.period",
            self.period,
            "week, day, month, or Nd (N days) such as 10d",
        )
        require(self.min_rows >= 4, "windows.min_rows", self.min_rows, "4 or more")
        start = parse_date("windows.reference.start", self.reference.start)
        end = parse_date("windows.reference.end", self.reference.end)
        require(
            (start is None) == (end is None),
            "windows.reference",
            [self.reference.start, self.reference.end],
            "both start and end, or neither",
        )
        require(
            start is None or end is None or start < end,
            "windows.reference.end",
            self.reference.end,
            f"a date after windows.reference.start ({self.reference.start})",
        )


@dataclass
class ReferenceConfig:
    path: str | None = None  # default: <output.dir>/reference
    replace: bool = False  # job=reference overwrites an existing artifact only with true

    def __post_init__(self) -> None:
        require_local("reference.path", self.path)
