"""Sketch files: what is written comes back to the bit, and a file that is not whole is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_sketch import assert_same, cloud, ids_of, plan_of, sketch_of
from safetensors.torch import load_file, save_file

from gpudrift.errors import DataError, ReferenceMismatchError
from gpudrift.sketch import Sketch, SketchPlan


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = plan_of(cloud(301), features=8, bins=16, reservoir=5)
    path = tmp_path_factory.mktemp("written") / "a.safetensors"
    sketch_of(plan, cloud(30)).save(path)
    return path


@pytest.mark.parametrize("rows", [0, 1, 12, 300])
def test_a_sketch_comes_back_and_goes_on(plan: SketchPlan, tmp_path: Path, rows: int) -> None:
    path = tmp_path / "new" / "a.safetensors"
    sketch = sketch_of(plan, cloud(rows))
    sketch.save(path)
    found = Sketch.load(path)
    assert found.plan.id == plan.id
    assert_same(found, sketch, rel=0.0)
    assert found.reservoir()[1].equals(sketch.reservoir()[1])
    more = sketch_of(plan, cloud(40, seed=1), 1000)
    assert_same(found.merge(more), sketch.merge(more), rel=0.0)
    assert_same(Sketch.load(path, plan), sketch, rel=0.0)
    assert list(path.parent.iterdir()) == [path]


def test_equal_sketches_are_equal_files(plan: SketchPlan, tmp_path: Path) -> None:
    for name in ("a", "b"):
        sketch_of(plan, cloud(30)).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_plan_is_refused(written: Path, plan: SketchPlan) -> None:
    with pytest.raises(ReferenceMismatchError, match="another plan") as caught:
        Sketch.load(written, plan)
    assert str(written) in str(caught.value)
    assert caught.value.allowed == plan.id


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_flipped_bit_anywhere_is_seen(written: Path, tmp_path: Path, data: st.DataObject) -> None:
    contents = bytearray(written.read_bytes())
    # the header is a small part of the file, and has more to go wrong
    header = 8 + int.from_bytes(contents[:8], "little")
    place = data.draw(st.one_of(st.integers(0, header - 1), st.integers(0, len(contents) - 1)))
    contents[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "b.safetensors"
    path.write_bytes(contents)
    with pytest.raises(DataError) as caught:
        Sketch.load(path)
    assert str(path) in str(caught.value)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_seen(written: Path, tmp_path: Path, share: float) -> None:
    contents = written.read_bytes()
    path = tmp_path / "b.safetensors"
    path.write_bytes(contents[: int(len(contents) * share)])
    with pytest.raises(DataError, match="damaged") as caught:
        Sketch.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_one_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.safetensors"):
        Sketch.load(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="no gpudrift sketch"):
        Sketch.load(tmp_path / "other.safetensors")


def test_another_version_is_told_as_such(written: Path, tmp_path: Path) -> None:
    contents = written.read_bytes()
    size = int.from_bytes(contents[:8], "little")
    meta = json.loads(json.loads(contents[8 : 8 + size])["__metadata__"]["sketch"])
    path = tmp_path / "b.safetensors"
    save_file(load_file(written), path, metadata={"sketch": json.dumps({**meta, "version": 2})})
    with pytest.raises(ReferenceMismatchError, match="another format") as caught:
        Sketch.load(path)
    assert (caught.value.value, caught.value.allowed, str(path) in str(caught.value)) == (2, [1], True)


def test_a_failed_write_leaves_the_old_file(plan: SketchPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    sketch_of(plan, cloud(30)).save(path)
    before = path.read_bytes()

    def fail(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("gpudrift.sketch.storage.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        sketch_of(plan, cloud(40)).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def spoil(state: dict[str, torch.Tensor], name: str) -> None:
    if name == "reservoir.id_offsets":
        state[name] = state[name].clone()
        state[name][1] += 1
    else:
        state[name] = state[name] + 1


@pytest.mark.parametrize(
    "name",
    [
        "count",
        "histograms.counts",
        "norms.counts",
        "features.counts",
        "reservoir.keys",
        "reservoir.rows",
        "reservoir.id_bytes",
        "reservoir.id_offsets",
    ],
)
def test_parts_that_do_not_fit_each_other(plan: SketchPlan, name: str) -> None:
    """A state is checked without its file too: other files hold it."""
    state = sketch_of(plan, cloud(60)).state()
    spoil(state, name)
    with pytest.raises(DataError):
        Sketch.from_state(plan, state)


@pytest.mark.parametrize("name", ["mean", "scatter", "extent", "features", "histograms.sums", "norms.sums"])
def test_parts_of_another_shape_type_or_missing(plan: SketchPlan, name: str) -> None:
    state = sketch_of(plan, cloud(60)).state()
    for part in (state[name][1:], state[name].float(), torch.full_like(state[name], torch.nan), None):
        changed = {**state, name: part}
        if part is None:
            del changed[name]
        with pytest.raises(DataError):
            Sketch.from_state(plan, changed)


def test_tensors_that_are_no_plan() -> None:
    with pytest.raises(DataError, match="no sketch plan"):
        SketchPlan.from_state({"mean": torch.zeros(3)})


def test_a_state_and_its_sketch_share_no_memory(plan: SketchPlan) -> None:
    sketch = sketch_of(plan, cloud(60))
    found = Sketch.from_state(plan, sketch.state())
    before = {name: tensor.clone() for name, tensor in sketch.state().items()}
    found.update(torch.from_numpy(cloud(30, seed=1)), ids_of(60, 30))
    for name, tensor in sketch.state().items():
        assert torch.equal(tensor, before[name]), name
