"""Every bad input ends as docs/bad-input.md says: one error of ours, with the file and the exit code."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from bad_inputs import CASES, ours, row

from gpudrift.source.cleaning import BatchReader
from gpudrift.source.footers import Columns, DataFile
from gpudrift.source.layouts import layout_of

DOCS = Path(__file__).parents[2] / "docs" / "bad-input.md"


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_one_error(name: str, tmp_path: Path) -> None:
    CASES[name].make(tmp_path)
    error = ours(tmp_path, CASES[name])
    assert error is not None
    assert error.exit_code == CASES[name].exit_code
    assert str(tmp_path) in str(error) or "a.parquet:" in str(error)  # rows go by the name below the folder
    assert error.hint or error.allowed or "no row" in str(error)


@pytest.mark.parametrize("name", CASES)
def test_the_documented_message_is_the_one_given(name: str) -> None:
    """pyarrow's own words, in the last column, change from version to version."""
    case, said, _ = row(name)
    assert f"| {case} | {said} | " in DOCS.read_text(encoding="utf-8")


def test_no_case_is_left_out_of_the_document() -> None:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[0][2:] for line in lines if line.startswith("| ")][2:] == list(CASES)


@pytest.mark.parametrize("dim", [1, 384, 4096, 100_000, 1 << 24])
def test_no_batch_comes_near_the_limit_of_32_bit_offsets(dim: int) -> None:
    """A column of more than 2^31 values is read in batches, which are not put together."""
    for kind in (pa.list_(pa.float16()), pa.list_(pa.int8()), pa.binary(), pa.string()):
        told = "int8" if kind in (pa.list_(pa.int8()), pa.binary()) else None
        layout = layout_of(pa.schema({"embedding": kind}), "embedding", told)
        file = DataFile("f", {}, {}, layout, "instant", None, (), None)
        reader = BatchReader(Columns("embedding", "t", None, None, (), ()), None, None, {}, {}, dim, 3 << 19)  # type: ignore[arg-type]
        assert reader.rows_at_most(file) * dim < 2**31 / 4
