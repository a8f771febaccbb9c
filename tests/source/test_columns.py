"""Plain columns of tables: Parquet and CSV in all their spellings, in folders and stores, and of the corpus itself."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import s3_server
from pyarrow import fs

from gpudrift.errors import ConfigError, DataError, GpudriftError, InsufficientDataError
from gpudrift.source import columns, csv_files, open_source
from gpudrift.source.columns import Table, open_corpus, open_table

TIME = ("day", "outcomes.time_column")
START = date(2026, 1, 5)


def days(count: int) -> list[date]:
    return [START + timedelta(days=k) for k in range(count)]


def frame(count: int = 10) -> pd.DataFrame:
    rng = np.random.default_rng(count)
    rate = np.round(rng.uniform(size=count), 6)
    rate[1::4] = np.nan
    lang = [("en", "de", None)[k % 3] for k in range(count)]
    return pd.DataFrame({"day": [str(d) for d in days(count)], "rate": rate, "n": np.arange(count), "lang": lang})


def read(table: Table, numbers: tuple[str, ...] = ("rate", "n"), texts: tuple[str, ...] = ("lang",)) -> pd.DataFrame:
    """The rows as one frame; micros of a time, text with nulls."""
    told = dict.fromkeys(numbers, "outcomes.lower_is_worse")
    parts = [
        pd.DataFrame(
            {"micros": rows.micros}
            | dict(rows.numbers)
            | {name: rows.texts[name].to_pandas().astype(object) for name in texts}
        )
        for rows in table.rows(TIME, told, texts)
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def expected(made: pd.DataFrame) -> pd.DataFrame:
    micros = pd.to_datetime(made["day"]).astype("datetime64[us]").astype("int64")
    return pd.DataFrame({"micros": micros, "rate": made["rate"], "n": made["n"].astype(float), "lang": made["lang"]})


def same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, wanted.astype({"lang": object}), check_exact=True)


def as_csv(made: pd.DataFrame, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.to_csv(path, index=False, na_rep="", **options)
    return path


# --- forms of files


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.csv.gz", "a.csv.zst", "a.parquet", "table_without_a_suffix"])
def test_every_form_of_a_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    made, path = frame(), tmp_path / name
    if "csv" in name.lower():
        text = made.to_csv(index=False, na_rep="").encode()
        if name.endswith(".zst"):
            text = pa.compress(text, codec="zstd", asbytes=True)
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    else:
        pq.write_table(pa.Table.from_pandas(made), path)
    table = open_table(str(path), "outcomes.uri")
    assert table.names == ("day", "rate", "n", "lang")
    same(read(table), expected(made))


def test_a_csv_field_with_nothing_in_it_is_null_and_a_quoted_one_is_empty(tmp_path: Path) -> None:
    """As a null of Parquet it then meets ``column=(none)`` of the history."""
    path = tmp_path / "a.csv"
    path.write_text('day,rate,n,lang\n2026-01-05,1,1,\n2026-01-06,1,1,""\n2026-01-07,1,1,en\n', encoding="utf-8")
    rows = open_table(str(path), "outcomes.uri").rows(TIME, {}, ("lang",))
    assert [text for part in rows for text in part.texts["lang"].to_pylist()] == [None, "", "en"]


def test_csv_as_other_programs_write_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    text = (
        '\ufeffday,"rate",n,lang\r\n2026-01-05,0.5,1,"a ""b"", c"\r\n"2026-01-06"," .25 ",+2.,"two\nlines"\r\n'
        "2026-01-07,NA,1e1,\r\n"
    )
    path.write_bytes(text.encode())
    found = read(open_table(str(path), "outcomes.uri"))
    assert found["rate"].tolist()[:2] == [0.5, 0.25]
    assert np.isnan(found["rate"][2])
    assert found["n"].tolist() == [1, 2, 10]
    assert found["lang"].tolist()[:2] == ['a "b", c', "two\nlines"]
    assert found["lang"].isna().tolist() == [False, False, True]


def test_the_first_rows_of_a_csv_decide_no_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole numbers and empty cells for many blocks, then fractions, and a segment that looked like numbers."""
    monkeypatch.setattr(csv_files, "_BLOCK", 300)
    lines = [f"2026-01-05,,{k},7" for k in range(100)] + ["2026-01-06,0.5,0.25,seven"]
    path = tmp_path / "a.csv"
    path.write_text("day,rate,n,lang\n" + "\n".join(lines) + "\n")
    found = read(open_table(str(path), "outcomes.uri"))
    assert found["n"].tolist() == [*range(100), 0.25]
    assert found["rate"][100] == 0.5
    assert found["lang"].tolist() == ["7"] * 100 + ["seven"]


def test_line_ends_inside_quotes_end_no_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "_BLOCK", 100)
    path = tmp_path / "a.csv"
    path.write_text("day,rate,n,lang\n" + "".join(f'2026-01-05,0.5,{k},"a\n\n{k},\nb"\n' for k in range(50)))
    found = read(open_table(str(path), "outcomes.uri"))
    assert found["lang"].tolist() == [f"a\n\n{k},\nb" for k in range(50)]


@pytest.mark.parametrize("word", ["", "NA", "n/a", "NaN", "null", "None", "-"])
def test_words_for_no_value(tmp_path: Path, word: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"day,rate,n,lang\n2026-01-05,{word},1,NA\n{word},0.5,2,NA\n")
    table = open_table(str(path), "outcomes.uri")
    (rows,) = table.rows(TIME, {"rate": "outcomes.lower_is_worse"}, ["lang"])
    assert np.isnan(rows.numbers["rate"]).tolist() == [True]
    assert (rows.no_time, rows.texts["lang"].to_pylist()) == (1, ["NA"])  # a segment's text is nobody's null


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 0], pa.int8()),
        ([1, None, 0], pa.uint64()),
        ([True, None, False], pa.bool_()),
        ([1.0, None, 0.0], pa.float16()),
        ([1.0, float("nan"), 0.0], pa.float32()),
        ([Decimal("1.00"), None, Decimal("0.00")], pa.decimal128(5, 2)),
        (["1", None, "0"], pa.string()),
        (["true", "", "False"], pa.string_view()),
        (["1", "null", "0.0"], pa.dictionary(pa.int32(), pa.string())),
    ],
)
def test_columns_of_every_kind_are_numbers(tmp_path: Path, values: list[Any], kind: Any) -> None:
    table = pa.table({"day": days(3), "rate": pa.array(values, kind), "n": [1, 2, 3], "lang": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = read(open_table(str(tmp_path / "a.parquet"), "outcomes.uri"))["rate"]
    assert found[[0, 2]].tolist() == [1.0, 0.0]
    assert np.isnan(found[1])


@pytest.mark.parametrize(
    "column",
    [
        pa.array([datetime(2026, 1, 5, 3), None], pa.timestamp("ns")),
        pa.array([datetime(2026, 1, 5, 3, tzinfo=UTC), None], pa.timestamp("s", "Europe/Berlin")),
        pa.array(["2026-01-05T03:00:00", None]),
        pa.array(["2026-01-05 05:00:00+02:00", ""]),
        pa.array([" 2026-01-05T03:00Z ", "NA"]),
    ],
)
def test_times_of_every_kind(tmp_path: Path, column: Any) -> None:
    pq.write_table(pa.table({"day": column, "rate": [1.0, 2.0]}), tmp_path / "a.parquet")
    (rows,) = open_table(str(tmp_path / "a.parquet"), "x").rows(TIME, {"rate": "y"}, [])
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(rows.micros[0]))
    assert (moment, rows.no_time) == (datetime(2026, 1, 5, 3, tzinfo=UTC), 1)
    assert rows.numbers["rate"].tolist() == [1.0]


def test_a_month_is_its_first_day(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("day,rate\n2026-03,0.5\n")
    (rows,) = open_table(str(tmp_path / "a.csv"), "x").rows(TIME, {"rate": "y"}, [])
    assert rows.micros.tolist() == [int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * 10**6]


# --- where they lie


@pytest.mark.parametrize("pattern", ["", "/*.csv", "/**/*.csv"])
def test_directories_and_globs_of_csv(tmp_path: Path, pattern: str) -> None:
    root = tmp_path / "daily [1]" if not pattern else tmp_path / "daily"
    made = frame(9)
    for k in range(3):
        as_csv(made[3 * k : 3 * k + 3], root / f"part-{k}.csv")
    (root / "_SUCCESS.csv").write_text("")
    (root / "README.md").write_text("no table")
    same(read(open_table(f"{root}{pattern}", "outcomes.uri")), expected(made))


def test_a_directory_with_parquet_is_read_as_such(tmp_path: Path) -> None:
    made = frame(4)
    pq.write_table(pa.Table.from_pandas(made), tmp_path / "a.parquet")
    (tmp_path / "notes.csv").write_text("anything\nelse\n")
    same(read(open_table(str(tmp_path), "outcomes.uri")), expected(made))


def test_folder_keys_are_columns(tmp_path: Path) -> None:
    made = frame(6)
    for k, day in enumerate(made["day"]):
        lang = "__HIVE_DEFAULT_PARTITION__" if pd.isna(made["lang"][k]) else made["lang"][k]
        as_csv(made.iloc[[k]][["rate", "n"]], tmp_path / f"day={day}" / f"lang={lang}" / "a.csv")
    table = open_table(str(tmp_path), "outcomes.uri")
    assert table.names == ("rate", "n", "day", "lang")
    same(read(table), expected(made))


def test_a_file_in_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing-testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    made = frame(12)
    with s3_server() as (host, port):
        writer = fs.S3FileSystem(
            access_key="w", secret_key="w", endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1",
            allow_bucket_creation=True,
        )  # fmt: skip
        writer.create_dir("metrics")
        for k, part in enumerate((made[:5], made[5:])):
            with writer.open_output_stream(f"metrics/csv/p{k}.csv") as out:
                out.write(part.to_csv(index=False, na_rep="").encode())
            with writer.open_output_stream(f"metrics/parquet/p{k}.parquet") as out:
                pq.write_table(pa.Table.from_pandas(part), out)
        options = f"?region=us-east-1&scheme=http&endpoint_override={host}:{port}"
        wanted = expected(made)
        same(read(open_table(f"s3://metrics/parquet{options}", "outcomes.uri")), wanted)
        for place in ("csv", "csv/", "csv/*.csv"):
            same(read(open_table(f"s3://metrics/{place}{options}", "outcomes.uri")), wanted)
        with pytest.raises(ConfigError, match="no such file") as caught:
            open_table(f"s3://metrics/none{options}", "outcomes.uri")
    assert caught.value.field == "outcomes.uri"


# --- the corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for k in range(3):
        moments = [datetime(2026, 1, 5, tzinfo=UTC) + timedelta(hours=8 * j) for j in range(40 * k, 40 * k + 40)]
        made = {
            "embedding": pa.array(rng.normal(size=(40, 4)).tolist(), pa.list_(pa.float32(), 4)),
            "event_time": pa.array([None if j == 3 else m for j, m in enumerate(moments)], pa.timestamp("us", "UTC")),
            "click": pa.array((rng.uniform(size=40) < 0.3).tolist()),
            "stars": pa.array(rng.integers(1, 6, 40), pa.int8()),
        }
        folder = tmp_path / "corpus" / f"lang={('en', 'de', 'en')[k]}"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(made), folder / f"{k}.parquet", row_group_size=15)
    return tmp_path / "corpus"


@pytest.mark.parametrize("filtered", [None, [["stars", ">", 2]], [["lang", "==", "de"]], [["stars", ">", 99]]])
def test_columns_of_the_corpus_are_read_with_its_filter_and_times(corpus: Path, filtered: Any) -> None:
    source = open_source(str(corpus), filter=filtered, max_bad_fraction=0.5)
    table = open_corpus(source)
    assert (table.names, table.time_column) == (("embedding", "event_time", "click", "stars", "lang"), "event_time")
    frames = [
        pq.read_table(path, partitioning=None).to_pandas().assign(lang=path.parent.name.removeprefix("lang="))
        for path in sorted(corpus.rglob("*.parquet"))
    ]
    wanted = pd.concat(frames)
    if filtered:
        (name, operator, value), = filtered  # fmt: skip
        wanted = wanted[wanted[name] > value if operator == ">" else wanted[name] == value]
    found, no_time = [], 0
    for rows in table.rows(("event_time", "x"), {"click": "y", "stars": "z"}, ["lang"]):
        found += list(zip(rows.micros, *rows.numbers.values(), rows.texts["lang"].to_pylist(), strict=True))
        no_time += rows.no_time
    assert no_time == int(wanted["event_time"].isna().sum())
    wanted = wanted[wanted["event_time"].notna()]
    micros = wanted["event_time"].astype("datetime64[us, UTC]").astype("int64")
    assert found == list(zip(micros, wanted["click"] * 1.0, wanted["stars"] * 1.0, wanted["lang"], strict=True))


def test_the_vectors_of_the_corpus_are_not_read(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    reads = columns.read_batches

    def spy(reader: Any, path: str, group: int, names: Any, rows: int) -> Iterator[Any]:
        asked.extend(names)
        return reads(reader, path, group, names, rows)

    monkeypatch.setattr(columns, "read_batches", spy)
    table = open_corpus(open_source(str(corpus), max_bad_fraction=0.5))
    assert sum(len(rows.micros) for rows in table.rows(("event_time", "x"), {"stars": "z"}, [])) == 117
    assert set(asked) == {"event_time", "stars"}


# --- bad input


def bad_csv(text: str | bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        path = folder / "bad.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


def bad_parquet(**made: Any) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        pq.write_table(pa.table(made), folder / "bad.parquet")
        return str(folder / "bad.parquet")

    return write


def damaged(folder: Path) -> str:
    """One bit of the last column's only page, under its checksum."""
    path, table = folder / "bad.parquet", pa.table({"day": days(3), "rate": [0.1, 0.2, 0.3]})
    pq.write_table(table, path, write_page_checksum=True, use_dictionary=False, compression="none")
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    path.write_bytes(bytes(content))
    return str(path)


def cut_off(folder: Path) -> str:
    path = Path(bad_parquet(day=days(3), rate=[1.0, 2.0, 3.0])(folder))
    path.write_bytes(path.read_bytes()[:-30])
    return str(path)


def unlike(folder: Path) -> str:
    as_csv(frame(3)[["day", "rate"]], folder / "many" / "a.csv")
    as_csv(frame(3)[["day", "n"]], folder / "many" / "b.csv")
    return str(folder / "many")


@pytest.mark.parametrize(
    ("make", "error", "field", "words"),
    [
        (lambda folder: str(folder / "none.csv"), ConfigError, "outcomes.uri", "no such file"),
        (lambda folder: str(folder), ConfigError, "outcomes.uri", "no Parquet or CSV files"),
        (lambda folder: str(folder / "*.csv"), ConfigError, "outcomes.uri", "no Parquet or CSV files"),
        (lambda _: "nosuch://place", ConfigError, "outcomes.uri", "no scheme"),
        (bad_csv(""), InsufficientDataError, "outcomes.uri", "the file is empty"),
        (bad_csv("day,rate\n2026-01-05,0.5\n2026-01-12\n"), DataError, "outcomes.uri", "Expected 2 columns, got 1"),
        (bad_csv("day,rate\n2026-01-05,0.5,7\n"), DataError, "outcomes.uri", "Expected 2 columns, got 3"),
        (bad_csv(b"day,rate\n2026-01-05,\xff\n"), DataError, "outcomes.uri", "invalid UTF8"),
        (bad_csv("day,räte\n2026-01-05,1\n".encode("latin-1")), DataError, "outcomes.uri", "cannot be read"),
        (bad_csv("day,clicks\n2026-01-05,1\n"), ConfigError, "outcomes.lower_is_worse", "there is no column 'rate'"),
        (bad_csv("day;rate\n2026-01-05;1\n"), ConfigError, "outcomes.time_column", "allowed: day;rate"),
        (bad_csv("date,rate\n2026-01-05,1\n"), ConfigError, "outcomes.time_column", "allowed: date, rate"),
        (bad_csv("day,rate,rate\n2026-01-05,1,2\n"), ConfigError, "outcomes.lower_is_worse", "more than one column"),
        (bad_csv("day,rate\n2026-01-05,.5\n2026-01-12,n.a. yet\n"), DataError, "outcomes.lower_is_worse", "row 2"),
        (bad_csv('day,rate\n2026-01-05,"0,5"\n'), DataError, "outcomes.lower_is_worse", "received: '0,5'"),
        (bad_csv("day,rate\n2026-01-05,12%\n"), DataError, "outcomes.lower_is_worse", "received: '12%'"),
        (bad_csv("day,rate\n2026-01-05,-inf\n"), DataError, "outcomes.lower_is_worse", "received: -inf"),
        (bad_csv("day,rate\n2026-01-05,1e999\n"), DataError, "outcomes.lower_is_worse", "infinite"),
        (bad_csv("day,rate\n05.01.2026,1\n"), DataError, "outcomes.time_column", "not ISO-8601"),
        (bad_csv("day,rate\n1767571200,1\n"), DataError, "outcomes.time_column", "not ISO-8601"),
        (bad_parquet(day=[1767571200], rate=[1.0]), ConfigError, "outcomes.time_column", "day (int64)"),
        (bad_parquet(day=days(1), rate=[[1.0]]), ConfigError, "outcomes.lower_is_worse", "holds no numbers"),
        (bad_parquet(day=days(1), rate=[float("inf")]), DataError, "outcomes.lower_is_worse", "row group 0"),
        (bad_parquet(day=days(2), rate=["good", "1"]), DataError, "outcomes.lower_is_worse", "received: 'good'"),
        (damaged, DataError, "rate", "cannot be read"),
        (cut_off, DataError, "outcomes.uri", "cannot be read"),
        (unlike, DataError, "outcomes.lower_is_worse", "does not fit the first one"),
    ],
)
def test_bad_input_is_one_error_that_names_it(
    tmp_path: Path, make: Callable[[Path], str], error: type[GpudriftError], field: str, words: str
) -> None:
    uri = make(tmp_path)
    with pytest.raises(error) as caught:
        for _ in open_table(uri, "outcomes.uri").rows(TIME, {"rate": "outcomes.lower_is_worse"}, []):
            pass
    assert type(caught.value) is error
    assert caught.value.field == field
    assert words in str(caught.value)
    assert "source.uri" not in str(caught.value)
    assert caught.value.where is not None or caught.value.value == uri


def test_a_time_that_cannot_be_read_is_named_with_its_row(tmp_path: Path) -> None:
    days = [f"2026-01-{day:02d}" for day in range(1, 30)]
    days[16], days[20] = "2026-W17", "01/20/2026"
    (tmp_path / "a.csv").write_text("day,rate\n" + "".join(f"{day},1\n" for day in days))
    with pytest.raises(DataError) as caught:
        for _ in open_table(str(tmp_path / "a.csv"), "outcomes.uri").rows(
            TIME, {"rate": "outcomes.lower_is_worse"}, []
        ):
            pass
    assert "2026-W17" in str(caught.value)
    assert str(caught.value.where).endswith("a.csv, row 17")


def test_what_is_not_there_may_be_csv(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_table(str(tmp_path / "none.csv"), "outcomes.uri")
    assert "a Parquet or CSV file" in str(caught.value.hint)
