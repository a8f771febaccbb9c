"""Finished blocks on disk: what is written, when, and what is not taken for something else."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from gpudrift.engine.checkpoint import Checkpoints

DIGEST, OTHER = "ab" * 32, "cd" * 32
SUMS = {"rows": np.arange(6.0).reshape(2, 3), "squares": np.array([np.nan, -0.0]), "none": np.empty((2, 0))}


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "blocks", 0.0)


def file_of(kept: Checkpoints) -> Path:
    (path,) = kept.directory.iterdir()
    return path


def test_sums_come_back_with_their_bits(kept: Checkpoints) -> None:
    assert not kept.has("XY")
    assert kept.load("XY", DIGEST) is None
    kept.save("XY", DIGEST, 3, SUMS)
    assert kept.has("XY")
    assert not kept.has("X")
    done, sums = kept.load("XY", DIGEST)
    assert done == 3
    assert sums.keys() == SUMS.keys()
    for name, array in SUMS.items():
        assert sums[name].shape == array.shape
        assert sums[name].tobytes() == array.tobytes()


def test_a_pass_has_one_file_whatever_its_name(kept: Checkpoints) -> None:
    for done in (1, 2):
        kept.save("segments [a/b]* 3-4", DIGEST, done, SUMS)
    assert kept.has("segments [a/b]* 3-4")
    assert kept.load("segments [a/b]* 3-4", DIGEST)[0] == 2
    assert file_of(kept).parent == kept.directory


def test_arrays_of_any_layout_can_be_kept(kept: Checkpoints) -> None:
    turned = np.arange(12.0).reshape(3, 4).T[::2]
    kept.save("XY", DIGEST, 1, {"rows": turned})
    assert np.array_equal(kept.load("XY", DIGEST)[1]["rows"], turned)


def test_sums_of_other_data_are_left_alone(kept: Checkpoints) -> None:
    kept.save("XY", DIGEST, 3, SUMS)
    assert kept.load("XY", OTHER) is None
    assert kept.load("XX", DIGEST) is None
    assert kept.load("XY", DIGEST) is not None


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def _foreign(_: bytes) -> bytes:
    return save({"weights": np.zeros(3)})


def _of_another_run(content: bytes) -> bytes:
    return content.replace(DIGEST.encode(), OTHER.encode())


def _of_another_format(content: bytes) -> bytes:
    return content.replace(b"finished blocks 1", b"finished blocks 0")


def _one_more(content: bytes) -> bytes:
    assert b'"done":"3"' in content
    return content.replace(b'"done":"3"', b'"done":"4"')


@pytest.mark.parametrize(
    "damage",
    [_cut, _flip, _foreign, _of_another_run, _of_another_format, _one_more, lambda _: b"", lambda _: b"\xff" * 40],
)
def test_a_file_that_cannot_be_used_is_removed_and_told(kept: Checkpoints, damage, caplog) -> None:  # type: ignore[no-untyped-def]
    kept.save("XY", DIGEST, 3, SUMS)
    path = file_of(kept)
    changed = damage(path.read_bytes())
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    with caplog.at_level(logging.WARNING):
        assert kept.load("XY", DIGEST) is None
    assert "cannot be used" in caplog.text
    assert not path.exists()


def test_the_whole_digest_counts(kept: Checkpoints) -> None:
    """A file's name holds its beginning alone."""
    kept.save("XY", DIGEST[:20] + OTHER[20:], 3, SUMS)
    assert kept.load("XY", DIGEST) is None
    assert list(kept.directory.iterdir()) == []


def test_a_file_that_cannot_be_read_is_told(kept: Checkpoints, caplog) -> None:  # type: ignore[no-untyped-def]
    kept.save("XY", DIGEST, 3, SUMS)
    path = file_of(kept)
    path.unlink()
    path.mkdir()
    assert kept.load("XY", DIGEST) is None
    assert "cannot be read" in caplog.text
    kept.forget("XY", DIGEST)
    assert "cannot be removed" in caplog.text


def test_writes_are_seconds_apart_and_begin_with_the_pass(tmp_path: Path) -> None:
    clock = Clock()
    kept = Checkpoints(tmp_path, 30.0, clock)
    clock.time += 29.0
    assert not kept.due()
    clock.time += 1.0
    assert kept.due()
    kept.begin()
    assert not kept.due()
    clock.time += 30.0
    assert kept.due()
    kept.save("XY", DIGEST, 1, SUMS)
    assert not kept.due()
    assert Checkpoints(tmp_path, 0.0, clock).due()


def test_long_writes_are_further_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    kept = Checkpoints(tmp_path, 30.0, clock)

    def slow(path: Path, content: bytes) -> int:
        clock.time += 10.0
        with path.open("wb") as handle:
            return handle.write(content)

    monkeypatch.setattr(Path, "write_bytes", slow)
    kept.save("XY", DIGEST, 1, SUMS)
    clock.time += 199.0  # 10 s of writing in 200 s are a twentieth
    assert not kept.due()
    clock.time += 1.0
    assert kept.due()


def test_a_full_disk_is_told_once_and_ends_nothing(kept: Checkpoints, caplog) -> None:  # type: ignore[no-untyped-def]
    kept.save("XY", DIGEST, 1, SUMS)
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, most[1]))
    try:
        kept.save("XY", DIGEST, 2, SUMS)
        kept.save("XY", DIGEST, 3, SUMS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert caplog.text.count("cannot be kept") == 1
    assert len(list(kept.directory.iterdir())) == 1  # no half file beside it
    assert kept.load("XY", DIGEST)[0] == 1
    kept.save("XY", DIGEST, 4, SUMS)  # it has been told that nothing more is written
    assert kept.load("XY", DIGEST)[0] == 1


def test_a_directory_that_cannot_be_made_ends_nothing(tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "blocks").write_text("a file")
    kept = Checkpoints(tmp_path / "blocks", 0.0)
    assert not kept.has("XY")
    kept.save("XY", DIGEST, 1, SUMS)
    kept.clear()
    assert "cannot be kept" in caplog.text
    assert (tmp_path / "blocks").read_text() == "a file"


def test_nothing_is_left_after_the_run(kept: Checkpoints) -> None:
    kept.clear()  # of nothing
    kept.save("XX", DIGEST, 1, SUMS)
    kept.save("XY", OTHER, 2, SUMS)
    (kept.directory / ".XY.999999999.tmp.safetensors").write_bytes(b"of a killed run")
    kept.forget("XX", DIGEST)
    assert kept.load("XX", DIGEST) is None
    assert kept.load("XY", OTHER) is not None
    kept.clear()
    assert not kept.directory.exists()


def test_files_of_others_stay(kept: Checkpoints) -> None:
    kept.save("XX", DIGEST, 1, SUMS)
    (kept.directory / "notes.txt").write_text("mine")
    kept.clear()
    assert [path.name for path in kept.directory.iterdir()] == ["notes.txt"]


def test_the_file_is_plain_safetensors(kept: Checkpoints) -> None:
    kept.save("XY", DIGEST, 3, SUMS)
    assert np.array_equal(load(file_of(kept).read_bytes())["rows"], SUMS["rows"])
