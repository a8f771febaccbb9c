"""What a source.uri names."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpudrift.errors import ConfigError, DataError
from gpudrift.source.discovery import find_files, key_types, partition_keys

FILES = [
    "a.parquet",
    "b.PARQUET",
    "c.parq",
    "month=2020-07/part-0.parquet",
    "month=2020-08/part-0.parquet",
    "month=2020-08/part-1.parquet",
    "month=2021-01/part-0.parquet",
    "deep/er/x.parquet",
    "spark.parquet/part-00000.parquet",
    "blob/one.bin",
    # never read:
    "README.md",
    "rows.csv",
    "_metadata",
    "_SUCCESS.parquet",
    ".hidden.parquet",
    "_temporary/0/part-0.parquet",
    ".staging/part-0.parquet",
    "month=2020-07/.part-9.parquet.crc",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "tree"


def names(tree: Path, pattern: str) -> list[str]:
    _, files = find_files(f"{tree}/{pattern}" if pattern else str(tree))
    return [Path(file.path).relative_to(tree).as_posix() for file in files]


def test_a_directory_is_searched_through_hidden_and_other_files_left_alone(tree: Path) -> None:
    assert names(tree, "") == sorted(FILES[:9])


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a.parquet", ["a.parquet"]),
        ("rows.csv", ["rows.csv"]),  # a file given by name is the user's word that it is Parquet
        ("*.parquet", ["a.parquet", "spark.parquet/part-00000.parquet"]),
        ("?.parq*", ["a.parquet", "c.parq"]),
        ("[ab].*", ["a.parquet", "b.PARQUET"]),
        ("*", sorted(FILES[:9])),
        ("**", sorted(FILES[:9])),
        ("**/*", sorted(FILES[:9])),
        ("month=2020-*", [f"month=2020-0{k}/part-{i}.parquet" for k, i in ((7, 0), (8, 0), (8, 1))]),
        ("month=2020-*/part-0.parquet", [f"month=2020-0{k}/part-0.parquet" for k in (7, 8)]),
        ("month=2020-08/*", [f"month=2020-08/part-{i}.parquet" for i in (0, 1)]),
        ("**/part-0.parquet", [f"month={m}/part-0.parquet" for m in ("2020-07", "2020-08", "2021-01")]),
        ("**/er/*.parquet", ["deep/er/x.parquet"]),
        ("deep/**/x.parquet", ["deep/er/x.parquet"]),
        ("deep/er/**/x.parquet", ["deep/er/x.parquet"]),  # ** stands for no folder too
        ("**/month=2021*", ["month=2021-01/part-0.parquet"]),
        ("blob/*.bin", ["blob/one.bin"]),
    ],
)
def test_globs(tree: Path, pattern: str, found: list[str]) -> None:
    assert names(tree, pattern) == found


def test_a_name_with_wildcards_that_exists_is_that_file(tree: Path) -> None:
    (tree / "a[1].parquet").touch()
    (tree / "a1.parquet").touch()
    assert names(tree, "a[1].parquet") == ["a[1].parquet"]


def test_file_addresses_and_relative_paths(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, by_address = find_files(f"file://{tree}")
    monkeypatch.chdir(tree.parent)
    _, relative = find_files("tree")
    assert by_address == relative
    assert len(relative) == 9


@pytest.mark.parametrize("missing", ["nothing", "nothing/*.parquet", "*.orc", "nothing/**", "README.md/x"])
def test_nothing_found_is_a_config_error(tree: Path, missing: str) -> None:
    with pytest.raises(ConfigError, match=r"source\.uri") as caught:
        find_files(f"{tree}/{missing}")
    assert caught.value.exit_code == 1


def test_an_empty_directory_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="no Parquet files"):
        find_files(str(tmp_path))


def test_an_unknown_address_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"source\.uri"):
        find_files("nosuchscheme://bucket/data")


def test_keys_are_decoded_and_the_hive_null_is_none() -> None:
    path = "/data/lang=pt%2FBR/a%20b=1/day=__HIVE_DEFAULT_PARTITION__/x=y.parquet"
    assert partition_keys(path) == {"lang": "pt/BR", "a b": "1", "day": None}
    assert partition_keys("/data/=x/plain/x.parquet") == {}


@pytest.mark.parametrize(
    "values",
    [["1"], ["01", "2"], ["-3", "2020"], ["2020-07"], ["1", "en"], ["1.5"], ["1", "__HIVE_DEFAULT_PARTITION__"]],
)
def test_key_types_are_those_pyarrow_infers(tmp_path: Path, values: list[str]) -> None:
    for value in values:
        (tmp_path / f"key={value}").mkdir()
        pq.write_table(pa.table({"x": [1]}), tmp_path / f"key={value}" / "x.parquet")
    inferred = pq.read_table(tmp_path).schema.field("key").type.value_type
    ours = key_types(find_files(str(tmp_path))[1])["key"]
    assert pa.types.is_integer(ours) == pa.types.is_integer(inferred)
    assert pa.types.is_large_string(ours) == pa.types.is_string(inferred)


def test_a_written_data_set_gives_back_its_keys(tmp_path: Path) -> None:
    table = pa.table({"lang": ["en", "pt/BR", None], "x": [1, 2, 3]})
    pq.write_to_dataset(table, tmp_path / "hive", partition_cols=["lang"])
    _, files = find_files(str(tmp_path / "hive"))
    assert {file.keys["lang"] for file in files} == {"en", "pt/BR", None}


def test_links_and_loops_of_links_do_not_multiply_the_rows(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.parquet").write_bytes(b"x")
    (folder / "self").symlink_to(folder, target_is_directory=True)
    (folder / "copy.parquet").symlink_to(folder / "a.parquet")
    _, found = find_files(str(folder))
    assert [file.path for file in found] == [str(folder / "a.parquet")]


def test_a_link_to_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"x")
    (tmp_path / "b.parquet").symlink_to(tmp_path / "gone.parquet")
    with pytest.raises(DataError, match=r"b\.parquet"):
        find_files(str(tmp_path))
