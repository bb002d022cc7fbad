"""Terms on W and H beside the Frobenius loss: the oracle's sweeps, scikit-learn's minimum."""

from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import NMF

import dask_nmf
from dask_nmf import HALS, MU, oracle
from tests.conftest import Array, low_rank, push


def _objective(
    V: Array, W: Array, H: Array, alpha_W: float, alpha_H: float, l1_ratio: float
) -> float:
    """scikit-learn's documented one."""
    (m, n), r = V.shape, l1_ratio
    found = np.sum((V - W @ H) ** 2) / 2
    for F, size in ((W, n * alpha_W), (H, m * alpha_H)):
        found += size * (r * F.sum() + (1 - r) / 2 * np.sum(F**2))
    return float(found)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([MU(), MU(inner=3), HALS(inner=1), HALS()]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(1, 40),
    st.booleans(),
)
def test_a_sweep_is_the_oracle_s(
    seed: int, solver: MU | HALS, l1_ratio: float, rows: int, transposed: bool
) -> None:
    random = np.random.default_rng(seed)
    V = random.random((40, 8))
    W, H = random.random((40, 3)) + 0.1, random.random((3, 8)) + 0.1
    alpha_W, alpha_H = 0.02, 0.01
    of_W, of_H = 8 * alpha_W, 40 * alpha_H

    def improve(V: Array, W: Array, H: Array, size: float) -> Array:
        l1, l2 = size * l1_ratio, size * (1 - l1_ratio)
        if isinstance(solver, HALS):
            return oracle.hals_W(V, W, H, solver.inner, None, l1, l2)
        for _ in range(solver.inner):
            W = oracle.mu_W(V, W, H, 2, None, l1, l2)
        return W

    W_1 = improve(V, W, H, of_W)
    H_1 = improve(V.T, H.T, W_1.T, of_H).T
    blocks, start = da.from_array(V, chunks=(rows, 3)), (W, H)
    told: dict[str, Any] = {"solver": solver, "l1_ratio": l1_ratio, "tol": 0}
    told |= {"alpha_W": alpha_W, "alpha_H": alpha_H, "max_passes": 2}
    if transposed:  # the streamed factor is H then, and the sweep begins with W as ever
        blocks = da.from_array(V, chunks=(40, 1))
        told["max_passes"] = 3
    result = dask_nmf.factorize(blocks, 3, init=start, **told)
    if transposed and result.plan is not None and not result.plan.transposed:
        told["max_passes"] = 2
        result = dask_nmf.factorize(blocks, 3, init=start, **told)
    size = np.abs(W_1).max()
    np.testing.assert_allclose(np.asarray(result.W), W_1, rtol=1e-10, atol=1e-12 * size)
    np.testing.assert_allclose(np.asarray(result.H), H_1, rtol=1e-10, atol=1e-12 * size)
    wanted = _objective(V, W_1, H_1, alpha_W, alpha_H, l1_ratio)
    assert result.history[-1].objective == pytest.approx(wanted, rel=1e-10)
    assert result.error == pytest.approx(oracle.error(V, W_1, H_1), rel=1e-10)


@pytest.mark.filterwarnings("ignore:Maximum number of iterations")  # scikit-learn's
@pytest.mark.parametrize("solver", ["auto", "hals"])
@pytest.mark.parametrize("l1_ratio", push(1, [0.5, 0.0, 1.0]))
def test_scikit_learn_s_minimum(solver: str, l1_ratio: float) -> None:
    V = low_rank(120, 30, 4, noise=0.1)
    alpha_W, alpha_H = 0.003, 0.001
    told: dict[str, Any] = {"alpha_W": alpha_W, "alpha_H": alpha_H, "l1_ratio": l1_ratio}
    best = np.inf
    for seed in range(3):
        model = NMF(4, solver="cd", init="random", random_state=seed, tol=1e-6, max_iter=1000)
        W = model.set_params(**told).fit_transform(V)
        best = min(best, _objective(V, W, model.components_, alpha_W, alpha_H, l1_ratio))
    passes = {"auto": 20, "hals": 100}[solver]
    found = []
    for seed in range(3):
        result = dask_nmf.factorize(
            V, 4, solver=solver, tol=0, max_passes=passes, seed=seed, block_rows=50, **told
        )
        losses = [record.objective or 0.0 for record in result.history]
        assert all(b <= a * (1 + 1e-12) for a, b in pairwise(losses))
        told_loss = _objective(V, np.asarray(result.W), result.H, alpha_W, alpha_H, l1_ratio)
        assert losses[-1] == pytest.approx(told_loss, rel=1e-10)
        found.append(losses[-1])
    assert min(found) <= (1.001 if solver == "auto" else 1.05) * best


def test_a_large_penalty_makes_zeros() -> None:
    V = low_rank(60, 20, 3, noise=0.1)
    result = dask_nmf.factorize(V, 3, alpha_W=10.0, l1_ratio=1.0, tol=0, max_passes=10)
    assert not np.asarray(result.W).any()
    assert result.dead == 3


def test_alphas_swap_on_the_transpose() -> None:
    V = low_rank(60, 20, 3, noise=0.1)
    told: dict[str, Any] = {"tol": 0, "max_passes": 8, "solver": "hals", "l1_ratio": 0.5}
    W, H = np.random.default_rng(0).random((60, 3)), np.random.default_rng(1).random((3, 20))
    wide = da.from_array(np.tile(V.T, (1, 40)), chunks=(20, 200))
    many = np.tile(W, (40, 1))
    one = dask_nmf.factorize(
        wide, 3, init=(H.T, many.T), alpha_W=0.001, alpha_H=0.0005, **told | {"max_passes": 9}
    )
    assert one.plan is not None
    assert one.plan.transposed
    other = dask_nmf.factorize(
        np.asarray(wide), 3, init=(H.T, many.T), alpha_W=0.001, alpha_H=0.0005, block_rows=5, **told
    )
    assert one.history[-1].objective == pytest.approx(other.history[-1].objective, rel=1e-10)
