"""Where an address leads: s3://, gs:// and abfss:// by ``pyarrow.fs``, other schemes by fsspec (extra ``fsspec``).

Credentials come from the environment or the machine's role, never from an address, which is written to result.json and
config.yaml. A path is taken as it is written, and percent-decoded where nothing has that name: ``lang=pt%2FBR`` is what
Spark really calls such a folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import pyarrow as pa
from pyarrow import fs

from gpudrift.errors import ConfigError
from gpudrift.source.steady import Patience, Store, kind_of, redact

_Place = tuple[Any, list[str]]
PATIENCE = Patience()
# GCS and Azure clients repeat requests themselves, out of reach; ours is one more, for what they let through
_OWN_RETRIES = 2
_GCS_RETRY_SECONDS = 15
_OPTIONS: dict[str, tuple[str, ...]] = {
    "s3": ("region", "endpoint_override", "scheme", "anonymous", "tls_ca_file_path"),
    "gs": ("endpoint_override", "scheme", "anonymous"),
    "abfss": ("endpoint_override", "scheme"),
}
_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfs": "abfss"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:://|::)")
_QUERY = re.compile(r"\?((?:[A-Za-z_][\w.-]*=[^&?]*)(?:&[A-Za-z_][\w.-]*=[^&?]*)*)$")
_PASSWORD = re.compile(r"(://[^/@:?]*):(?!\d{1,5}(?:[/?#]|$))\S*@")  # secret keys of S3 hold slashes; ports do not
_SECRET = re.compile(
    r"([?&](?:[\w.-]*(?:secret|password|passwd|token|signature|credential|access[_-]?key|account[_-]?key|api[_-]?key)"
    r"[\w.-]*|sig|sas|pwd|key)=)[^&]*",
    re.IGNORECASE,
)
_HINTS = {
    "s3": {
        "denied": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE, or the machine's role) to ones "
        "that may list and read this bucket; ?anonymous=true for public data",
        "elsewhere": "name the bucket's region: add ?region=...",
        "refused": "look at the credentials (expired?), and name the bucket's region: add ?region=...",
    },
    "gs": {
        "denied": "set GOOGLE_APPLICATION_CREDENTIALS, or give the machine's service account the right to list "
        "and read this bucket; ?anonymous=true for public data",
    },
    "abfss": {
        "denied": "set AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN, or AZURE_TENANT_ID, AZURE_CLIENT_ID and "
        "AZURE_CLIENT_SECRET, or give the machine's identity the right to list and read this container",
    },
    "other": {
        "denied": "give its credentials by the environment or its own configuration files",
    },
}
_DOWN = "run it again: nothing was written; where it stays so, look at the network, the endpoint and its name"


def is_address(uri: str) -> bool:
    """Whether this names a scheme, and is no plain path."""
    return _SCHEME.match(uri) is not None


def open_store(uri: str, patience: Patience | None = None) -> _Place:
    """The file system an address leads to (``fs.LocalFileSystem`` or ``steady.Store``), and the paths it may mean
    there, the likeliest first.

    Raises:
        ConfigError: secrets in the address, an option or scheme that does not exist, a package that is not installed.
    """
    match = _SCHEME.match(uri)
    if match is None:
        raise ConfigError("this is not an address", field="source.uri", value=uri, allowed="scheme://...")
    refuse_secrets(uri)
    scheme = _ALIASES.get(match[1].lower(), match[1].lower())
    if scheme == "file":
        path = uri[match.end() :].removeprefix("localhost")
        return fs.LocalFileSystem(), _spellings(Path("/" + path.lstrip("/")).as_posix())
    if scheme not in _OPTIONS:
        return _by_fsspec(uri, scheme, patience or PATIENCE)
    rest, options = _split(uri, scheme, uri[match.end() :])
    rest, patience = rest.rstrip("/"), patience or PATIENCE
    hints = {"failed": _DOWN, **_HINTS[scheme]}
    try:
        if scheme == "s3":
            return _s3(uri, rest, options, patience, hints)
        if scheme == "gs":
            return _gs(uri, rest, options, patience, hints)
        return _abfss(uri, rest, options, patience, hints)
    except ImportError as error:
        raise ConfigError(
            f"this pyarrow is built without {scheme}://",
            field="source.uri",
            value=uri,
            hint="install pyarrow from its own wheels: pip install --upgrade pyarrow",
        ) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigError(
            f"this address cannot be used: {redact(error)}", field="source.uri", value=uri, hint=hints.get("elsewhere")
        ) from error


def without_secrets(uri: str) -> str:
    """The address as it may be shown."""
    return _SECRET.sub(r"\1***", _PASSWORD.sub(r"\1:***@", uri))


def refuse_secrets(uri: str) -> None:
    """Refuse an address that holds credentials: it would be written to result.json, config.yaml and logs.

    Raises:
        ConfigError: with the secrets left out.
    """
    if (shown := without_secrets(uri)) != uri:
        raise ConfigError(
            "an address must not hold credentials: it is written to result.json, config.yaml and logs",
            field="source.uri",
            value=shown,
            allowed="an address alone; credentials from the environment or the machine's role",
            hint="set the variables of your store, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            "(docs/stores.md); whoever saw this command knows the secret",
        )


def _s3(uri: str, rest: str, options: Mapping[str, str], patience: Patience, hints: Mapping[str, str]) -> _Place:
    bucket, anonymous = _first(uri, rest, "s3://bucket/path"), _flag(uri, options, "anonymous")
    endpoint = (
        options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    scheme, endpoint = _endpoint(endpoint, options)
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region:
        region = "us-east-1" if endpoint else fs.resolve_s3_region(bucket)
    filesystem = fs.S3FileSystem(
        region=region,
        scheme=scheme,
        endpoint_override=endpoint,
        anonymous=anonymous,
        tls_ca_file_path=options.get("tls_ca_file_path"),
        connect_timeout=patience.connect,
        request_timeout=patience.stall,
        # ours are bounded, logged and the same for all stores; both would multiply
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    return Store(filesystem, patience, hints), _spellings(rest)


def _gs(uri: str, rest: str, options: Mapping[str, str], patience: Patience, hints: Mapping[str, str]) -> _Place:
    anonymous = _flag(uri, options, "anonymous")
    if rest.startswith("anonymous@"):
        rest, anonymous = rest.removeprefix("anonymous@"), True
    _first(uri, rest, "gs://bucket/path")
    scheme, endpoint = _endpoint(options.get("endpoint_override"), options)
    filesystem = fs.GcsFileSystem(
        anonymous=anonymous,
        scheme=scheme,
        endpoint_override=endpoint,
        retry_time_limit=timedelta(seconds=min(_GCS_RETRY_SECONDS, patience.stall)),
    )
    return Store(filesystem, _fewer(patience), hints), _spellings(rest)


def _abfss(uri: str, rest: str, options: Mapping[str, str], patience: Patience, hints: Mapping[str, str]) -> _Place:
    wanted = "abfss://container@account.dfs.core.windows.net/path, or abfss://container/path and AZURE_STORAGE_ACCOUNT"
    place, _, path = rest.partition("/")
    container, _, host = place.partition("@")
    account = host.partition(".")[0] or os.environ.get("AZURE_STORAGE_ACCOUNT", "")
    if not container or not account:
        raise ConfigError("a container or an account is missing", field="source.uri", value=uri, allowed=wanted)
    authority: dict[str, str] = {}
    scheme, endpoint = _endpoint(options.get("endpoint_override"), options)
    if endpoint:
        authority = {"blob_storage_authority": endpoint, "dfs_storage_authority": endpoint}
        authority |= {"blob_storage_scheme": scheme or "https", "dfs_storage_scheme": scheme or "https"}
    elif "." in host:
        domain = host.partition(".")[2].split(".", 1)[-1]  # account.dfs.DOMAIN
        authority = {"blob_storage_authority": f".blob.{domain}", "dfs_storage_authority": f".dfs.{domain}"}
    names = {"account_key": "AZURE_STORAGE_KEY", "sas_token": "AZURE_STORAGE_SAS_TOKEN"}
    secrets = {name: os.environ[variable] for name, variable in names.items() if os.environ.get(variable)}
    filesystem = fs.AzureFileSystem(account, **authority, **dict(list(secrets.items())[:1]))
    return Store(filesystem, _fewer(patience), hints), _spellings(f"{container}/{path}".rstrip("/"))


def _by_fsspec(uri: str, scheme: str, patience: Patience) -> _Place:
    try:
        import fsspec
    except ImportError as error:
        raise _not_installed(uri, scheme, "fsspec") from error
    try:
        # no cache of listings: it would hide that a file has changed
        filesystem, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except ImportError as error:
        raise _not_installed(uri, scheme, redact(error)) from error
    except Exception as error:  # what a file system in a file raises, where that is not there or not whole
        if scheme in fsspec.available_protocols():
            raise ConfigError(f"this address cannot be used: {redact(error)}", field="source.uri", value=uri) from error
        raise ConfigError(
            f"there is no scheme {scheme!r}",
            field="source.uri",
            value=uri,
            allowed="s3, gs, abfss, file, and the schemes of fsspec and its packages: "
            + ", ".join(sorted(set(fsspec.available_protocols()) - {*_ALIASES, *_OPTIONS, "local", "az", "adl"})),
        ) from error
    hints = {"failed": _DOWN, **_HINTS["other"]}
    return Store(_Fsspec(filesystem), patience, hints, filesystem.info), _spellings(path)


class _Fsspec:
    """An fsspec file system with the two methods of ``pyarrow.fs`` that are used here. pyarrow's own handler takes a
    server that is busy for a file that is not there."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem

    def get_file_info(self, wanted: Any) -> Any:
        try:
            if not isinstance(wanted, fs.FileSelector):
                return _file_info(wanted, self._filesystem.info(wanted))
            if wanted.recursive:
                found = self._filesystem.find(wanted.base_dir, detail=True)
            else:
                entries = self._filesystem.ls(wanted.base_dir, detail=True)
                found = {entry["name"].rstrip("/"): entry for entry in entries}
        except FileNotFoundError as error:
            if kind_of(error) != "missing":
                raise
            return [] if isinstance(wanted, fs.FileSelector) else fs.FileInfo(wanted, fs.FileType.NotFound)
        return [_file_info(name, info) for name, info in found.items() if name != wanted.base_dir]

    def open_input_file(self, path: str) -> Any:
        return pa.PythonFile(self._filesystem.open(path, "rb"), mode="r")


def _file_info(path: str, info: Mapping[str, Any]) -> Any:
    kind = {"file": fs.FileType.File, "directory": fs.FileType.Directory}.get(info["type"], fs.FileType.Unknown)
    return fs.FileInfo(path, kind, size=info.get("size") if kind == fs.FileType.File else None)


def _not_installed(uri: str, scheme: str, what: str) -> ConfigError:
    return ConfigError(
        f"{scheme}:// needs packages that are not installed: {what}",
        field="source.uri",
        value=uri,
        hint="pip install 'gpudrift[fsspec]', and the package of that store where it is named above",
    )


def _split(uri: str, scheme: str, rest: str) -> tuple[str, dict[str, str]]:
    """An address without its query, and the query's options. A ``?`` that no ``name=value`` follows is a wildcard."""
    found = _QUERY.search(rest)
    allowed = _OPTIONS[scheme]
    if found is None:
        return rest, {}
    options = dict(parse_qsl(found[1], keep_blank_values=True))
    if unknown := sorted(set(options) - set(allowed)):
        raise ConfigError(
            f"{scheme}:// has no option {unknown[0]!r}",
            field="source.uri",
            value=uri,
            allowed=allowed,
            hint="a '?' that stands for any one character, before 'name=', is written [!/]",
        )
    return rest[: found.start()], options


def _endpoint(endpoint: str | None, options: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Scheme and host:port; the endpoint may be written as a URL."""
    scheme = options.get("scheme")
    if endpoint and "://" in endpoint:
        named, endpoint = endpoint.split("://", 1)
        scheme = scheme or named
    return scheme, endpoint.rstrip("/") if endpoint else None


def _first(uri: str, rest: str, wanted: str) -> str:
    bucket = rest.partition("/")[0]
    if not bucket or re.search(r"[*?\[@]", bucket):
        raise ConfigError("there is no name of a bucket", field="source.uri", value=uri, allowed=wanted)
    return bucket


def _flag(uri: str, options: Mapping[str, str], name: str) -> bool:
    value = options.get(name, "false").lower()
    if value not in ("true", "false"):
        raise ConfigError(f"{name} is true or false", field="source.uri", value=uri, allowed=["true", "false"])
    return value == "true"


def _fewer(patience: Patience) -> Patience:
    return replace(patience, attempts=min(patience.attempts, _OWN_RETRIES))


def _spellings(path: str) -> list[str]:
    return list(dict.fromkeys([path, unquote(path)]))
