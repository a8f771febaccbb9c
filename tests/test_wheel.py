"""From the source to a wheel to a clean environment to a run in another directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def call(*command: str | Path, directory: Path, code: int = 0) -> str:
    """Run a command without this checkout on its path; its standard output and error."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=directory, env=clean, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


def test_sdist_to_wheel_to_a_clean_environment_to_a_run(tmp_path: Path) -> None:
    # --no-isolation: the build backend is a development dependency; the wheel is built from the sdist
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ROOT, directory=tmp_path)
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("benchmarks/cut_sample.py", "tests/test_wheel.py", "tests/jobs.py", "configs/job.yaml", "Makefile",
                   "docs/result.md", "constraints.txt", "README.md", "CHANGELOG.md", "LICENSE"):  # fmt: skip
        assert needed in packed
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    configs = {f"gpudrift/{file.relative_to(ROOT)}" for file in (ROOT / "configs").rglob("*.yaml")}
    sample = {str(file.relative_to(ROOT)) for file in (ROOT / "gpudrift" / "sample").rglob("*.parquet")}
    assert configs
    assert sample
    assert configs | sample | {"gpudrift/py.typed", "gpudrift/sample/outcomes.csv"} <= names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert not {name for name in names if name.startswith(("tests/", "benchmarks/"))}
    assert not {name for name in names | packed if "__pycache__" in name or name.startswith("out/")}

    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt")
    call(*pip, wheel, directory=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    said = call(python, "-W", "error", "-m", "gpudrift", "+experiment=ci", directory=elsewhere, code=20)
    assert "ALERT  2026-W43" in said
    assert "Traceback" not in said
    assert json.loads((elsewhere / "out" / "ci" / "result.json").read_text(encoding="utf-8"))["verdict"] == "alert"
    assert {path.name for path in elsewhere.iterdir()} == {"out"}
    assert len(list((elsewhere / "out" / "ci" / "plots").iterdir())) == 18
    assert "2026-W43" in (elsewhere / "out" / "ci" / "report.html").read_text(encoding="utf-8")
    call(tmp_path / "env" / "bin" / "gpudrift", "--cfg", "job", directory=elsewhere)
