"""Bad inputs, what gpudrift says of them and what pyarrow does: ``python tests/source/bad_inputs.py`` prints the table
of docs/bad-input.md.

pyarrow is asked for the same column by ``pyarrow.dataset``, as a careful script would.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

from gpudrift.errors import GpudriftError
from gpudrift.source import open_source
from gpudrift.windows import covering, parse_period

START = datetime(2026, 1, 5)
FLOAT4 = pa.list_(pa.float32(), 4)


@dataclass(frozen=True)
class Bad:
    make: Callable[[Path], None]
    exit_code: int = 30
    settings: dict[str, Any] = field(default_factory=dict)


CASES: dict[str, Bad] = {}


def case(name: str, exit_code: int = 30, **settings: Any) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def add(make: Callable[[Path], None]) -> Callable[[Path], None]:
        CASES[name] = Bad(make, exit_code, settings)
        return make

    return add


def save(path: Path, vectors: Any = None, kind: Any = FLOAT4, rows: int = 20, **options: Any) -> Path:
    if vectors is None:
        vectors = np.arange(1, 4 * rows + 1).reshape(rows, 4).tolist()
    times = [START + timedelta(hours=k) for k in range(len(vectors))]
    table = pa.table({"embedding": pa.array(vectors, kind), "event_time": pa.array(times, pa.timestamp("us"))})
    pq.write_table(table, path, **({"write_page_checksum": True, "compression": "none"} | options))
    return path


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(save(path).read_bytes()))


def _flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


for _name, _change in {
    "0 bytes": lambda _: b"",
    "7 bytes": lambda content: content[:7],
    "cut in half": lambda content: content[: len(content) // 2],
    "not Parquet": lambda _: b"id,embedding\n1,[0.5]\n" * 100,
    "a wrong footer length": lambda content: content[:-8] + (2**31 - 1).to_bytes(4, "little") + content[-4:],
    "a damaged footer": lambda content: content[:-200] + bytes(150) + content[-50:],
    "a damaged page header": lambda content: content[:4] + bytes(20) + content[24:],
    "one flipped bit in a page": lambda content: _flip(content, content.index(np.float32(7).tobytes())),
}.items():

    @case(_name)
    def _damaged(folder: Path, change: Any = _change) -> None:
        _rewrite(folder / "a.parquet", change)


@case("an encrypted file")
def _encrypted(folder: Path) -> None:
    class PlainKeys(pe.KmsClient):  # type: ignore[misc]
        def wrap_key(self, key: bytes, _: str) -> bytes:
            return key

        def unwrap_key(self, key: bytes, _: str) -> bytes:
            return key

    factory = pe.CryptoFactory(lambda _: PlainKeys())
    configuration = pe.EncryptionConfiguration(footer_key="k", uniform_encryption=True)
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), configuration)
    table = pq.read_table(save(folder / "a.parquet"))
    with pq.ParquetWriter(folder / "a.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


@case("an empty directory", exit_code=1)
def _empty(folder: Path) -> None:
    pass


@case("a file without rows")
def _no_rows(folder: Path) -> None:
    save(folder / "a.parquet", [])


@case("one damaged file beside good ones")
def _one_bad(folder: Path) -> None:
    for name in ("a", "b", "c"):
        save(folder / f"{name}.parquet")
    (folder / "b.parquet").write_bytes(b"PAR1 and then nothing")


@case("no such column", exit_code=1, embedding_column="vector")
def _no_column(folder: Path) -> None:
    save(folder / "a.parquet")


@case("the column is missing in a later file")
def _later_without(folder: Path) -> None:
    save(folder / "a.parquet")
    pq.write_table(pq.read_table(save(folder / "b.parquet")).drop_columns(["embedding"]), folder / "b.parquet")


@case("vectors of two fixed sizes")
def _two_sizes(folder: Path) -> None:
    save(folder / "a.parquet")
    save(folder / "b.parquet", [[1.0] * 5] * 20, pa.list_(pa.float32(), 5))


@case("lists of 3, 2 and 4 values (3 x 3 by their sum)")
def _ragged(folder: Path) -> None:
    save(folder / "a.parquet", [[1.0] * 3, [2.0] * 2, [3.0] * 4], pa.list_(pa.float32()))


@case("a later file of float64, with 1e300 in it")
def _later_double(folder: Path) -> None:
    save(folder / "a.parquet")
    save(folder / "b.parquet", [[1e300] * 4] * 20, pa.list_(pa.float64(), 4))


@case("float64 beyond float32")
def _too_large(folder: Path) -> None:
    save(folder / "a.parquet", [[1e300] * 4, [1.0] * 4], pa.list_(pa.float64(), 4))


@case("a NaN row")
def _nan(folder: Path) -> None:
    save(folder / "a.parquet", [[1.0] * 4, [1.0, float("nan"), 1.0, 1.0]])


@case("a null row, and a missing value")
def _null(folder: Path) -> None:
    save(folder / "a.parquet", [[1.0] * 4, None, [1.0, None, 1.0, 1.0]])


@case("bytes, without source.encoding", exit_code=1)
def _bytes(folder: Path) -> None:
    save(folder / "a.parquet", [bytes(16)] * 3, pa.binary())


@case("int8, without source.encoding", exit_code=1)
def _int8(folder: Path) -> None:
    save(folder / "a.parquet", [[1, 2, 3, 4]] * 3, pa.list_(pa.int8()))


@case("several vectors in a row, without source.pooling", exit_code=1)
def _several(folder: Path) -> None:
    save(folder / "a.parquet", [[[1.0] * 4, [2.0] * 4], [[3.0] * 4]], pa.list_(pa.list_(pa.float32())))


@case("dim_0, dim_1, dim_3", exit_code=1, embedding_column="dim_*")
def _gap(folder: Path) -> None:
    pq.write_table(pa.table({f"dim_{k}": [1.0] for k in (0, 1, 3)} | {"event_time": [START]}), folder / "a.parquet")


@case("the column is text, but no vectors", embedding_column="title")
def _titles(folder: Path) -> None:
    table = pq.read_table(save(folder / "a.parquet"))
    pq.write_table(table.append_column("title", pa.array(["once upon a time"] * 20)), folder / "a.parquet")


def ours(folder: Path, bad: Bad) -> GpudriftError | None:
    """The error, None where there is none."""
    try:
        source = open_source(str(folder), threads=1, **bad.settings)
        extent = source.extent()
        source.read(covering(parse_period("1000d"), extent.first, extent.last + timedelta(hours=1)))
    except GpudriftError as error:
        return error
    return None


def pyarrows(folder: Path, bad: Bad) -> str:
    column = bad.settings.get("embedding_column", "embedding")
    try:
        data = ds.dataset(folder, format="parquet")
        table = data.to_table(columns=[name for name in data.schema.names if name.startswith(column.rstrip("*"))])
    except (pa.ArrowException, OSError) as error:
        return f"`{type(error).__name__}`: {_short(str(error), folder)}"
    if not table.num_columns:
        return "no error: a table without columns"
    nulls = sum(chunk.null_count for chunk in table.column(0).chunks)
    return f"no error: {table.num_rows} rows of {table.column(0).type}" + (f", {nulls} null" if nulls else "")


def _short(message: str, folder: Path) -> str:
    line = (message.splitlines() or [""])[0].replace(f"{folder}/", "").replace(str(folder), "DIR")
    return (line if len(line) <= 110 else line[:107] + "...").replace("|", "\\|")


def row(name: str) -> tuple[str, str, str]:
    """Case, our message with its place and exit code, and what pyarrow does."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "data"
        folder.mkdir()
        bad = CASES[name]
        bad.make(folder)
        error = ours(folder, bad)
        if error is None:
            return name, "no error", pyarrows(folder, bad)
        where = next((line[6:] for line in str(error).splitlines() if line.startswith("  in: ")), "")
        message = _short(error.message.replace(f"{folder}/", "").replace(str(folder), "DIR"), folder)
        place = where.replace(f"{folder}/", "").replace(str(folder), "DIR")
        said = f"{message}" + (f" (in {place})" if place else "") + f"; exit {error.exit_code}"
        return name, said, pyarrows(folder, bad)


def table() -> str:
    lines = ["| input | gpudrift | pyarrow.dataset |", "| --- | --- | --- |"]
    return "\n".join(lines + ["| " + " | ".join(row(name)) + " |" for name in CASES])


if __name__ == "__main__":
    print(table())
