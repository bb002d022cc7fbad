"""Starts: the right scale, independent of chunks, and the published NNDSVD."""

from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition._nmf import _initialize_nmf

import dask_nmf
from dask_nmf.firstpass import first_pass
from dask_nmf.init import NNDSVD, Given, NormalRows, Random, singular_triplets
from tests.conftest import Array, low_rank, push


def _factors(start: Any, V: Array, rank: int, rows: int, seed: int = 0) -> tuple[Array, Array]:
    blocks = da.from_array(V, chunks=(rows, -1))
    W, H = start.factors(blocks, rank, first_pass(blocks).sums, seed)
    assert W.chunks[0] == blocks.chunks[0]
    return W.compute(), H


@given(
    rows=st.integers(1, 20_000),
    cut=st.integers(1, 19_999),
    k=st.integers(1, 3),
    seed=st.integers(0, 2**64 - 1),
)
def test_random_rows_do_not_depend_on_how_they_are_cut(
    rows: int, cut: int, k: int, seed: int
) -> None:
    source = NormalRows((rows, k), 2.0, seed, 0, np.dtype("f8"))
    cut = min(cut, rows)
    whole, parts = source[:], [source[:cut], source[cut:rows]] if cut < rows else [source[:]]
    assert whole.shape == (rows, k)
    assert np.array_equal(whole, np.concatenate(parts))


def test_random_rows_differ_by_seed_purpose_and_row() -> None:
    draws = [
        NormalRows((9000, 2), 1.0, seed, purpose, np.dtype("f8"))[:]
        for seed in (0, 1)
        for purpose in (0, 1)
    ]
    values = np.concatenate([draw.ravel() for draw in draws])
    assert len(np.unique(values)) == values.size
    assert values.min() > 0  # MU could not leave a zero


def test_random_start_has_scikit_learns_scale() -> None:
    """sqrt(mean(V) / k) * |N(0, 1)|: W0 @ H0 is of the size of V."""
    V = low_rank(5000, 40, 3) * 7
    W, H = _factors(Random(), V, 4, 900)
    scale = np.sqrt(V.mean() / 4)
    assert W.mean() == pytest.approx(scale * np.sqrt(2 / np.pi), rel=0.02)
    assert (W**2).mean() == pytest.approx(scale**2, rel=0.05)
    assert (H**2).mean() == pytest.approx(scale**2, rel=0.25)


@pytest.mark.parametrize("init", ["random", "nndsvd", "nndsvda", "nndsvdar"])
@pytest.mark.parametrize("dtype", push(1, ["f4", "f8", "u2"]))
def test_starts_do_not_depend_on_chunks(init: str, dtype: str) -> None:
    V = (low_rank(90, 40, 6) * 50).astype(dtype)
    runs = [
        dask_nmf.factorize(
            da.from_array(V, chunks=chunks),
            4,
            solver="hals",
            init=init,
            tol=0,
            max_passes=6,
            block_rows=chunks[0],
        )
        for chunks in [(90, 40), (20, 9), (1, 40)]
    ]
    assert {run.H.dtype for run in runs} == {np.dtype("f4" if dtype == "f4" else "f8")}
    for run in runs[1:]:
        assert run.error == pytest.approx(runs[0].error, rel=1e-4 if dtype == "f4" else 1e-9)


@pytest.mark.parametrize(("fill", "name"), [(None, "nndsvd"), ("mean", "nndsvda")])
@pytest.mark.parametrize("rows", [200, 37])
def test_nndsvd_is_scikit_learns(fill: str | None, name: str, rows: int) -> None:
    random = np.random.default_rng(3)
    V = random.random((200, 6)) ** 3 @ np.diag([20, 9, 5, 3, 2, 1]) @ random.random((6, 50)) ** 3
    expected = _initialize_nmf(V, 6, init=name, eps=1e-12, random_state=0)
    for found, theirs in zip(_factors(NNDSVD(fill), V, 6, rows), expected, strict=True):
        np.testing.assert_allclose(found, theirs, rtol=1e-6, atol=1e-7)


def test_nndsvdar_fills_zeros_with_little() -> None:
    V = low_rank(200, 50, 6) ** 2
    plain = _factors(NNDSVD(None), V, 5, 60)
    filled = _factors(NNDSVD("random"), V, 5, 60)
    for a, b in zip(plain, filled, strict=True):
        assert (a == 0).any()
        assert np.array_equal(a[a > 0], b[a > 0])
        assert 0 < b[a == 0].min() <= b[a == 0].max() < V.mean() / 10


def test_singular_triplets_against_numpy() -> None:
    V = low_rank(300, 60, 60, noise=0)  # full rank: the range finder has something to miss
    U, values, Rt = singular_triplets(da.from_array(V, chunks=(70, -1)), 5, 0, power=4)
    expected = np.linalg.svd(V, full_matrices=False)
    np.testing.assert_allclose(values, expected[1][:5], rtol=1e-2)
    np.testing.assert_allclose(values[0], expected[1][0], rtol=1e-9)
    np.testing.assert_allclose(U.T @ U, np.eye(5), atol=1e-7)
    np.testing.assert_allclose(Rt @ Rt.T, np.eye(5), atol=1e-7)


def test_nndsvd_of_data_of_smaller_rank() -> None:
    W, H = _factors(NNDSVD("mean"), low_rank(60, 20, 2, noise=0), 5, 60)
    assert np.isfinite(W).all()
    assert np.isfinite(H).all()
    assert dask_nmf.factorize(np.zeros((9, 5)), 2, init="nndsvd").error == 0


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_given_starts_are_copied(tmp_path: Any, kind: str) -> None:
    import zarr

    V, W, H = low_rank(50, 20, 3), low_rank(50, 3, 1), low_rank(3, 20, 2)
    given_W: Any = W.copy()
    if kind == "dask":
        given_W = da.from_array(W, chunks=(7, 2))
    if kind == "zarr":
        given_W = zarr.create_array(tmp_path / "W.zarr", data=W, chunks=(9, 3))
    before = H.copy()
    result = dask_nmf.factorize(V, 3, init=(given_W, H), tol=0, max_passes=4, block_rows=13)
    assert np.array_equal(np.asarray(given_W), W)
    assert np.array_equal(H, before)
    expected = dask_nmf.factorize(V, 3, init=(W, H), tol=0, max_passes=4, block_rows=13)
    assert np.array_equal(result.H, expected.H)


def test_given_start_keeps_the_datas_dtype() -> None:
    V = low_rank(50, 20, 3).astype("f4")
    start = low_rank(50, 3, 1), low_rank(3, 20, 2)
    result = dask_nmf.factorize(V, 3, init=start, tol=0, max_passes=20)
    assert result.H.dtype == result.W.dtype == result.W.compute().dtype == np.float32


@pytest.mark.parametrize(
    ("options", "text"),
    [({"fill": "zeros"}, "fill must be None, 'mean' or 'random'"), ({"power": 0}, "power must be")],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        NNDSVD(**options)


def test_start_objects() -> None:
    V = low_rank(50, 20, 3)
    W, H = low_rank(50, 3, 1), low_rank(3, 20, 2)
    for init in (Random(), NNDSVD(power=3), Given(W, H), [W, H]):
        assert dask_nmf.factorize(V, 3, init=init, tol=0, max_passes=7).H.shape == (3, 20)
