"""W of new rows: the best for each, whatever lies beside it; and V as the factors tell it."""

from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls

import dask_nmf
from dask_nmf import oracle
from tests.conftest import Array, low_rank


def _data(seed: int = 0) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    V = random.poisson(5 * random.random((60, 4)) @ random.random((4, 20))).astype(float)
    V[3] = 0.0
    return V, random.random((4, 20))


def test_frobenius_is_nnls() -> None:
    V, H = _data()
    wanted = np.array([nnls(H.T, v)[0] for v in V])
    for X in (V, da.from_array(V, chunks=(7, 9)), scipy.sparse.csr_array(V)):
        W = dask_nmf.transform(X, H)
        assert isinstance(W, da.Array)
        np.testing.assert_allclose(W.compute(), wanted, atol=1e-9)
    there = np.asarray(np.random.default_rng(1).random(V.shape) < 0.7)
    found = dask_nmf.transform(np.where(there, V, np.nan), H, missing="nan")
    rows = [np.flatnonzero(row) for row in there]
    wanted = np.array([nnls(H.T[j], v[j])[0] for v, j in zip(V, rows, strict=True)])
    np.testing.assert_allclose(found.compute(), wanted, atol=1e-7)


@pytest.mark.parametrize("beta", [1.0, 1.5])  # convex: there is one minimum
def test_divergences_are_at_their_minimum(beta: float) -> None:
    V, H = _data()
    W = dask_nmf.transform(V, H, loss=beta).compute()
    assert not W[3].any()
    for i in (0, 1, 5):

        def cost(root: Array, v: Array = V[i : i + 1]) -> float:
            with np.errstate(all="ignore"):  # where the search may go
                return oracle.divergence(v, (root**2) @ H, beta)

        best = minimize(cost, np.sqrt(W[i : i + 1]).ravel() + 0.1, tol=1e-12)
        assert cost(np.sqrt(W[i : i + 1])) <= best.fun * (1 + 1e-6)


@given(
    st.integers(0, 58),
    st.integers(1, 60),
    st.sampled_from(["frobenius", "kullback-leibler", 1.5, 0.0, "masked"]),
)
def test_a_slice_of_rows_is_that_slice(start: int, rows: int, loss: Any) -> None:
    V, H = _data()
    V, told = V + 0.1, {"loss": loss}
    there = np.random.default_rng(1).random(V.shape) < 0.7
    if loss == "masked":
        told = {}
    whole = dask_nmf.transform(V, H, weights=there if loss == "masked" else None, **told)
    part = slice(start, start + rows)
    some = dask_nmf.transform(
        da.from_array(V[part], chunks=(5, 20)),
        H,
        weights=there[part] if loss == "masked" else None,
        **told,
    )
    np.testing.assert_allclose(some.compute(), whole.compute()[part], rtol=1e-6, atol=1e-8)


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Any) -> None:
    V, H = _data()
    array = zarr.create_array(tmp_path / "V", data=V, chunks=(10, 20))
    W = dask_nmf.transform(tmp_path / "V", H, memory="1GiB")
    array[0, 0] = -1.0
    with pytest.raises(ValueError, match="V must be finite and non-negative, but row 0, column 0"):
        W.compute()


def test_penalty_pulls_down() -> None:
    V, H = _data()
    W = dask_nmf.transform(V, H, alpha_W=0.1, l1_ratio=1.0).compute()
    l1 = 20 * 0.1
    wanted = np.zeros((60, 4))
    for _ in range(2000):
        wanted = oracle.hals_W(V, wanted, H, 1, None, l1)
    np.testing.assert_allclose(W, wanted, atol=1e-8)


@pytest.mark.parametrize(
    ("V", "H", "text"),
    [
        (np.ones((3, 4)), np.ones((2, 5)), r"H must be a real array \(k, 4\)"),
        (np.ones((3, 4)), -np.ones((2, 4)), "H must be finite and non-negative"),
        (scipy.sparse.csc_array(np.eye(4)), np.ones((2, 4)), "convert it to CSR"),
    ],
)
def test_bad_input(V: Any, H: Array, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        dask_nmf.transform(V, H)


def test_reconstruct_is_lazy_and_any_part() -> None:
    V, _ = _data()
    result = dask_nmf.factorize(V, 3, tol=0, max_passes=5, block_rows=20)
    whole = np.asarray(result.W) @ result.H
    for rows, columns in (
        (slice(None), slice(None)),
        (slice(5, 50, 3), [1, 4, 19]),
        (np.arange(60) % 2 == 0, slice(3)),
    ):
        part = result.reconstruct(rows, columns, block_bytes=2000)
        assert isinstance(part, da.Array)
        np.testing.assert_allclose(part.compute(), whole[rows][:, columns], rtol=1e-12)


def test_a_path_is_penalized_as_its_array(tmp_path: Any) -> None:
    V, H = _data()
    zarr.create_array(tmp_path / "V", data=V, chunks=(10, 20))
    told: dict[str, Any] = {"alpha_W": 0.1, "l1_ratio": 1.0}
    wanted = dask_nmf.transform(V, H, **told).compute()
    np.testing.assert_allclose(dask_nmf.transform(tmp_path / "V", H, **told).compute(), wanted)


def test_reconstruct_of_single_entries() -> None:
    result = dask_nmf.factorize(low_rank(40, 20, 3), 3, max_passes=4, tol=0)
    whole = np.asarray(result.W) @ result.H
    np.testing.assert_allclose(result.reconstruct(5, 3).compute(), whole[5:6, 3:4])
    np.testing.assert_allclose(result.reconstruct(-1, [0, 4]).compute(), whole[-1:, [0, 4]])
    for rows in (40, [-41], "a", 1.5, np.ones(39, bool), [[1]]):
        with pytest.raises(IndexError, match="rows must be a slice, ints from -40 to 39"):
            result.reconstruct(rows)


def test_H_may_be_any_array() -> None:
    """Also dask's, as that of a result may be."""
    V, H = low_rank(10, 6, 2), np.random.default_rng(0).random((2, 6))
    wanted = dask_nmf.transform(V, H).compute()
    for same in (da.from_array(H, chunks=3), H.tolist(), zarr.array(H)):
        assert (dask_nmf.transform(V, same).compute() == wanted).all()


def test_transform_refuses_zeros_and_names() -> None:
    V, H = np.eye(6), np.ones((2, 6))
    with pytest.raises(ValueError, match="V contains zeros, of which loss=0 makes infinitely much"):
        dask_nmf.transform(V, H, loss="itakura-saito").compute()
    seen = dask_nmf.transform(V, H, loss="itakura-saito", weights=V > 0).compute()
    assert np.isfinite(seen).all()
    with pytest.raises(TypeError, match="H must be a Result, or an array .*result.H, got str"):
        dask_nmf.transform(V, "factors.zarr/H")


@pytest.mark.parametrize("beta", ["kl", None, float("nan"), True])
def test_a_beta_is_a_number(beta: Any) -> None:
    with pytest.raises(ValueError, match="beta must be a finite number"):
        dask_nmf.Beta(beta)


def test_sparse_weights_are_refused() -> None:
    V = low_rank(10, 8, 2)
    with pytest.raises(TypeError, match="weights must be a dense array, got a sparse one"):
        dask_nmf.factorize(V, 2, weights=scipy.sparse.csr_array(V))
