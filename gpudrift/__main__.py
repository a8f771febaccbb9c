"""Hydra entry: configuration -> job -> pipeline -> exit code. Nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra

from gpudrift.config import register, to_job
from gpudrift.errors import GpudriftError

_PACKAGE = Path(__file__).resolve().parent


def config_directory() -> str:
    """The configs: beside the package's modules in an installed wheel, beside the package in a checkout."""
    places = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
    return str(next((place for place in places if (place / "job.yaml").is_file()), places[0]))


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

    entry()  # Hydra drops return values and exits by itself on --help, --cfg and bad overrides
    sys.exit(code)


if __name__ == "__main__":
    main()
