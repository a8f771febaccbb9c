"""The job's configuration: every setting with its default and meaning, a module a group.

The schemas are mutable dataclasses because OmegaConf composes YAML into them; what leaves this package is a validated
``JobConfig`` of plain Python values.
"""

from gpudrift.config.checks import parse_date, parse_onset, parse_quiet
from gpudrift.config.compose import register, to_job, to_plain, to_yaml
from gpudrift.config.engine import EngineConfig, EngineKind
from gpudrift.config.job import JobConfig
from gpudrift.config.jobs import JobKind, StreamUntil

__all__ = [
    "EngineConfig",
    "EngineKind",
    "JobConfig",
    "JobKind",
    "StreamUntil",
    "parse_date",
    "parse_onset",
    "parse_quiet",
    "register",
    "to_job",
    "to_plain",
    "to_yaml",
]
