"""Object stores: what an address means, what is tried again, and what a store that fails leads to.

S3 is moto's server on this machine behind a proxy that fails requests; GCS an emulator; other schemes fsspec's own.
"""

from __future__ import annotations

import json
import logging
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import run
from object_store import Proxy, Request, refused_port, s3_server
from pyarrow import fs

from gpudrift.errors import ConfigError, DataError
from gpudrift.source import open_source
from gpudrift.source.access import open_parquet, read_batches
from gpudrift.source.discovery import find_files
from gpudrift.source.steady import Patience, Store, StoreError, kind_of, redact
from gpudrift.source.stores import open_store, without_secrets
from gpudrift.windows import covering, parse_period

START = datetime(2026, 1, 5, tzinfo=UTC)
WEEKS = covering(parse_period("week"), START, START + timedelta(weeks=3))
SECRET = "s3cr3t/Key+0123456789"
UNSET = ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HTTP_PROXY",
         "HTTPS_PROXY", "http_proxy", "https_proxy", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN",
         "AZURE_STORAGE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST")  # fmt: skip


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Credentials from the environment; the waits before further attempts, asked for and not waited."""
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    asked: list[float] = []
    patience = Patience(connect=1.0, stall=1.0, sleep=asked.append, jitter=lambda: 0.0)
    monkeypatch.setattr("gpudrift.source.stores.PATIENCE", patience)
    return asked


@dataclass
class S3:
    """Buckets of a running server; ``address`` leads through the proxy."""

    upstream: tuple[str, int]
    proxy: Proxy
    writer: Any = field(init=False)

    def __post_init__(self) -> None:
        self.writer = fs.S3FileSystem(
            access_key="writer", secret_key="writer", endpoint_override="{}:{}".format(*self.upstream), scheme="http",
            region="us-east-1", allow_bucket_creation=True,
        )  # fmt: skip

    def put(self, key: str, content: bytes) -> None:
        self.writer.create_dir(key.partition("/")[0])
        with self.writer.open_output_stream(key) as out:
            out.write(content)

    def put_folder(self, folder: Path, prefix: str) -> None:
        for path in folder.rglob("*.parquet"):
            self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def address(self, place: str) -> str:
        return f"s3://{place}?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{self.proxy.port}"


@pytest.fixture(scope="session")
def server() -> Iterator[S3]:
    with s3_server() as upstream:
        proxy = Proxy(upstream)
        yield S3(upstream, proxy)
        proxy.close()


@pytest.fixture
def s3(server: S3) -> S3:
    server.proxy.fail(lambda _: None)
    return server


@pytest.fixture
def two_groups(write: Callable[..., Path], vectors: Any) -> Path:
    """50 rows in two row groups, the vectors some hundred KB, written without checksums."""
    names = [f"r{k}" for k in range(50)]
    options = {"write_page_checksum": False, "compression": "none", "use_dictionary": False}
    path = write("one.parquet", vectors(50, 1024), group_rows=25, id=names)
    pq.write_table(pq.read_table(path), path, row_group_size=25, **options)
    return path


def kth(number: int, fault: str, method: str = "GET") -> Callable[[Request], str | None]:
    """The fault for the number-th request of a method, from 1."""
    seen = 0

    def faults(request: Request) -> str | None:
        nonlocal seen
        seen += request.method == method
        return fault if seen == number and request.method == method else None

    return faults


def on_data(fault: str, times: int = 1_000, after: int = 0) -> Callable[[Request], str | None]:
    """The fault for ranges before the footer: those that hold rows."""
    seen = 0

    def faults(request: Request) -> str | None:
        nonlocal seen
        if request.method != "GET" or request.range is None or not request.range.startswith("bytes=4-"):
            return None
        seen += 1
        return fault if after < seen <= after + times else None

    return faults


# --- what an address means


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("names/plain", ["a.parquet", "b.parquet"]),
        ("names/plain/", ["a.parquet", "b.parquet"]),
        ("names/plain/a.parquet", ["a.parquet"]),
        ("names/pl?in/[b].parquet", ["b.parquet"]),
        ("names/**/b.parquet", ["b.parquet", "b.parquet"]),
        ("names/with space", ["b.parquet"]),
        ("names/with%20space/*.parquet", ["b.parquet"]),
        ("names/hive/lang=pt%2FBR", ["x.parquet"]),
        ("names/hive/lang=*/x.parquet", ["x.parquet", "x.parquet"]),
        ("names/hive", ["x.parquet", "x.parquet"]),
        ("names", ["a.parquet", "b.parquet", "b.parquet", "x.parquet", "x.parquet"]),
    ],
)
@pytest.mark.parametrize("scheme", ["s3", "s3a"])
def test_addresses(s3: S3, address: str, found: list[str], scheme: str) -> None:
    for key in ("plain/a.parquet", "plain/b.parquet", "plain/_SUCCESS", "with space/b.parquet",
                "hive/lang=pt%2FBR/x.parquet", "hive/lang=en/x.parquet"):  # fmt: skip
        s3.put(f"names/{key}", b"x")
    filesystem, files = find_files(s3.address(address).replace("s3:", f"{scheme}:", 1))
    assert isinstance(filesystem, Store)
    assert sorted(file.path.rsplit("/", 1)[-1] for file in files) == found
    keys = [file.keys for file in files if "lang=" in file.path]
    assert all(key["lang"] in ("pt/BR", "en") for key in keys)


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ("?endpoint_override=http://{host}", {}),
        ("?endpoint_override={host}&scheme=http&anonymous=true", {}),
        ("?region=eu-west-1", {"AWS_ENDPOINT_URL": "http://{host}"}),
        ("", {"AWS_ENDPOINT_URL_S3": "http://{host}/", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "x"}),
    ],
)
def test_the_endpoint_may_stand_in_the_environment(
    s3: S3, monkeypatch: pytest.MonkeyPatch, options: str, environment: dict[str, str]
) -> None:
    s3.put("options/a.parquet", b"x")
    host = f"127.0.0.1:{s3.proxy.port}"
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(host=host))
    assert len(find_files("s3://options" + options.format(host=host))[1]) == 1


@pytest.mark.parametrize("name", ["a b.parquet", "50%25.parquet", "month=2020-07#1/a.parquet", "x?y=1.parquet"])
def test_file_addresses(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    for address in (f"file://{path}", f"file://localhost{path}", path.as_uri()):
        filesystem, found = find_files(address)
        assert isinstance(filesystem, fs.LocalFileSystem)
        assert [file.path for file in found] == [str(path)]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://", r"(?s)bucket.*s3://bucket/path"),
        ("s3://*/a.parquet", r"name of a bucket"),
        ("gs:///x", r"gs://bucket/path"),
        ("s3://b/k?regoin=x", r"(?s)no option 'regoin'.*allowed: region, endpoint_override"),
        ("s3://b/k?anonymous=maybe", r"true or false"),
        ("abfss://container/x", r"AZURE_STORAGE_ACCOUNT"),
        ("abfss://@account.dfs.core.windows.net/x", r"container"),
        ("nosuchscheme://b/k", r"(?s)no scheme 'nosuchscheme'.*allowed: s3, gs, abfss, file.*memory"),
        ("zip://", r"address cannot be used"),
    ],
)
def test_addresses_that_cannot_be_used(address: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        find_files(address)
    assert caught.value.exit_code == 1
    assert "source.uri" in str(caught.value)


# --- credentials

WITH_SECRETS = [
    f"s3://AKIA123:{SECRET}@bucket/k",
    f"s3://bucket/k?access_key=AKIA123&secret_key={SECRET}",
    f"s3://bucket/k?region=x&AWS_SECRET_ACCESS_KEY={SECRET}",
    f"abfss://container:{SECRET}@account.dfs.core.windows.net/k",
    f"abfss://c@account.dfs.core.windows.net/k?sig={SECRET}",
    f"gs://bucket/k?access_token={SECRET}",
    f"https://user:{SECRET}@host/a.parquet",
    f"https://host/a.parquet?X-Amz-Expires=9&X-Amz-Signature={SECRET}",
    f"zip://a.parquet::s3://k:{SECRET}@bucket/a.zip",
]


@pytest.mark.parametrize("address", [*WITH_SECRETS, f"s3://AKIA:{SECRET}@{SECRET}@bucket/k", f"s3://k:9{SECRET}@b/k"])
def test_secrets_in_an_address_are_refused_and_not_repeated(address: str, tmp_path: Path) -> None:
    secret = SECRET
    assert secret in address
    assert secret not in without_secrets(address)
    with pytest.raises(ConfigError, match=r"(?s)must not hold credentials.*\*\*\*.*AWS_SECRET_ACCESS_KEY") as caught:
        run(address, tmp_path)
    assert secret not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "address",
    [
        "s3://b/key=a@b:c/x?region=eu-1",
        "abfss://c@account.dfs.core.windows.net/d:e/@f",
        "http://host:8080/data@v2/x.parquet",
        "file:///a:b/c@d",
    ],
)
def test_what_is_no_secret_stays(address: str) -> None:
    assert without_secrets(address) == address


def test_errors_show_no_secret_of_the_environment() -> None:
    text = redact(OSError(f"signed with {SECRET}, ?sig=abc%2Fdef&se=1 and X-Amz-Signature=0f0f (Request ID: 1)\nmore"))
    assert text == "signed with ***, ?sig=***&se=1 and X-Amz-Signature=***"


@pytest.mark.parametrize("place", ["locked/a.parquet", "locked/d", "locked/*.parquet"])
def test_credentials_the_store_does_not_know(s3: S3, waits: list[float], place: str) -> None:
    """The server checks them from here on."""
    s3.put("locked/a.parquet", b"x")

    def let_in(actions: str) -> None:
        address = "http://{}:{}/moto-api/reset-auth".format(*s3.upstream)
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(address, actions.encode(), headers), timeout=10).close()

    let_in("0")
    try:
        with pytest.raises(ConfigError, match=r"(?s)refuses access.*AWS_ACCESS_KEY_ID.*anonymous=true") as caught:
            find_files(s3.address(place))
    finally:
        let_in("inf")
    assert SECRET not in str(caught.value)
    assert waits == []


# --- what is not there, and who does not answer


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("present/nothing", r"no such file or directory.*the bucket 'present' is there"),
        ("present/nothing.parquet", r"no such file or directory.*the bucket 'present' is there"),
        ("present/no*.parquet", r"no Parquet files"),
        ("absent/k", r"no such file or directory.*no bucket 'absent'.*region and endpoint"),
        ("absent", r"no bucket 'absent'"),
        ("absent/*.parquet", r"not there|no Parquet files|NO_SUCH_BUCKET"),
    ],
)
def test_nothing_there(s3: S3, waits: list[float], place: str, said: str) -> None:
    s3.put("present/a.parquet", b"x")
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        find_files(s3.address(place))
    assert waits == []


def test_an_endpoint_that_is_down(waits: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)  # of the root logger, as Hydra has it
    caplog.handler.setLevel(logging.NOTSET)
    address = f"s3://b/k?endpoint_override=http://127.0.0.1:{refused_port()}"
    with pytest.raises(ConfigError, match=r"(?s)does not answer \(tried 5 times.*what to do: run it again.*network"):
        find_files(address)
    assert waits == [0.5, 1.0, 2.0, 4.0]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 4
    assert "attempt 1 of 5" in caplog.text


def test_an_endpoint_that_never_says_a_word(s3: S3, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    monkeypatch.setattr("gpudrift.source.stores.PATIENCE", Patience(attempts=2, stall=1.0, sleep=waits.append))
    s3.proxy.fail(lambda _: "stall")
    with pytest.raises(ConfigError, match=r"(?s)does not answer \(tried 2 times.*Timeout|too slow"):
        find_files(s3.address("b/k"))


@pytest.mark.parametrize(("fault", "said"), [("301", "add .region="), ("400", "add .region=")])
def test_a_bucket_of_another_region(s3: S3, waits: list[float], fault: str, said: str) -> None:
    s3.proxy.fail(lambda _: fault)
    with pytest.raises(ConfigError, match=said):
        find_files(s3.address("b/k"))
    assert waits == []


# --- what is tried again


def test_every_fault_of_every_request_is_got_over(
    s3: S3, two_groups: Path, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    s3.put("faults/one.parquet", two_groups.read_bytes())
    expected = open_source(str(two_groups), id_column="id", threads=1).read(WEEKS)

    def read() -> Any:
        return open_source(s3.address("faults/one.parquet"), id_column="id", threads=1).read(WEEKS)

    read()
    requests = [request.method for request in s3.proxy.requests]
    got, asked = requests.count("GET"), requests.count("HEAD")
    assert got >= 4
    cases = [(k, fault, "GET") for k in range(1, got + 1) for fault in ("503", "429", "reset", "truncate", "short")]
    cases += [(k, "500", "HEAD") for k in range(1, asked + 1)] + [(got, "stall", "GET")]
    for number, fault, method in cases:
        waits.clear()
        caplog.clear()
        s3.proxy.fail(kth(number, fault, method))
        cloud = read()
        assert s3.proxy.faulted == 1
        # a connection that was used before and is reset is one the S3 client replaces by itself
        assert waits == [0.5] or (waits, fault) == ([], "reset"), (number, fault)
        assert len(caplog.records) == len(waits)
        assert np.array_equal(cloud.embeddings.numpy(), expected.embeddings.numpy())
        assert cloud.ids == expected.ids


@pytest.mark.parametrize(("fault", "attempts"), [("503", 5), ("reset", 5), ("short", 5), ("403", 1), ("404", 1)])
def test_a_store_that_goes_on_failing_is_one_error(
    s3: S3, two_groups: Path, waits: list[float], fault: str, attempts: int
) -> None:
    s3.put("faults/one.parquet", two_groups.read_bytes())
    source = open_source(s3.address("faults/one.parquet"), id_column="id", threads=1)
    s3.proxy.fail(on_data(fault))
    with pytest.raises(DataError, match=r"what to do") as caught:
        source.read(WEEKS)
    assert caught.value.exit_code == 30
    assert "faults/one.parquet, row group 0" in str(caught.value)
    assert ("field: embedding" in str(caught.value)) == (fault != "404")  # the whole file is gone
    assert s3.proxy.faulted in (attempts, 2 * attempts)  # the S3 client itself sends once more after a reset
    assert waits == [0.5, 1.0, 2.0, 4.0][: attempts - 1]


@pytest.mark.parametrize("change", ["another content", "shorter", "longer", "gone"])
@pytest.mark.parametrize("when", ["before", "between"])
def test_a_file_that_changes_is_refused(s3: S3, two_groups: Path, change: str, when: str) -> None:
    """Between listing and reading, and between two ranges of one reading: same size and rows, other vectors."""
    content = two_groups.read_bytes()
    s3.put("moving/one.parquet", content)
    source = open_source(s3.address("moving/one.parquet"), id_column="id", threads=1)
    assert source.count(WEEKS) == [50, 0, 0]

    def change_it() -> None:
        if change == "gone":
            s3.writer.delete_file("moving/one.parquet")
        else:
            other = content[:1000] + bytes(1000) + content[2000:]
            s3.put("moving/one.parquet", {"shorter": other[:-5000], "longer": other + b"x"}.get(change, other))

    if when == "before":
        change_it()
    done = []

    def faults(request: Request) -> str | None:
        if when == "between" and request.method == "GET" and not done:
            done.append(request)
            change_it()
        return None

    s3.proxy.fail(faults)
    with pytest.raises(DataError, match=r"(?s)(changed while it was read|file is gone).*moving/one\.parquet.*writer"):
        source.read(WEEKS)


def test_a_file_that_changes_between_listing_and_its_first_opening(s3: S3) -> None:
    s3.put("moving/two.parquet", b"x" * 100)
    filesystem, _ = find_files(s3.address("moving/two.parquet"))
    s3.put("moving/two.parquet", b"x" * 101)
    with pytest.raises(StoreError, match="has changed"):
        filesystem.open_input_file("moving/two.parquet")


def test_waits_double_vary_and_are_bounded() -> None:
    waited: list[float] = []
    chance = iter([0.0, 0.5, 1.0, 0.0, 0.0])
    patience = Patience(attempts=6, wait=1.0, longest_wait=5.0, sleep=waited.append, jitter=lambda: next(chance))

    def fail() -> None:
        raise ConnectionResetError("reset by peer")

    with pytest.raises(StoreError, match=r"tried 6 times, at last\): reset by peer"):
        patience.run(fail, "work")
    assert waited == [1.0, 1.5, 2.0, 5.0, 5.0]


@dataclass
class HttpError(Exception):
    status: int


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."), "denied"),
        (OSError("AWS Error INVALID_ACCESS_KEY_ID during ListObjectsV2 operation: ..."), "denied"),
        (OSError("google::cloud::Status(UNAVAILABLE: ... Could not create a OAuth2 access token to ..."), "denied"),
        (pa.ArrowException("...AuthenticationExceptionE: Failed to get token from DefaultAzureCredential."), "denied"),
        (PermissionError("no"), "denied"),
        (HttpError(401), "denied"),
        (FileNotFoundError("a"), "missing"),
        (OSError("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation: ..."), "missing"),
        (HttpError(404), "missing"),
        (OSError("AWS Error UNKNOWN (HTTP status 301) during HeadObject operation: ..."), "elsewhere"),
        (OSError("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: ..."), "refused"),
        (ValueError("Cannot seek streaming HTTP file"), "refused"),
        (OSError("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: ..."), "failed"),
        (OSError("AWS Error SLOW_DOWN during GetObject operation: "), "failed"),
        (OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 6, Could not resolve"), "failed"),
        (OSError("AWS Error UNKNOWN (HTTP status 416) during GetObject operation: "), "failed"),
        (TimeoutError(), "failed"),
        (ConnectionResetError(), "failed"),
        (HttpError(429), "failed"),
        (HttpError(502), "failed"),
    ],
)
def test_kinds_of_failures(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


# --- how much is asked for at a time


def test_few_requests_and_bounded_ones(s3: S3, vectors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small row groups come in one request each; of larger ones a bounded piece of a column at a time."""
    table = pa.table(
        {"id": pa.array(range(4000)), "embedding": pa.array(list(vectors(4000, 256))), "more": ["x"] * 4000}
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=1000, compression="none", use_dictionary=False, data_page_size=100_000)
    s3.put("sizes/a.parquet", sink.getvalue().to_pybytes())
    filesystem, (file,) = find_files(s3.address("sizes/a.parquet"))

    def sizes() -> list[int]:
        s3.proxy.fail(lambda _: None)
        with open_parquet(filesystem, file.path) as reader:
            for group in range(4):
                rows = sum(b.num_rows for b in read_batches(reader, file.path, group, ["id", "embedding"], 100))
                assert rows == 1000
        return [request.size for request in s3.proxy.requests if request.method == "GET"][1:]  # the footer first

    assert len(together := sizes()) == 4
    monkeypatch.setattr("gpudrift.source.access._TOGETHER", 1_000_000)
    monkeypatch.setattr("gpudrift.source.access._REMOTE_BUFFER", 300_000)
    assert max(pieces := sizes()) <= 300_000
    assert 12 < len(pieces) <= 24
    assert sum(together) == pytest.approx(sum(pieces), rel=0.01)


# --- whole jobs


@pytest.mark.usefixtures("no_pictures")
def test_a_job_says_the_same_of_a_bucket_as_of_a_folder(
    s3: S3, quiet: Path, tmp_path: Path, waits: list[float]
) -> None:
    s3.put_folder(quiet, "jobs/quiet")
    local = run(quiet, tmp_path / "local")
    count = iter(range(1, 100_000))
    s3.proxy.fail(lambda _: "503" if next(count) % 40 == 0 else None)  # not two in a row for one request
    remote = run(s3.address("jobs/quiet"), tmp_path / "remote", {"source.threads": 1})
    assert remote.code == local.code == 0
    assert waits

    def lasting(ran: Any) -> str:
        result = {k: v for k, v in ran.result.items() if k not in ("run", "config")}
        result["reference"] |= {"path": None}
        return json.dumps(result)

    assert lasting(remote) == lasting(local)
    assert remote.result["config"]["source"]["uri"] == s3.address("jobs/quiet")
    files = [path for path in (tmp_path / "remote").rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("stage", ["reference", "window"])
def test_a_store_that_fails_midway_leaves_nothing_behind(
    s3: S3, quiet: Path, pinned: Path, tmp_path: Path, stage: str
) -> None:
    """A result of an earlier run goes as well: its presence says that the last run ended."""
    s3.put_folder(quiet, "jobs/quiet")
    settings: dict[str, Any] = {"source.threads": 1}
    s3.proxy.fail(lambda _: None)
    if stage == "window":
        settings["reference.path"] = str(pinned / "reference")
        run(s3.address("jobs/quiet"), tmp_path / "clean", settings)
    else:
        open_source(s3.address("jobs/quiet"), id_column="id", threads=1).read(WEEKS)
    last = max(request.number for request in s3.proxy.requests if request.method == "GET")
    s3.proxy.fail(lambda request: "503" if request.number >= last and request.method == "GET" else None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_text("{}")
    with pytest.raises(DataError, match=r"(?s)does not answer \(tried 5 times.*jobs/quiet/.*\.parquet") as caught:
        run(s3.address("jobs/quiet"), tmp_path / "out", settings)
    assert caught.value.exit_code == 30
    assert s3.proxy.faulted % 5 == 0  # the next part may begin before it is called off
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file() and not path.name.endswith(".lock")] == []


# --- other schemes


def read_all(address: str, **options: Any) -> Any:
    return open_source(address, id_column="id", threads=2, **options).read(WEEKS)


@pytest.fixture
def corpus(write: Callable[..., Path], vectors: Any, tmp_path: Path) -> Path:
    for k in range(2):
        write(
            f"corpus/lang={'en' if k else 'de'}/part-{k}.parquet",
            vectors(20, seed=k),
            id=[f"{k}-{i}" for i in range(20)],
        )
    return tmp_path / "corpus"


def same(cloud: Any, corpus: Path) -> bool:
    expected = read_all(str(corpus))
    return np.array_equal(cloud.embeddings.numpy(), expected.embeddings.numpy()) and cloud.ids == expected.ids


def test_memory(corpus: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for path in corpus.rglob("*.parquet"):
        memory.pipe(f"/data/{path.relative_to(corpus).as_posix()}", path.read_bytes())
    for address in ("memory://data", "memory://data/lang=*", "memory:///data/**/*.parquet"):
        assert same(read_all(address), corpus)
    source = open_source("memory://data", id_column="id")
    path = next(iter(memory.find("/data")))
    memory.pipe(path, memory.cat(path)[::-1])  # of the same size
    with pytest.raises(DataError, match="has changed while it was read"):
        source.read(WEEKS)
    memory.rm(path)
    with pytest.raises(DataError, match="file is gone"):
        source.read(WEEKS)
    memory.store.clear()


def test_zip(corpus: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "corpus.zip", "w") as archive:
        for path in corpus.rglob("*.parquet"):
            archive.write(path, path.relative_to(corpus).as_posix())
        archive.writestr("_unfinished.parquet", b"half a file")
    for inside in ("", "**/*.parquet"):
        assert same(read_all(f"zip://{inside}::{tmp_path / 'corpus.zip'}"), corpus)
    with pytest.raises(ConfigError, match="no such file"):
        read_all(f"zip://a.parquet::{tmp_path / 'corpus.zip'}")
    with pytest.raises(ConfigError, match=r"source\.uri"):
        read_all(f"zip://a.parquet::{tmp_path / 'none.zip'}")


@pytest.mark.parametrize("fault", ["503", "reset", "truncate"])
def test_http(s3: S3, two_groups: Path, waits: list[float], fault: str) -> None:
    """fsspec's HTTP, against the same server."""
    s3.put("web/one.parquet", two_groups.read_bytes())
    address = f"http://127.0.0.1:{s3.proxy.port}/web/one.parquet"
    source = open_source(address, id_column="id", threads=1)
    s3.proxy.fail(kth(2, fault))
    assert np.array_equal(source.read(WEEKS).embeddings, open_source(str(two_groups)).read(WEEKS).embeddings)
    assert waits == ([0.5] if fault != "reset" else [])  # aiohttp replaces a used connection that is reset
    with pytest.raises(ConfigError, match="no such file"):
        find_files(address.replace("one", "two"))
    s3.proxy.fail(lambda _: "503")
    with pytest.raises(DataError, match=r"(?s)does not answer \(tried 5 times.*web/one\.parquet"):
        source.read(WEEKS)
    with pytest.raises(ConfigError, match=r"does not answer \(tried 5 times"):
        find_files(address)


@pytest.mark.parametrize(
    ("address", "missing", "named"),
    [
        ("http://127.0.0.1:1/a.parquet", "aiohttp", "aiohttp"),
        ("memory://a.parquet", "fsspec", "fsspec"),
        ("sftp://127.0.0.1/a.parquet", "paramiko", "paramiko"),
    ],
)
def test_packages_that_are_not_installed(
    monkeypatch: pytest.MonkeyPatch, address: str, missing: str, named: str
) -> None:
    for name in ("http", "sftp"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, name, raising=False)
        monkeypatch.delitem(sys.modules, f"fsspec.implementations.{name}", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"(?s)not installed.*{named}.*pip install 'gpudrift\[fsspec\]'"):
        find_files(address)


def test_gcs_down_and_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the service account is asked for, nobody answers."""
    dead = f"127.0.0.1:{refused_port()}"
    monkeypatch.setenv("GCE_METADATA_ROOT", dead)
    monkeypatch.setenv("GCE_METADATA_HOST", dead)
    with pytest.raises(ConfigError, match=r"(?s)refuses access.*GOOGLE_APPLICATION_CREDENTIALS"):
        find_files(f"gs://b/k?endpoint_override=http://{dead}")
    with pytest.raises(ConfigError, match=r"(?s)does not answer \(tried 2 times.*run it again"):
        find_files(f"gs://b/k?anonymous=true&endpoint_override=http://{dead}")


def test_azure_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(fs, "AzureFileSystem", lambda account, **options: made.append((account, options)))
    assert open_store("abfss://box@acct.dfs.core.windows.net/a/b/")[1] == ["box/a/b"]
    assert made[-1] == ("acct", {"blob_storage_authority": ".blob.core.windows.net",
                                 "dfs_storage_authority": ".dfs.core.windows.net"})  # fmt: skip
    open_store("abfss://box@acct.dfs.core.chinacloudapi.cn/a")
    assert made[-1][1]["blob_storage_authority"] == ".blob.core.chinacloudapi.cn"
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "other")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sas")
    assert open_store("abfs://box/a%20b")[1] == ["box/a%20b", "box/a b"]
    assert made[-1] == ("other", {"sas_token": "sas"})
    monkeypatch.setenv("AZURE_STORAGE_KEY", "key")
    open_store("abfss://box@acct.dfs.core.windows.net/a?endpoint_override=http://127.0.0.1:10000")
    assert made[-1][1] == {
        "blob_storage_authority": "127.0.0.1:10000", "dfs_storage_authority": "127.0.0.1:10000",
        "blob_storage_scheme": "http", "dfs_storage_scheme": "http", "account_key": "key",
    }  # fmt: skip


def test_azure_down_and_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's client tries again by itself, which takes seconds that nobody can set."""
    monkeypatch.setattr("gpudrift.source.stores.PATIENCE", Patience(attempts=1))
    address = f"abfss://box@acct.dfs.core.windows.net/a?endpoint_override=http://127.0.0.1:{refused_port()}"
    with pytest.raises(ConfigError, match=r"(?s)refuses access.*AZURE_STORAGE_KEY"):
        find_files(address)
    monkeypatch.setenv("AZURE_STORAGE_KEY", "c2VjcmV0c2VjcmV0")
    with pytest.raises(ConfigError, match=r"(?s)does not answer \(tried.*Could not connect") as caught:
        find_files(address)
    assert "c2VjcmV0c2VjcmV0" not in str(caught.value)
