"""Between Hydra's nodes and the validated ``JobConfig``: with ``__main__`` alone in knowing Hydra and OmegaConf.

``__post_init__`` runs in ``OmegaConf.to_object`` only, so ``to_job`` is the first line of main.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from typing import Any

from gpudrift.config.job import JobConfig
from gpudrift.config.outputs import NotifyConfig, PrometheusConfig
from gpudrift.errors import ConfigError


def register() -> None:
    """Put the schemas into Hydra's store under the names the YAML files' defaults lists use."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="job_schema", node=JobConfig)


def to_job(node: Any) -> JobConfig:
    """A composed Hydra node -> a validated ``JobConfig``. Undeclared keys are refused: ``+typo=3`` passes Hydra's
    struct check and would vanish in the conversion."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _refuse_undeclared(OmegaConf.to_container(node, resolve=False), JobConfig, "")
    try:
        job = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        # omegaconf wraps what __post_init__ raises
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        raise ConfigError(f"the configuration cannot be read: {error}") from error
    if not isinstance(job, JobConfig):
        raise ConfigError("the configuration lacks the job schema", allowed="configs/job.yaml as the primary config")
    return job


def may_be_secret(key: str, value: Any) -> bool:
    """Whether what was given for a setting is not to be repeated: people paste addresses and passwords into the groups
    of the sinks, and an address under a name that does not exist may be a webhook's."""
    return key.partition(".")[0] in ("notify", "prometheus") or "://" in str(value)


def refuse_pasted_secret(key: str, value: str) -> None:
    """Refuse a webhook's address among the settings, and a setting of a sink that does not exist: Hydra, which would
    refuse most of them too, repeats what it was given."""
    group, _, name = key.partition(".")
    if group == "notify" and name != "report_url" and "://" in value:
        raise ConfigError(
            "this setting takes no address",
            field=key,
            value="(hidden)",
            hint="put the address of the webhook into the environment variable that notify.url_env names; whoever saw "
            "this command knows it (docs/notify.md)",
        )
    known = {"notify": NotifyConfig, "prometheus": PrometheusConfig}.get(group)
    if known is not None and name:
        _refuse_undeclared({name.partition(".")[0]: value}, known, f"{group}.")


def _refuse_undeclared(values: Any, schema: type, prefix: str) -> None:
    declared = {f.name: f for f in fields(schema)}
    for key in values:
        if key not in declared:
            name, value = f"{prefix}{key}", values[key]
            raise ConfigError(
                "there is no such setting",
                field=name,
                value="(hidden)" if may_be_secret(name, value) else value,
                allowed=sorted(declared),
                hint="secrets come from the environment: docs/notify.md, docs/metrics.md"
                if prefix in ("notify.", "prometheus.")
                else None,
            )
        factory = declared[key].default_factory
        if isinstance(factory, type) and is_dataclass(factory) and isinstance(values[key], dict):
            _refuse_undeclared(values[key], factory, f"{prefix}{key}.")


def to_plain(job: Any) -> dict[str, Any]:
    """A ``JobConfig`` as plain JSON/YAML values, in the order of declaration."""

    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.value
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return value

    return {k: plain(v) for k, v in asdict(job).items()}


def to_yaml(plain: Mapping[str, Any]) -> str:
    """A job's plain values as a primary configuration: it composes with the schema alone, to the same job."""
    from omegaconf import OmegaConf

    return _PRIMARY + OmegaConf.to_yaml(OmegaConf.create(dict(plain)))


_PRIMARY = """\
# Run again: python -m gpudrift --config-dir <this directory> --config-name config
defaults:
  - job_schema
  - override hydra/job_logging: disabled
  - override hydra/hydra_logging: disabled
  - _self_
hydra:
  job: {name: gpudrift}
  output_subdir: null
  run: {dir: .}
"""
