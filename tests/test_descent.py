"""Steps on a thin V: HALS, extrapolation, Newton."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import dask_nmf
from dask_nmf import HALS, descent, oracle
from dask_nmf.descent import LowRank
from dask_nmf.types import Array, Products
from tests.conftest import low_rank


def factors(m: int, n: int, k: int) -> tuple[Array, Array, Array]:
    V, H = low_rank(m, n, k + 2, noise=0.3), low_rank(k, n, 2)
    W = HALS(50).improve(np.zeros((m, k)), V @ H.T, H @ H.T)
    return V, W, H


def _thin(V: Array) -> LowRank:
    return LowRank(V, np.eye(V.shape[1]), squares=float((V**2).sum()))


def test_a_newton_step_solves_the_linearized_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Least ||R - dW H - W dH||, by lstsq on all entries; from inside, where none is held at 0."""
    monkeypatch.setattr(descent, "_NEWTON_STEPS", 500)
    monkeypatch.setattr(descent, "_SOLVED", 1e-14)
    W, H = low_rank(9, 2, 2) + 1, low_rank(2, 7, 2) + 1
    V = W @ H + 1e-3 * np.random.default_rng(0).standard_normal((9, 7))
    W_ahead, H_ahead = _thin(V).newton(W, H, Products(WtV=W.T @ V, WtW=W.T @ W))
    A = np.hstack([np.kron(np.eye(9), H.T), np.kron(W, np.eye(7))])
    least = np.linalg.lstsq(A, (V - W @ H).ravel())[0]
    left = (V - W @ H).ravel() - A @ np.concatenate([(W_ahead - W).ravel(), (H_ahead - H).ravel()])
    best = (V - W @ H).ravel() - A @ least
    assert np.linalg.norm(left) == pytest.approx(np.linalg.norm(best), rel=1e-6)


@pytest.mark.parametrize("power", [40, -40, 100, -100])
def test_steps_do_not_depend_on_the_unit_of_V(power: int) -> None:
    V, W, H = factors(60, 20, 4)
    scale = 2.0**power  # of each factor
    found = _thin(V * scale**2).descend(W * scale, H * scale, 20, 0.0)
    for one, other in zip(found, _thin(V).descend(W, H, 20, 0.0), strict=True):
        np.testing.assert_allclose(one / scale, other, rtol=1e-9)


def test_components_of_very_different_sizes() -> None:
    V, W, H = factors(60, 20, 4)
    sizes = np.array([1.0, 1e25, 1e-25, 1e12])
    W_ahead, H_ahead = _thin(V).descend(W * sizes, H / sizes[:, None], 20, 0.0)
    assert np.isfinite(W_ahead).all()
    assert np.isfinite(H_ahead).all()
    assert oracle.error(V, W_ahead, H_ahead) < oracle.error(V, W, H)


@pytest.mark.parametrize("seed", range(3))
def test_steps_go_on_from_where_those_on_other_rows_have_led(seed: int) -> None:
    """W of the new rows is such that the first step is a gain already."""
    V = low_rank(300, 40, 8, seed=seed)
    model = _thin(V)
    H = model.descend(model.first_W(low_rank(8, 40, 3)), low_rank(8, 40, 3), 100, 1e-9)[1]
    best = HALS(2000).improve(np.ones((300, 8)), V @ H.T, H @ H.T)
    assert oracle.error(V, *model.descend(model.best_W(H), H, 1, 0.0)) < oracle.error(V, best, H)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_zeros_that_want_to_stay_do_so(share: float) -> None:
    V, W, H = factors(60, 20, 4)
    W[::3, 1] = H[2, ::2] = 0
    made = Products(WtV=W.T @ V / share, WtW=W.T @ W / share)
    slope_W, slope_H = (W @ H - V) @ H.T, W.T @ (W @ H - V)
    model = replace(_thin(V), share=share)
    W_ahead, H_ahead = model.newton(W, H, made)
    assert min(W_ahead.min(), H_ahead.min()) >= 0
    assert not W_ahead[(W == 0) & (slope_W >= 0)].any()
    assert not H_ahead[(H == 0) & (slope_H >= 0)].any()
    step = 1e-4
    nearby = W + step * (W_ahead - W), H + step * (H_ahead - H)
    assert oracle.error(V, *nearby) < oracle.error(V, W, H)


def test_steps_find_exact_factors_where_alternating_ones_are_slow() -> None:
    V = low_rank(300, 40, 8, noise=0.0)
    model, H = _thin(V), low_rank(8, 40, 3)
    W, H = model.descend(model.first_W(H), H, 300, 1e-12)
    slow = dask_nmf.factorize(V, 8, solver=HALS(5), tol=0, max_passes=300)
    assert oracle.error(V, W, H) < 1e-4
    assert oracle.error(V, W, H) < 0.1 * slow.error


def test_steps_never_rise() -> None:
    V, W, H = factors(120, 30, 5)
    errors = []
    for _ in range(12):
        W, H = _thin(V).descend(W, H, 3, 0.0)
        errors.append(oracle.error(V, W, H))
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(errors))
