"""Blocks of V on a device: the same runs as on the host.

array-api-strict stands in for a GPU: arrays on its "device1" mix with nothing else, and numpy may
not look into them. Where cupy finds a GPU the same tests run on that.
"""

import sys
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest

import dask_nmf
from dask_nmf import geometry
from tests.conftest import low_rank

V = low_rank(60, 30, 4)
OPTIONS: dict[str, Any] = {"tol": 0, "max_passes": 7, "block_rows": 20}


def _strict() -> Any:
    import array_api_strict

    device = array_api_strict.Device("device1")
    return lambda x: array_api_strict.asarray(x, device=device)


def _cupy() -> Any:
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    if not cupy.cuda.is_available():
        pytest.skip("cupy finds no GPU")
    return cupy.asarray


@pytest.fixture(params=[_strict, _cupy], ids=["strict", "cupy"])
def bring(request: pytest.FixtureRequest) -> Any:
    """What brings a numpy array to the device."""
    return request.param()


def on_device(X: Any, bring: Any, chunks: Any = (20, 30)) -> Any:
    return da.from_array(X, chunks=chunks).map_blocks(bring, meta=np.empty((0, 0), X.dtype))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "mu", "init": "nndsvda"},
        {"solver": "hals", "alpha_W": 0.1, "l1_ratio": 0.5},
        {"loss": "kullback-leibler"},
        {"weights": V > 0.3},
        {"perturb": 0.1, "held_out": 0.1},
    ],
    ids=lambda options: "-".join(options) or "auto",
)
def test_the_same_as_on_the_host(bring: Any, options: dict[str, Any]) -> None:
    more = {"rank": 4, **OPTIONS, **options}
    host = dask_nmf.factorize(da.from_array(V, chunks=(20, 30)), **more)
    found = dask_nmf.factorize(on_device(V, bring), **more)
    assert isinstance(found.W.compute(), np.ndarray)
    assert isinstance(found.H, np.ndarray)
    np.testing.assert_allclose(found.H, host.H, rtol=1e-6)
    np.testing.assert_allclose(found.W.compute(), host.W.compute(), rtol=1e-6, atol=1e-9)
    assert found.error == pytest.approx(host.error, rel=1e-6)


def test_the_error_of_a_close_fit(bring: Any) -> None:
    """It takes V - W H, block by block, on the device."""
    X = low_rank(60, 30, 4, noise=0.01).astype(np.float32)
    found = dask_nmf.factorize(on_device(X, bring), 4, **OPTIONS)
    R = X - found.W.compute().astype(np.float64) @ found.H
    assert found.error == pytest.approx(np.linalg.norm(R) / np.linalg.norm(X), rel=1e-6)
    assert found.error < 0.01


def test_a_sample_of_rows_is_drawn_there(bring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where V is tall, the first pass sketches some of its rows."""
    monkeypatch.setattr(geometry, "MODEL_ALL", 0)
    monkeypatch.setattr(geometry, "MODEL_ROWS", 25)
    monkeypatch.setattr(geometry, "MODEL_ROWS_PER_COMPONENT", 1)
    host = dask_nmf.factorize(da.from_array(V, chunks=(20, 30)), 4, **OPTIONS)
    found = dask_nmf.factorize(on_device(V, bring), 4, **OPTIONS)
    np.testing.assert_allclose(found.H, host.H, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_other_dtypes(bring: Any, dtype: type) -> None:
    X: Any = (10 * V).astype(dtype)
    host = dask_nmf.factorize(da.from_array(X, chunks=(20, 30)), 4, **OPTIONS)
    found = dask_nmf.factorize(on_device(X, bring), 4, **OPTIONS)
    assert found.H.dtype == host.H.dtype
    np.testing.assert_allclose(found.H, host.H, rtol=1e-3 if dtype == np.float32 else 1e-6)


def test_transform_and_half_steps(bring: Any) -> None:
    H = np.random.default_rng(0).random((4, 30))
    W, there = np.ones((60, 4)), on_device(V, bring)
    wanted = dask_nmf.transform(V, H).compute()
    np.testing.assert_allclose(dask_nmf.transform(there, H).compute(), wanted, rtol=1e-9)
    for update in (dask_nmf.update_W, dask_nmf.update_H):
        np.testing.assert_allclose(update(there, W, H).compute(), update(V, W, H), rtol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_a_bad_entry_is_named(bring: Any, bad: float) -> None:
    X = V.copy()
    X[45, 7] = bad
    with pytest.raises(ValueError, match="row 45, column 7 holds"):
        dask_nmf.factorize(on_device(X, bring), 4, **OPTIONS)


def test_without_the_package(bring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "array_api_compat", None)
    with pytest.raises(ImportError, match=r'pip install "dask_nmf\[gpu\]"'):
        dask_nmf.factorize(on_device(V, bring), 4, **OPTIONS)


def test_on_every_scheduler(bring: Any, scheduler: str) -> None:
    with dask.config.set(scheduler="synchronous"):
        host = dask_nmf.factorize(da.from_array(V, chunks=(20, 30)), 4, **OPTIONS)
    found = dask_nmf.factorize(on_device(V, bring), 4, **OPTIONS)
    np.testing.assert_allclose(found.H, host.H, rtol=1e-6)
