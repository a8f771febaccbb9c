"""The pinned reference: hygiene, the A/A null against direct computation, the artifact's round trip, and every way in
which an artifact can fail to fit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_cloud import MONDAY, PANEL, SETTINGS, dense_energy, make_cloud
from safetensors.torch import load_file

import gpudrift
from gpudrift import kernels, reference
from gpudrift.arithmetic import Arithmetic
from gpudrift.calibrate import clean
from gpudrift.errors import InsufficientDataError, ReferenceMismatchError
from gpudrift.fingerprint import fingerprint, row_hashes
from gpudrift.metrics.accumulate import mean_of
from gpudrift.metrics.pairs import null_scale, null_sd
from gpudrift.movement import aa_null
from gpudrift.panel import centre
from gpudrift.records import Cloud, Window
from gpudrift.reference import Reference, ReferenceWindow, Rows
from gpudrift.sampling import Limit, limit_of

SIZES = (30, 24, 41, 26, 33)
SPAN = (MONDAY, MONDAY + timedelta(weeks=5))

EXACT = Arithmetic("float64", "as the tests want it", 1.0)
LIMIT = Limit(1000, "as the tests want it")


def built(seed: int = 0, *, users: bool = False, settings: dict[str, Any] = SETTINGS) -> tuple[Reference, Rows, Cloud]:
    cloud, prints, codes = make_cloud(SIZES, seed=seed, users=users)
    screened = reference.screen(cloud, hygiene_sd=4.0, arithmetic=EXACT, clusters=codes)
    assert screened.mean is not None
    gone = ReferenceWindow(Window(MONDAY - timedelta(weeks=1), MONDAY, "week 12-29"), 77, "77-00", 0.1 + 0.2)
    pinned, rows = reference.build(
        cloud,
        prints,
        screened.mean,
        dropped=[gone],
        span=SPAN,
        period="week",
        left_out=[("week 12-22", "3 rows; windows.min_rows is 20")],
        panel=PANEL,
        settings=settings,
        arithmetic=EXACT,
        limit=LIMIT,
        clusters=codes,
    )
    return pinned, rows, cloud


def assert_equal(found: Any, wanted: Any, path: str = "reference") -> None:
    """Equal to the bit, through dataclasses, tensors and containers. The blocks of self sums, of one group and the
    total once more, are added in another order; no score of a pinned reference reads them."""
    assert type(found) is type(wanted), path
    if path.endswith("self_sums.blocks"):
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)
    elif isinstance(wanted, torch.Tensor):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), path
        assert found.contiguous().numpy().tobytes() == wanted.contiguous().numpy().tobytes(), path
    elif dataclasses.is_dataclass(wanted):
        for field in dataclasses.fields(wanted):
            assert_equal(getattr(found, field.name), getattr(wanted, field.name), f"{path}.{field.name}")
    elif isinstance(wanted, tuple):
        assert len(found) == len(wanted), path
        for k, (a, b) in enumerate(zip(found, wanted, strict=True)):
            assert_equal(a, b, f"{path}[{k}]")
    else:
        assert found == wanted, path


@pytest.mark.parametrize("users", [False, True])
def test_save_and_load_give_the_same_reference_to_the_bit(tmp_path: Path, users: bool) -> None:
    pinned, _, _ = built(users=users)
    assert not reference.exists(tmp_path)
    reference.save(pinned, tmp_path)
    assert reference.exists(tmp_path)
    assert_equal(reference.load(tmp_path, "cpu"), pinned)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    reference.save(reference.load(tmp_path, "cpu"), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_the_artifact_says_of_itself(tmp_path: Path) -> None:
    pinned, _, _ = built()
    reference.save(pinned, tmp_path)
    meta = json.loads((tmp_path / "reference.json").read_text(encoding="utf-8"))
    assert (meta["format_version"], meta["dim"], meta["rows"], meta["encoder_id"]) == (5, 5, sum(SIZES), "e5")
    assert [w["label"] for w in meta["windows"]] == [w.label for w in pinned.windows]
    assert [w["rows"] for w in meta["windows"]] == list(SIZES)
    file = tmp_path / meta["tensors"]["file"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == meta["tensors"]["sha256"]
    assert set(load_file(file)) >= {"mean", "axes", "variances", "covariance", "edges", "self_rows", "self_squares"}
    assert len(list(tmp_path.iterdir())) == 2


def test_the_id_names_the_rows_and_settings() -> None:
    first, _, _ = built()
    assert built()[0].id == first.id
    assert built(seed=1)[0].id != first.id
    assert built(settings={**SETTINGS, "seed": 1})[0].id != first.id


def test_what_build_pins_is_that_of_the_rows() -> None:
    pinned, rows, cloud = built()
    original, _, _ = make_cloud(SIZES)
    exact = original.embeddings.double()
    np.testing.assert_allclose(pinned.pins.basis.mean, exact.mean(0), rtol=1e-14)
    np.testing.assert_array_equal(cloud.embeddings, (exact - pinned.pins.basis.mean).float())
    np.testing.assert_allclose(pinned.pins.covariance, np.cov(exact.numpy().T), rtol=1e-6)
    sums = kernels.self_sums(kernels.prepare(cloud.embeddings, precision="float64"), bandwidths=pinned.pins.bandwidths)
    for found, wanted in zip(vars(pinned.self_sums).values(), vars(sums).values(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-13)  # by window and in one go: sums in another order
    assert torch.equal(rows.prepared.rows, cloud.embeddings.double())
    assert [w.score for w in pinned.kept] == list(pinned.null.scores.values())
    assert [pinned.index_of(w) for w in (*pinned.windows, make_cloud([4], first=9)[0].windows[0])] == [*range(5), None]


def test_attach_gives_the_rows_of_build(tmp_path: Path) -> None:
    pinned, rows, _ = built()
    reference.save(pinned, tmp_path)
    cloud, prints, codes = make_cloud(SIZES)
    assert_equal(reference.attach(reference.load(tmp_path, "cpu"), cloud, prints, codes), rows)


@pytest.mark.parametrize("k", range(5))
def test_attach_refuses_changed_rows_and_names_the_window(k: int) -> None:
    pinned, _, _ = built()
    cloud, _, codes = make_cloud(SIZES)
    cloud.embeddings[cloud.offsets[k], 0] += 1e-3
    prints = tuple(fingerprint(row_hashes(cloud.window(j).embeddings)) for j in range(5))
    with pytest.raises(ReferenceMismatchError, match=pinned.windows[k].label) as caught:
        reference.attach(pinned, cloud, prints, codes)
    assert caught.value.field == "reference.path"
    assert str(SIZES[k]) in str(caught.value.value)


def test_check_accepts_what_it_was_made_with(tmp_path: Path) -> None:
    reference.save(built()[0], tmp_path)
    pinned = reference.load(tmp_path, "cpu")
    for span, precision, limit in ((SPAN, "auto", limit_of(None, 1e4, 4)), (None, "float64", limit_of(1000, 1e4, 4))):
        reference.check(pinned, tmp_path, period="week", span=span, precision=precision, limit=limit, settings=SETTINGS)


def test_check_refuses_another_budget_where_it_would_draw_other_rows(tmp_path: Path) -> None:
    pinned, rows = built()[0], sum(SIZES)
    arguments = {"period": "week", "span": SPAN, "precision": "auto", "settings": SETTINGS}
    whole, wider, narrower = (limit_of(None, pairs, 4) for pairs in (1e8, 1e9, 1e4))
    assert (whole.rows > rows, narrower.rows < rows) == (True, True)
    reference.check(dataclasses.replace(pinned, limit=whole), tmp_path, limit=wider, **arguments)
    for made, given in ((whole, narrower), (narrower, whole)):
        with pytest.raises(ReferenceMismatchError) as caught:
            reference.check(dataclasses.replace(pinned, limit=made), tmp_path, limit=given, **arguments)
        assert caught.value.field == "score.pairs"
        assert (caught.value.value, caught.value.allowed) == (given.pairs, made.pairs)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"span": (SPAN[0], SPAN[1] + timedelta(days=1))}, "windows.reference"),
        ({"span": (SPAN[0] - timedelta(days=1), SPAN[1])}, "windows.reference"),
        ({"period": "month"}, "windows.period"),
        ({"limit": limit_of(1001, 1e10, 4)}, "score.rows"),
        ({"precision": "float32"}, "precision"),
        *[({"settings": {**SETTINGS, key: "another"}}, key) for key in SETTINGS],
        ({"settings": {**SETTINGS, "source.encoding": "int8"}}, "source.encoding"),
    ],
)
def test_check_names_the_setting_that_differs(tmp_path: Path, changed: dict[str, Any], field: str) -> None:
    arguments = {"period": "week", "span": SPAN, "precision": "auto", "limit": LIMIT, "settings": SETTINGS, **changed}
    with pytest.raises(ReferenceMismatchError) as caught:
        reference.check(built()[0], tmp_path, **arguments)
    assert (caught.value.field, caught.value.where) == (field, tmp_path / "reference.json")
    assert caught.value.value != caught.value.allowed


def test_check_rows_refuses_another_dimension_or_encoder() -> None:
    pinned, _, _ = built()
    reference.check_rows(pinned, 5, "e5", "corpus")
    for dim, encoder, field in ((6, "e5", "dimension"), (5, "e6", "encoder_id"), (5, None, "encoder_id")):
        with pytest.raises(ReferenceMismatchError, match="corpus") as caught:
            reference.check_rows(pinned, dim, encoder, "corpus")
        assert field in str(caught.value.field)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        path = directory / "reference.json"
        meta = json.loads(path.read_text(encoding="utf-8"))
        change(meta)
        path.write_text(json.dumps(meta), encoding="utf-8")

    return apply


def flip(directory: Path) -> None:
    (path,) = directory.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(bytes(content))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "json cut": lambda d: cut(d / "reference.json"),
    "json empty": lambda d: (d / "reference.json").write_text(""),
    "json a list": lambda d: (d / "reference.json").write_text("[]"),
    "json not text": lambda d: (d / "reference.json").write_bytes(b"\xff\xfe\x00"),
    "scale no power of two": edit(lambda meta: meta["arithmetic"].update(scale=3.0)),
    "scale no number": edit(lambda meta: meta["arithmetic"].update(scale="1")),
    "no such precision": edit(lambda meta: meta["arithmetic"].update(precision="int8")),
    "key missing": edit(lambda meta: meta.pop("aa")),
    "window damaged": edit(lambda meta: meta["windows"][0].update(start="monday")),
    "tensors cut": lambda d: cut(next(d.glob("*.safetensors"))),
    "tensors gone": lambda d: next(d.glob("*.safetensors")).unlink(),
    "one bit of the tensors": flip,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_artifact_is_refused(tmp_path: Path, kind: str) -> None:
    reference.save(built()[0], tmp_path)
    DAMAGE[kind](tmp_path)
    with pytest.raises(ReferenceMismatchError, match="damaged") as caught:
        reference.load(tmp_path, "cpu")
    assert (caught.value.where, caught.value.exit_code) == (tmp_path / "reference.json", 30)


def test_another_format_is_refused_by_its_number(tmp_path: Path) -> None:
    reference.save(built()[0], tmp_path)
    edit(lambda meta: meta.update(format_version=99))(tmp_path)
    with pytest.raises(ReferenceMismatchError, match="another format") as caught:
        reference.load(tmp_path, "cpu")
    assert (caught.value.field, caught.value.value) == ("format_version", 99)


class Killed(BaseException):
    pass


def test_a_run_killed_between_the_two_writes_leaves_the_old_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the new one has the old one's id: rows and settings are the same, the numbers another device's."""
    old = built()[0]
    reference.save(old, tmp_path)
    moved = dataclasses.replace(old.pins, covariance=old.pins.covariance * (1 + 1e-12))
    same_id = dataclasses.replace(old, pins=moved)

    def killed(*_: object) -> None:
        raise Killed

    for new in (built(seed=1)[0], same_id):
        with monkeypatch.context() as patch:
            patch.setattr(reference, "write_json", killed)
            with pytest.raises(Killed):
                reference.save(new, tmp_path)
        assert_equal(reference.load(tmp_path, "cpu"), old)
    reference.save(same_id, tmp_path)
    assert_equal(reference.load(tmp_path, "cpu"), same_id)
    assert len(list(tmp_path.iterdir())) == 2  # what the killed runs left is gone


@pytest.mark.parametrize("n0", [None, 10, 28, 1000])
def test_the_null_equals_direct_leave_one_window_out_scores(n0: int | None) -> None:
    """Each window's first n0 rows against all rows of the others, each a direct energy distance."""
    cloud, _, _ = make_cloud(SIZES)
    labels = [w.label for w in cloud.windows]
    found = aa_null(cloud.embeddings, cloud.offsets, labels, n0, EXACT)
    rows = cloud.embeddings.numpy()
    assert found.n0 == (24 if n0 is None else n0)
    for k, label in enumerate(labels):
        start, end = cloud.offsets[k : k + 2]
        here, others = rows[start : min(start + found.n0, end)], np.delete(rows, np.arange(start, end), 0)
        assert found.scores[label] == pytest.approx(dense_energy(others, here), rel=1e-9)
        direct = gpudrift.energy_distance(others, here, precision="float64").value
        assert found.scores[label] == pytest.approx(direct, rel=1e-9)
    scale = null_scale(kernels.self_sums(kernels.prepare(cloud.embeddings, precision="float64")), 0)
    assert found.null_sd == pytest.approx(null_sd(scale, found.n0, len(rows)), rel=1e-12)


def test_the_null_leaves_out_pairs_of_one_cluster() -> None:
    cloud, _, codes = make_cloud(SIZES, users=True)
    assert codes is not None
    labels = [w.label for w in cloud.windows]
    found = aa_null(cloud.embeddings, cloud.offsets, labels, 20, EXACT, codes)
    rows = cloud.embeddings.numpy()
    start = cloud.offsets[2]
    inside, here = np.arange(*cloud.offsets[2:4]), np.arange(start, start + 20)
    wanted = gpudrift.energy_distance(
        np.delete(rows, inside, 0),
        rows[here],
        clusters_x=np.delete(codes.numpy(), inside),
        clusters_y=codes.numpy()[here],
        precision="float64",
    ).value
    assert found.scores[labels[2]] == pytest.approx(wanted, rel=1e-9)
    assert wanted != pytest.approx(dense_energy(np.delete(rows, inside, 0), rows[here]), rel=1e-6)


def burst_cloud(users: bool = False) -> tuple[Cloud, torch.Tensor | None]:
    """Nine weeks, of which the first and the seventh are bursts: their rows lie elsewhere."""
    cloud, _, codes = make_cloud([20, 24, 31, 26, 33, 28, 30, 22, 27], users=users, wobble=0.1)
    for k, shift in ((0, 6.0), (6, 9.0)):
        cloud.window(k).embeddings.add_(shift)
    return cloud, codes


@pytest.mark.parametrize("users", [False, True])
def test_hygiene_drops_planted_bursts_and_scores_the_rest_again(users: bool) -> None:
    cloud, codes = burst_cloud(users)
    original, sizes = cloud.embeddings.clone(), cloud.sizes()
    screened = reference.screen(cloud, hygiene_sd=4.0, arithmetic=EXACT, clusters=codes)
    hygiene = screened.hygiene
    kept = [1, 2, 3, 4, 5, 7, 8]
    assert hygiene.kept == tuple(kept)
    assert [k for k, _ in hygiene.dropped] == [0, 6]
    assert screened.mean is None  # the rows left have another mean
    places = torch.cat([torch.arange(*cloud.offsets[k : k + 2]) for k in kept])
    offsets = [0, *np.cumsum([sizes[k] for k in kept]).tolist()]
    labels = [cloud.windows[k].label for k in kept]
    alone = aa_null(original[places], offsets, labels, None, EXACT, None if codes is None else codes[places])
    assert hygiene.null.n0 == alone.n0 == 22
    assert list(hygiene.null.scores) == labels
    assert list(hygiene.null.scores.values()) == pytest.approx(list(alone.scores.values()), rel=1e-3, abs=1e-5)
    assert hygiene.null.null_sd == pytest.approx(alone.null_sd, rel=1e-4)
    first = aa_null(original, cloud.offsets, [w.label for w in cloud.windows], None, EXACT, codes)
    assert dict(hygiene.dropped)[6] == pytest.approx(first.scores[cloud.windows[6].label], rel=1e-4)


def test_a_reference_without_bursts_is_kept_whole_and_centred_once() -> None:
    cloud, _, _ = make_cloud(SIZES)
    original = cloud.embeddings.clone()
    screened = reference.screen(cloud, hygiene_sd=4.0, arithmetic=EXACT)
    assert (screened.hygiene.kept, screened.hygiene.dropped) == (tuple(range(5)), ())
    mean = mean_of(original)
    assert screened.mean is not None
    assert torch.equal(screened.mean, mean)
    centre(original, mean)
    assert torch.equal(cloud.embeddings, original)
    wanted = aa_null(original, cloud.offsets, [w.label for w in cloud.windows], None, EXACT)
    assert screened.hygiene == clean(lambda _: wanted, 5, 4.0)


def test_two_windows_are_no_reference() -> None:
    cloud, _, _ = make_cloud([30, 30])
    with pytest.raises(InsufficientDataError) as caught:
        reference.screen(cloud, hygiene_sd=4.0, arithmetic=EXACT)
    assert caught.value.field == "windows.reference"


def test_times_are_utc_after_loading(tmp_path: Path) -> None:
    reference.save(built()[0], tmp_path)
    found = reference.load(tmp_path, "cpu")
    assert found.start == datetime(2026, 1, 5, tzinfo=UTC)
    assert all(w.start.utcoffset() == timedelta(0) for w in found.windows)
    assert math.isclose(found.dropped[0].score, 0.1 + 0.2, rel_tol=0)


@pytest.mark.parametrize("key", ["self_pairs", "bandwidths", "id", "rows", "windows"])
def test_an_edited_json_is_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "reference.json"
    meta = {
        "format_version": reference.FORMAT_VERSION,
        "self_pairs": 1.0,
        "bandwidths": [1.0],
        "id": "a",
        "rows": 2,
        "windows": [],
    }
    meta["sha256"] = reference._checksum(meta)
    path.write_text(json.dumps(meta))
    assert reference._meta(tmp_path)["id"] == "a"
    path.write_text(json.dumps(meta | {key: "zzz"}))
    with pytest.raises(ReferenceMismatchError, match="checksum"):
        reference._meta(tmp_path)
