"""The configuration: every experiment composes, every setting is checked, users' own experiments work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException

from gpudrift.__main__ import config_directory
from gpudrift.config import EngineKind, JobConfig, JobKind, register, to_job, to_plain, to_yaml
from gpudrift.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted(file.stem for file in (ROOT / "configs" / "experiment").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    register()
    with initialize_config_dir(config_directory(), version_base="1.3"):
        yield


def job_of(*overrides: str) -> JobConfig:
    return to_job(compose("job", overrides=list(overrides)))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_the_experiments_are_those_promised() -> None:
    assert {"weekly", "nightly", "ci", "synthetic"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_to_a_valid_job(experiment: str) -> None:
    job = job_of(f"+experiment={experiment}")
    assert job.name == experiment
    assert job.output.dir == f"out/{experiment}"


def test_what_the_experiments_are_for() -> None:
    weekly, nightly, ci, synthetic = (
        job_of(f"+experiment={name}") for name in ("weekly", "nightly", "ci", "synthetic")
    )
    assert [job.windows.period for job in (weekly, nightly, ci)] == ["week", "day", "week"]
    assert [job.alert.fail_on.value for job in (weekly, nightly, ci)] == ["never", "never", "alert"]
    assert ci.device == "cpu"
    assert (synthetic.job, synthetic.source.uri) == (JobKind.compare, synthetic.generate.path)


def test_an_experiment_gives_way_to_the_command_line() -> None:
    job = job_of("+experiment=weekly", "windows=day", "output.dir=o", "windows.min_rows=7")
    assert (job.windows.period, job.output.dir, job.windows.min_rows) == ("day", "o", 7)


def test_the_engine_is_a_group() -> None:
    job = job_of("+experiment=weekly", "engine=ray", "engine.address=h:6379", "engine.device=cuda")
    assert (job.engine.kind, job.engine.address, job.engine.device) == (EngineKind.ray, "h:6379", "cuda")
    assert job_of("engine=ray", "engine.address='[::1]:6379'").engine.address == "[::1]:6379"
    assert job_of("engine.devices=[0,cuda:1]").engine.devices == ["0", "cuda:1"]
    with pytest.raises(ConfigError) as refused:  # devices are those of this machine
        job_of("engine=ray", "engine.devices=[0]")
    assert refused.value.field == "engine.devices"
    with pytest.raises(ConfigError, match="engine=ray is missing") as refused:
        job_of("engine.address=h:6379")
    assert refused.value.field == "engine.address"


def test_without_an_experiment_the_defaults_are_those_of_the_schema() -> None:
    assert to_plain(job_of()) == to_plain(JobConfig())


# Names that scripts outside rely on, with a value that differs from the default.
STAYING = {
    "source.uri": "/data/x",
    "source.embedding_column": "vector",
    "source.id_column": "key",
    "source.time_column": "at",
    "source.cluster_column": "user",
    "source.segment_columns": ["language", "country"],
    "source.encoding": "float16",
    "reference.path": "/r",
    "reference.replace": True,
    "history.path": "/h",
    "windows.period": "10d",
    "windows.reference.start": "2026-01-05",
    "windows.reference.end": "2026-03-30",
    "windows.min_rows": 7,
    "run_date": "2026-10-31",
    "output.dir": "/o",
    "alert.fail_on": "warn",
    "seed": 5,
    "device": "cuda:1",
    "backfill.start": "2026-01-05",
    "backfill.end": "2026-03-30",
}


def test_names_that_stay() -> None:
    written = [
        f"{name}={'[' + ','.join(value) + ']' if isinstance(value, list) else value}" for name, value in STAYING.items()
    ]
    found = flat(to_plain(job_of(*written)))
    default = flat(to_plain(JobConfig()))
    for name, value in STAYING.items():
        assert found[name] == value
        assert default[name] != value


def test_defaults_that_stay() -> None:
    default = flat(to_plain(JobConfig()))
    assert default["source.embedding_column"] == "embedding"
    assert default["source.time_column"] == "event_time"
    assert default["windows.reference.count"] == 12
    for name in ("source.id_column", "source.cluster_column", "reference.path", "history.path", "run_date"):
        assert default[name] is None


@pytest.mark.parametrize("key", ["typo", "source.typo", "windows.reference.typo", "calibrate.typo"])
def test_a_setting_that_does_not_exist_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="no such setting") as error:
        job_of(f"+{key}=3")
    assert (error.value.field, error.value.value) == (key, 3)
    with pytest.raises(ConfigCompositionException, match=key.rsplit(".", 1)[0]):
        job_of(f"{key}=3")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "abc"), ("windows.min_rows", "many"), ("windows.min_rows", "1.5"), ("quality.max_bad_fraction", "[1]"),
        ("reference.replace", "maybe"), ("alert.fail_on", "sometimes"), ("job", "dance"), ("metrics.bandwidths", "[a]"),
        ("source.segment_columns", "user"), ("seed", "null"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_refused_by_name(key: str, value: str) -> None:
    with pytest.raises((HydraException, ConfigError)) as error:
        job_of(f"{key}={value}")
    assert key in str(error.value) + str(error.value.__cause__)


BAD = [
    ("seed", "-1"), ("name", "a/b"), ("name", "'..'"), ("name", "''"),
    ("run_date", "2026-13-01"), ("run_date", "today"),
    ("device", "gpu"), ("device", "cuda:x"), ("precision", "int8"), ("source.uri", "''"), ("source.uri", "' '"),
    ("source.embedding_column", "''"), ("source.time_column", "''"), ("source.threads", "-1"),
    ("quality.max_bad_fraction", "1.1"), ("quality.max_bad_fraction", "-0.1"), ("quality.max_bad_fraction", "nan"),
    ("windows.period", "fortnight"), ("windows.period", "0d"), ("windows.period", "10000d"), ("windows.min_rows", "3"),
    ("windows.reference.count", "2"), ("project.components", "0"), ("project.components", "1025"),
    ("project.niter", "1"), ("metrics.components", "0"), ("metrics.bins", "1"), ("metrics.directions", "0"),
    ("metrics.bandwidths", "[]"), ("metrics.bandwidths", "[0.0]"), ("metrics.bandwidths", "[1.0,1.0]"),
    ("metrics.bandwidths", "[inf]"), ("metrics.bandwidths", "[nan]"), ("calibrate.warn_p", "0"),
    ("calibrate.gates", "[]"), ("calibrate.gates", "[enrgy]"), ("calibrate.gates", "[energy,energy]"),
    ("calibrate.gates", "[energy,mmd2_b5]"), ("calibrate.also", "[before]"), ("calibrate.also", "[previous,previous]"),
    ("calibrate.close_p", "0.5"), ("calibrate.clear_p", "0.001"), ("calibrate.min_windows", "2"),
    ("calibrate.max_dropped", "1"), ("calibrate.hygiene_sd", "0"), ("output.dir", "''"),
    ("compare.reference", "x"), ("compare.current", "x"), ("backfill.start", "x"), ("backfill.end", "x"),
    ("generate.start", "x"), ("generate.weeks", "0"), ("generate.dim", "1"), ("generate.dtype", "int8"),
    ("generate.new_cluster", "1.1"), ("generate.spread_change", "0"), ("generate.rows_per_user", "0.5"),
    ("outcomes.lags", "53"), ("outcomes.spike_p", "0.5"), ("outcomes.spike_p", "nan"), ("outcomes.fdr", "0"),
    ("outcomes.min_windows", "11"), ("outcomes.permutations", "98"), ("outcomes.lower_is_worse", "[[a]]"),
    ("outcomes.higher_is_worse", "['']"), ("report.keep", "0"), ("history.last", "0"), ("history.path", "s3://b/h"),
    ("output.dir", "s3://b/out"), ("reference.path", "gs://b/r"), ("prometheus.textfile", "s3://b/x.prom"),
    ("prometheus.textfile", "metrics.txt"), ("prometheus.push", "ftp://h"), ("prometheus.push", "http://h:99999"),
    ("prometheus.push", "http://h:abc"), ("prometheus.push", "http://h:0"), ("prometheus.push", "http://u@h:1"),
    ("prometheus.timeout_seconds", "nan"), ("notify.url_env", "A-B"), ("notify.verdicts", "[stable]"),
    ("notify.verdicts", "[alert,alert]"), ("notify.verdicts", "[[alert]]"), ("notify.cooldown_hours", "-1"),
    ("notify.timeout_seconds", "0"), ("notify.attempts", "11"), ("notify.report_url", "''"),
    ("notify.report_url", "https://u:p@h/out"), ("dashboard.jobs", "[a,a]"), ("dashboard.jobs", "['a b']"),
    ("dashboard.stale_hours", "0"), ("engine.devices", "[gpu]"), ("engine.devices", "[cpu,0]"),
    ("engine.block_rows", "100"), ("engine.block_rows", "48"), ("engine.block_rows", "8388608"),
    ("engine.checkpoint_seconds", "-1"), ("engine.checkpoint_seconds", "nan"), ("engine.attempts", "0"),
    ("engine.task_seconds", "0"), ("engine.address", "head"), ("engine.address", "ray://h:10001"),
    ("engine.workers", "0"), ("engine.cpus_per_task", "-1"), ("engine.gpus_per_task", "-1"),
    ("engine.connect_seconds", "0"), ("engine.device", "cuda"), ("engine.device", "gpu"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), BAD)
def test_a_value_out_of_range_is_refused_with_field_value_and_what_is_allowed(key: str, value: str) -> None:
    with pytest.raises(ConfigError) as error:
        job_of(f"{key}={value}")
    assert error.value.field == key
    assert error.value.allowed
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["windows.reference.start=2026-01-05"], "windows.reference"),
        (["windows.reference.end=2026-01-05"], "windows.reference"),
        (["windows.reference.start=2026-01-05", "windows.reference.end=2026-01-05"], "windows.reference.end"),
        (["windows.reference.start=soon", "windows.reference.end=2026-01-05"], "windows.reference.start"),
        (["backfill.start=2026-01-05", "backfill.end=2026-01-05"], "backfill.end"),
    ],
)
def test_dates_that_do_not_fit_together_are_refused(overrides: list[str], field: str) -> None:
    with pytest.raises(ConfigError) as error:
        job_of(*overrides)
    assert error.value.field == field


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_written_configuration_runs_again_to_the_same_job(experiment: str, tmp_path: Path) -> None:
    filters = 'source.filter=[[language,"==",en],[tokens,">",3]]'
    job = job_of(f"+experiment={experiment}", "run_date=2026-10-31", filters, "source.encoder_id='1e3'", "windows=day")
    (tmp_path / "config.yaml").write_text(to_yaml(to_plain(job)), encoding="utf-8")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert to_plain(to_job(compose("config"))) == to_plain(job)


def test_the_synthetic_corpus_lies_in_the_output_directory() -> None:
    job = job_of("+experiment=synthetic", "output.dir=elsewhere")
    assert (job.generate.path, job.source.uri) == ("elsewhere/corpus", "elsewhere/corpus")


def test_an_experiment_of_a_users_own(tmp_path: Path) -> None:
    directory = tmp_path / "mine" / "experiment"
    directory.mkdir(parents=True)
    (directory / "ours.yaml").write_text(
        "# @package _global_\njob: generate\nname: ours\ngenerate: {path: corpus, weeks: 1, rows_per_week: 8, dim: 4, "
        "drift_week: 0, start: 2026-01-12}\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "gpudrift", "--config-dir", "mine", "+experiment=ours", "generate.rows_per_week=9"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "9 rows x 4 float16" in done.stderr) == (0, True), done.stderr
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.parquet")] == [
        "corpus/week=2026-W03/part-0.parquet"
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "corpus"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prometheus.push", "http://localhost:9091"), ("prometheus.push", "https://[::1]:9091/push"),
        ("notify.report_url", "https://host:8443/a/@team"), ("notify.report_url", "file:///srv/out"),
        ("outcomes.lags", "0"), ("notify.cooldown_hours", "0"), ("notify.verdicts", "[]"),
    ],
)  # fmt: skip
def test_a_borderline_value_is_taken(key: str, value: str) -> None:
    quoted = value if value[0] == "[" else f'"{value}"'
    group, name = key.split(".")
    assert str(to_plain(job_of(f"{key}={quoted}"))[group][name]) in (value, f"{value}.0")
