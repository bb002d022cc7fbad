"""Known rows of H, and rows of W that sum to one: the oracle's sweeps, and the optimum's laws."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

import dask_nmf
from dask_nmf import HALS, MU, Newton, oracle, stream
from dask_nmf.simplex import on_simplex
from tests.conftest import Array, low_rank, push
from tests.resuming import FEW, assert_same, killing, until_done


def _start(seed: int) -> tuple[Array, Array, Array]:
    random = np.random.default_rng(seed)
    return random.random((40, 8)) + 0.01, random.random((40, 4)) + 0.1, random.random((4, 8)) + 0.1


# ------------------------------------------------------------------------------- known rows of H
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([MU(), MU(inner=3), HALS(inner=1), HALS()]),
    st.integers(1, 3),
    st.integers(1, 40),
)
def test_a_sweep_beside_known_rows(seed: int, solver: MU | HALS, r: int, rows: int) -> None:
    V, W, H = _start(seed)
    known = H[:r].copy()

    def improve(V: Array, W: Array, H: Array, fixed: int) -> Array:
        if isinstance(solver, HALS):
            return oracle.hals_W(V, W, H, solver.inner, fixed=fixed)
        for _ in range(solver.inner):
            W_next = oracle.mu_W(V, W, H, 2)
            W_next[:, :fixed] = W[:, :fixed]
            W = W_next
        return W

    W_1 = improve(V, W, H, 0)
    H_1 = improve(V.T, H.T, W_1.T, r).T
    H_0 = np.vstack([np.ones((r, 8)), H[r:]])  # its first rows make no difference
    told: dict[str, Any] = {"solver": solver, "tol": 0, "max_passes": 2}
    blocks = da.from_array(V, chunks=(rows, 3))
    result = dask_nmf.factorize(blocks, 4, init=(W, H_0), fixed_H=known, **told)
    assert np.array_equal(result.H[:r], known)
    np.testing.assert_allclose(np.asarray(result.W), W_1, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(result.H, H_1, rtol=1e-10, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 1.5, 2.0]), st.integers(1, 3))
def test_a_newton_step_beside_known_rows(seed: int, beta: float, r: int) -> None:
    V, W, H = _start(seed)
    weights = np.where(np.random.default_rng(seed).random(V.shape) < 0.8, 1.0, 0.0)
    weights[:, 0] = weights[0] = 1.0
    one = Newton(inner=1)
    told: dict[str, Any] = {"solver": one, "tol": 0, "weights": weights, "loss": beta}
    least = 0.0 if beta == 2 else one.least
    W_1 = oracle.newton_W(V, W, H, beta, one.sweeps, least, weights)
    first = dask_nmf.factorize(V, 4, init=(W, H), fixed_H=H[:r], max_passes=2, **told)
    np.testing.assert_allclose(np.asarray(first.W), W_1, rtol=1e-10, atol=1e-12)
    assert np.array_equal(first.H, H)
    H_1 = oracle.newton_W(
        V.T, H.T, W_1.T, beta, one.sweeps, least, weights.T, safe=False, fixed=r
    ).T
    second = dask_nmf.factorize(V, 4, init=(W, H), fixed_H=H[:r], max_passes=3, **told)
    found = H_1 if second.history[1].objective != second.history[0].objective else H
    np.testing.assert_allclose(second.H, found, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler", "itakura-saito", 3.0])
@pytest.mark.parametrize("solver", ["auto", "mu"])
@pytest.mark.parametrize("chunks", [(50, 20), (200, 4)], ids=["rows", "columns"])
def test_known_rows_stay_and_the_others_are_found(
    tmp_path: Path, loss: str | float, solver: str, chunks: tuple[int, int]
) -> None:
    shape = (200, 20) if chunks[0] == 50 else (200, 400)
    random = np.random.default_rng(0)
    H = random.gamma(0.5, 1, (3, shape[1])) + 0.01
    data = random.gamma(0.5, 1, (200, 3)) @ H + 0.01
    V = zarr.create_array(tmp_path / "V.zarr", data=data, chunks=chunks)
    told: dict[str, Any] = {"loss": loss, "solver": solver, "tol": 0, "max_passes": 15}
    result = dask_nmf.factorize(V, 3, fixed_H=H[:2], **told)
    assert result.plan is not None
    assert result.plan.transposed == (chunks[0] == 200)
    assert np.array_equal(np.asarray(result.H)[:2], H[:2])
    losses = [record.error for record in result.history]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(losses))
    if solver == "auto":
        free = dask_nmf.factorize(V, 3, **told)
        assert losses[-1] <= max(3 * free.error, 0.05)
    if loss == "frobenius":
        told_error = oracle.error(data, np.asarray(result.W), np.asarray(result.H))
        assert result.error == pytest.approx(told_error, rel=1e-4)


@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler"])
@pytest.mark.parametrize("solver", ["auto", "mu"])
@pytest.mark.parametrize("transposed", [False, True])
def test_all_rows_known_is_transform(
    tmp_path: Path, loss: str, solver: str, transposed: bool
) -> None:
    shape, chunks = ((60, 700), (60, 70)) if transposed else ((700, 60), (70, 60))
    V = low_rank(*shape, 5, noise=0.5)
    H = np.random.default_rng(1).random((4, shape[1]))
    stored = zarr.create_array(tmp_path / "V.zarr", data=V, chunks=chunks)
    result = dask_nmf.factorize(stored, 4, fixed_H=H, loss=loss, solver=solver)
    assert result.plan is not None
    assert result.plan.transposed == transposed
    assert result.status.converged
    assert np.array_equal(np.asarray(result.H), H)
    W = dask_nmf.transform(V, H, loss=loss).compute()
    if transposed and loss != "frobenius":  # W is the small factor, and takes a step in each pass
        told_loss, best = (oracle.divergence(V, F @ H, 1) for F in (np.asarray(result.W), W))
        assert best * (1 - 1e-12) <= told_loss <= 1.001 * best
    else:
        assert len(result.history) == 1
        np.testing.assert_allclose(np.asarray(result.W), W, rtol=1e-5, atol=1e-6 * W.max())


# ------------------------------------------------------------------------- rows that sum to one
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 3))
def test_the_simplex_has_its_optimum(seed: int, k: int, short: int) -> None:
    """The conditions of Kuhn and Tucker, also where components depend on each other."""
    random = np.random.default_rng(seed)
    A = random.standard_normal((max(1, k - short), k))
    gram, numer = A.T @ A, random.standard_normal((20, k)) @ A.T @ A
    F = on_simplex(random.random((20, k)), numer, gram, 1000)
    np.testing.assert_allclose(F.sum(axis=1), 1, rtol=1e-13)
    assert (F >= 0).all()
    gradient = F @ gram - numer
    least = gradient.min(axis=1, keepdims=True)
    scale = np.abs(numer).max() + np.abs(gram).max()
    assert np.abs(np.where(F > 0, gradient - least, 0.0)).max() <= 1e-6 * scale


def test_the_simplex_against_scipy() -> None:
    random = np.random.default_rng(0)
    H = random.random((5, 30))
    V = random.dirichlet(np.ones(5), 10) @ H + 0.3 * random.random((10, 30))
    F = on_simplex(np.ones((10, 5)), V @ H.T, H @ H.T, 100)
    for v, f in zip(V, F, strict=True):
        best = minimize(
            lambda w, v=v: np.sum((v - w @ H) ** 2),
            np.full(5, 0.2),
            bounds=[(0, 1)] * 5,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            tol=1e-12,
        )
        assert np.sum((v - f @ H) ** 2) <= best.fun * (1 + 1e-8)


@pytest.mark.parametrize("solver", ["auto", "hals", "mu"])
@pytest.mark.parametrize("transposed", push(1, [True, False]))
def test_shares(tmp_path: Path, solver: str, transposed: bool) -> None:
    random = np.random.default_rng(2)
    shape, chunks = ((60, 700), (60, 70)) if transposed else ((700, 60), (70, 60))
    H = random.gamma(0.5, 1, (4, shape[1]))
    V = random.dirichlet(np.ones(4), shape[0]) @ H + 0.02 * random.random(shape)
    stored = zarr.create_array(tmp_path / "V.zarr", data=V, chunks=chunks)
    told: dict[str, Any] = {"solver": solver, "tol": 0, "max_passes": 25}
    result = dask_nmf.factorize(stored, 4, sum_to_one=True, **told)
    assert result.plan is not None
    assert result.plan.transposed == transposed
    W, H_found = np.asarray(result.W), np.asarray(result.H)
    np.testing.assert_allclose(W.sum(axis=1), 1, rtol=1e-12)
    assert (W >= 0).all()
    assert result.error == pytest.approx(oracle.error(V, W, H_found), rel=1e-4)
    errors = [record.error for record in result.history]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(errors))
    known = dask_nmf.factorize(stored, 4, sum_to_one=True, fixed_H=H, **told)
    if solver == "auto":
        assert errors[-1] <= 1.02 * known.error  # where these shares were mixed from
    again = dask_nmf.transform(V, H, sum_to_one=True).compute()
    np.testing.assert_allclose(np.asarray(known.W), again, atol=1e-6)


@pytest.mark.parametrize("solver", ["auto", "hals", "mu"])
@pytest.mark.parametrize("r", [0, 1, 2])
def test_factors_have_the_type_of_V(solver: str, r: int) -> None:
    V = low_rank(60, 8, 2, noise=0.1).astype(np.float32)
    told: dict[str, Any] = {"solver": solver, "tol": 0, "max_passes": 4, "sum_to_one": True}
    result = dask_nmf.factorize(V, 2, fixed_H=np.eye(2, 8)[:r] + 1 if r else None, **told)
    assert (result.W.compute().dtype, result.H.dtype) == (np.float32, np.float32)


# ----------------------------------------------------------------------- kept, resumed, refused
def test_resumed_with_constraints(tmp_path: Path) -> None:
    V = zarr.create_array(
        tmp_path / "V.zarr", data=low_rank(700, 60, 5, noise=0.5), chunks=(70, 60)
    )
    H = np.random.default_rng(0).random((2, 60))
    for told in ({"fixed_H": H}, {"sum_to_one": True}, {"fixed_H": H, "loss": 1.0}):
        options: dict[str, Any] = FEW | told
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        found = until_done(V, 5, killing(1, 3), out=out, **options)
        assert_same(found, dask_nmf.factorize(V, 5, **options))
        with pytest.raises(FileExistsError, match="of another call"):
            dask_nmf.factorize(V, 5, out=out, **options | {"fixed_H": H + 1})


def test_known_rows_come_from_a_result(tmp_path: Path) -> None:
    V = low_rank(100, 30, 3)
    dask_nmf.factorize(V, 3, out=tmp_path / "first.zarr")
    result = dask_nmf.factorize(V, 5, fixed_H=tmp_path / "first.zarr" / "H", max_passes=5, tol=0)
    assert np.array_equal(result.H[:3], dask_nmf.open_result(tmp_path / "first.zarr").H)


@pytest.mark.parametrize(
    ("told", "kind", "text"),
    [
        ({"fixed_H": np.ones((4, 8))}, ValueError, "fixed_H must be the first 1 to 3 rows of H"),
        ({"fixed_H": np.ones((2, 7))}, ValueError, "V's 8 columns; got shape \\(2, 7\\)"),
        ({"fixed_H": -np.ones((2, 8))}, ValueError, "fixed_H.*negative"),
        ({"fixed_H": np.full((2, 8), np.nan)}, ValueError, "fixed_H.*nan"),
        ({"fixed_H": np.eye(2, 8) * [[1], [0]]}, ValueError, "its row 1 is all zeros"),
        ({"fixed_H": "nowhere.zarr"}, FileNotFoundError, "fixed_H"),
        ({"fixed_H": 3}, TypeError, "fixed_H must be a zarr array"),
        ({"sum_to_one": 1}, TypeError, "sum_to_one must be True or False, got 1"),
        ({"sum_to_one": True, "loss": 1.0}, ValueError, "sum_to_one=True is for loss='frobenius'"),
        ({"sum_to_one": True, "missing": "nan"}, ValueError, "without weights or missing"),
    ],
)
def test_refused(told: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        dask_nmf.factorize(np.ones((10, 8)), 3, **told)


def test_what_is_asked_of_solvers_of_your_own() -> None:
    @dataclass(frozen=True)
    class Own:
        inner: int = 1

        def improve(self, F: Array, numer: Array, gram: Array) -> Array:
            return MU().improve(F, numer, gram)

    for told in ({"fixed_H": np.ones((1, 8))}, {"sum_to_one": True}, {"alpha_W": 0.1}):
        options: dict[str, Any] = told
        with pytest.raises(ValueError, match=r"a solver of your own.* knows nothing of .*fixed_H"):
            dask_nmf.factorize(np.ones((10, 8)), 3, solver=Own(), **options)
    H = np.random.default_rng(0).random((3, 8))
    assert dask_nmf.factorize(np.ones((10, 8)), 3, solver=Own(), fixed_H=H).status.converged


@pytest.mark.parametrize("scale", [1e39, 1e-40, 1e-50])
def test_known_rows_out_of_the_range_of_V(scale: float) -> None:
    V = low_rank(40, 8, 2).astype(np.float32)
    with pytest.raises(ValueError, match="fixed_H: its rows have largest entries from .*float32"):
        dask_nmf.factorize(V, 2, fixed_H=np.ones((1, 8)) * scale)


def test_extrapolated_columns_sum_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the transpose: where the pass is made, too."""
    random = np.random.default_rng(0)
    H = random.gamma(0.5, 1, (5, 3000))
    data = random.dirichlet(np.ones(5), 100) @ H + 0.02 * random.random((100, 3000))
    V = zarr.create_array(tmp_path / "V.zarr", data=data, chunks=(100, 300))
    made_at: list[Array] = []
    original = stream.sweep

    def sweep(V: Any, W: Any, at: Array, *args: Any, **kwargs: Any) -> Any:
        made_at.append(at)
        return original(V, W, at, *args, **kwargs)

    monkeypatch.setattr("dask_nmf.sweeps.sweep", sweep)
    result = dask_nmf.factorize(V, 5, sum_to_one=True, fixed_H=H[:2], max_passes=20, tol=0)
    assert result.plan is not None
    assert result.plan.transposed
    for at in made_at:
        np.testing.assert_allclose(at.sum(axis=0), 1, rtol=1e-12)
