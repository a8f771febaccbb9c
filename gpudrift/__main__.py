"""Hydra entry: configuration -> job -> pipeline -> exit code. Nothing else."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from gpudrift.config import register, to_job
from gpudrift.config.compose import refuse_pasted_secret
from gpudrift.errors import ConfigError, GpudriftError

_PACKAGE = Path(__file__).resolve().parent


def config_directory() -> str:
    """The configs: beside the package's modules in an installed wheel, beside the package in a checkout."""
    places = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    return str(next((place for place in places if (place / "job.yaml").is_file()), places[0]))


def check_quotes(arguments: Sequence[str]) -> None:
    """Name the argument that Hydra's grammar cannot read: Hydra itself says only ``mismatched input '='``.

    Raises:
        ConfigError: a value that has to be quoted.
    """
    parser = OverridesParser.create()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not re.fullmatch(r"\+{0,2}[a-z_.]+", key):  # such as a flag; Hydra sees to it
            continue
        name = key.lstrip("+")
        refuse_pasted_secret(name, value)
        try:
            parser.parse_override(argument)
        except HydraException:
            from gpudrift.source.stores import without_secrets

            shown = "..." if name.startswith(("notify.", "prometheus.")) else without_secrets(value)
            hint = "quote text that holds = ? & ( ) or spaces for Hydra, and the whole argument for the shell"
            right = _quoted(name, shown)
            if right:
                hint += f": '{key}={right}'"
            received = "(hidden)" if shown == "..." else shown
            raise ConfigError("this value cannot be parsed", field=name, value=received, hint=hint) from None


def _quoted(name: str, value: str) -> str:
    """A value as Hydra's grammar takes it; empty where quotes of its own make that a puzzle."""
    if name == "source.filter":
        return '[[lang,"==",en]]'
    if '"' in value:
        return ""
    if re.fullmatch(r"\[[^][]*\]", value):  # a list: its texts are quoted, each by itself
        return "[" + ",".join(f'"{text.strip()}"' for text in value[1:-1].split(",")) + "]"
    return f'"{value}"'


def main() -> None:
    """Run the job that the command line names and exit with its code."""
    register()
    code = 0  # stays so where Hydra does not call the job: --cfg, --info

    @hydra.main(version_base="1.3", config_path=config_directory(), config_name="job")
    def entry(node: Any) -> None:
        nonlocal code
        from gpudrift.report.terminal import Reporter

        reporter = Reporter()
        try:
            job = to_job(node)
            from gpudrift.pipeline import run_job

            code = max(code, run_job(job, reporter))  # of a sweep (--multirun) the gravest
        except GpudriftError as error:
            reporter.error(error)
            code = max(code, error.exit_code)
        except OSError as error:  # such as a full disk in the middle of a run; every file written so far is whole
            reporter.error(error)
            code = max(code, 1)
        except KeyboardInterrupt:
            reporter.warn("interrupted; run it again to finish")
            code = 130

    try:
        check_quotes(sys.argv[1:])
    except ConfigError as error:
        from gpudrift.report.terminal import Reporter

        Reporter().error(error)
        sys.exit(error.exit_code)
    entry()  # Hydra drops return values and exits by itself on --help, --cfg and bad overrides
    leave(code)


def leave(code: int) -> None:
    """End the process with this code, also where Ray hangs."""
    reach = sys.modules.get("gpudrift.engine.reach")  # there with Ray alone; its package would load torch
    if reach is not None and reach.hangs():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
