"""Noise and held-out entries: drawn per entry, the same on any way through V."""

from itertools import cycle
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse
import zarr

import dask_nmf
from dask_nmf.draws import uniform
from tests.conftest import counted, low_rank, push
from tests.resuming import assert_same

DATA = low_rank(300, 40, 4, noise=0.5)
FEW: dict[str, Any] = {"tol": 0, "max_passes": 5, "seed": 7}
KINDS = ("numpy", "zarr", "dask", "sparse", "csc", "tall")
LOSSES = ("frobenius", "kullback-leibler")
EVERY = np.arange(300)[:, np.newaxis], np.arange(40)[np.newaxis]


def _noisy(V: np.ndarray[Any, Any], share: float, seed: int) -> np.ndarray[Any, Any]:
    """V with the noise that a run sees, in one piece."""
    noise = 1 + share * (2 * uniform(seed, 0, *EVERY) - 1)
    return (V * noise).astype(V.dtype)


def test_numbers_are_those_of_splitmix64() -> None:
    """The recurrence as published, in Python's integers."""
    key = int(np.random.Philox(key=np.array([3, 1], dtype=np.uint64)).random_raw())
    mask = 2**64 - 1
    for i, j in ((0, 0), (1, 0), (5, 39), (2**31, 2**20)):
        z = (((i << 32) + j) * 0x9E3779B97F4A7C15 + key) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
        assert uniform(3, 1, np.array([i]), np.array([j]))[0] == (z >> 11) * 2.0**-53


def test_numbers_look_drawn() -> None:
    drawn = uniform(0, 0, np.arange(1000)[:, np.newaxis], np.arange(200)[np.newaxis])
    assert 0 <= drawn.min() < 1e-4
    assert 1 - 1e-4 < drawn.max() < 1
    counts = np.histogram(drawn, 20, (0, 1))[0]
    assert abs(counts - 10_000).max() < 500  # five standard deviations
    for other in (np.roll(drawn, 1, 0), np.roll(drawn, 1, 1), uniform(1, 0, *_places())):
        assert abs(np.corrcoef(drawn.ravel(), other.ravel())[0, 1]) < 0.012


def _places() -> tuple[Any, Any]:
    return np.arange(1000)[:, np.newaxis], np.arange(200)[np.newaxis]


@pytest.mark.parametrize(
    ("kind", "loss"),
    push(
        6,
        [
            *zip(KINDS, cycle(LOSSES), strict=False),
            *zip(KINDS, cycle(LOSSES[::-1]), strict=False),
        ],
    ),
)
def test_a_perturbed_run_is_the_run_on_perturbed_data(
    tmp_path: Path, scheduler: str, kind: str, loss: str
) -> None:
    data = np.where(np.median(DATA) < DATA, DATA, 0) if kind in ("sparse", "csc") else DATA
    noisy = _noisy(data, 0.3, 7)
    options: dict[str, Any] = FEW | {"loss": loss}

    def as_kind(x: Any, name: str) -> Any:
        if kind == "zarr":
            return zarr.create_array(tmp_path / name, data=x, chunks=(70, 15))
        if kind == "tall":  # streamed by its columns
            return zarr.create_array(tmp_path / name, data=x, chunks=(300, 8))
        if kind == "dask":
            return da.from_array(x, chunks=(90, 40))
        made = {"sparse": scipy.sparse.csr_array, "csc": scipy.sparse.csc_array}
        return made.get(kind, np.asarray)(x)

    found = dask_nmf.factorize(as_kind(data, "V"), 3, perturb=0.3, **options)
    with dask.config.set(scheduler="synchronous"):
        assert_same(found, dask_nmf.factorize(as_kind(noisy, "noisy"), 3, **options))
        other = dask_nmf.factorize(as_kind(data, "again"), 3, **options)
    assert not np.array_equal(found.H, other.H), scheduler


@pytest.mark.parametrize("kind", ["numpy", "sparse", "nan", "weights", "tall"])
def test_held_out_entries_are_entries_of_weight_0(tmp_path: Path, kind: str) -> None:
    hidden = uniform(7, 1, *EVERY) < 0.25
    assert 0.2 < hidden.mean() < 0.3
    V: Any = DATA.copy()
    other: Any = V
    mask, options = ~hidden, FEW
    if kind == "sparse":
        V = np.where(np.median(DATA) < DATA, DATA, 0)
        other, V = scipy.sparse.csr_array(V), scipy.sparse.csr_array(V)
    if kind == "tall":
        V = zarr.create_array(tmp_path / "V", data=V, chunks=(300, 8))
        other = V
    if kind == "nan":
        V[::7, ::3] = np.nan
        options = FEW | {"missing": "nan"}
    if kind == "weights":  # what has no weight is not held out: not there
        bad = np.random.default_rng(1).random(V.shape) < 0.1
        options = FEW | {"weights": ~bad}
        other, mask = np.where(bad, np.nan, V), ~hidden & ~bad
    missing: Any = "nan" if kind in ("nan", "weights") else "error"
    found = dask_nmf.factorize(V, 3, held_out=0.25, **options)
    assert_same(found, dask_nmf.factorize(other, 3, weights=mask, missing=missing, **FEW))
    if kind != "sparse":  # the error of those entries
        seen = hidden & np.isfinite(other[:])
        X = np.asarray(found.W) @ np.asarray(found.H)
        error = np.linalg.norm((DATA - X)[seen]) / np.linalg.norm(DATA[seen])
        assert found.history[-1].held_out == pytest.approx(error, rel=1e-4)


def test_scan_is_the_separate_runs(scheduler: str) -> None:
    options: dict[str, Any] = {"tol": 0, "max_passes": 4, "perturb": 0.1, "held_out": 0.1}
    found = dask_nmf.scan(DATA, (2, 3), restarts=2, **options)
    for rank, results in found.results.items():
        for seed, result in enumerate(results):
            with dask.config.set(scheduler="synchronous"):
                assert_same(result, dask_nmf.factorize(DATA, rank, seed=seed, **options))
    first, second = (np.asarray(result.H) for result in found.results[2])
    assert not np.allclose(first, second), scheduler


def test_one_read_per_pass(tmp_path: Path) -> None:
    V, store = counted(tmp_path / "V.zarr", DATA, (50, 40))
    options: dict[str, Any] = {"tol": 0, "max_passes": 4, "perturb": 0.1, "block_rows": 50}
    dask_nmf.scan(V, (2, 3), restarts=3, **options)
    assert set(store.reads().values()) == {4}


def test_another_draw_is_another_run(tmp_path: Path) -> None:
    V, out = zarr.create_array(tmp_path / "V.zarr", data=DATA), tmp_path / "out.zarr"
    made = dask_nmf.factorize(V, 2, out=out, perturb=0.1, **FEW)
    again = dask_nmf.factorize(V, 2, out=out, perturb=0.1, **FEW)
    assert again.resumed_from == 5
    assert_same(made, again)
    with pytest.raises(FileExistsError, match=r"perturb 0\.1 \(now 0\.2\)"):
        dask_nmf.factorize(V, 2, out=out, perturb=0.2, **FEW)
    with pytest.raises(FileExistsError, match=r"held_out None \(now 0\.5\)"):
        dask_nmf.factorize(V, 2, out=out, perturb=0.1, held_out=0.5, **FEW)


@pytest.mark.parametrize("name", ["perturb", "held_out"])
@pytest.mark.parametrize("wrong", [-0.1, 1, 1.5, float("nan"), "much", True, None])
def test_refused(name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a number >= 0 and < 1"):
        dask_nmf.factorize(DATA, 2, **{name: wrong})


def test_sparse_with_weights_of_0_cannot_hold_out() -> None:
    V = scipy.sparse.csr_array(np.where(np.median(DATA) < DATA, DATA, 0))
    mask = np.ones(V.shape, bool)
    mask[3, 5] = False
    with pytest.raises(ValueError, match="held_out needs weights above 0 where V is sparse"):
        dask_nmf.factorize(V, 2, weights=mask, held_out=0.1, **FEW)


def test_the_plan_has_room_for_the_noise() -> None:
    V = da.ones((100_000, 1000), chunks=(5000, 1000), dtype=np.float32)
    plain, noisy = (dask_nmf.plan(V, 5, perturb=share).parts["drawn"] for share in (0.0, 0.1))
    assert noisy > plain == 0
