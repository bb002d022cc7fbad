"""Other losses than Frobenius, weights and missing entries: against the oracle, on any chunks."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.decomposition import non_negative_factorization
from sklearn.decomposition._nmf import _beta_divergence

import dask_nmf
from dask_nmf import oracle
from dask_nmf.divergences import Beta
from dask_nmf.newton import Newton
from dask_nmf.solvers import HALS, MU
from tests.conftest import Array

BETAS = [-0.5, 0.0, 0.5, 1.0, 1.3, 2.0, 3.0]
NAMES = {1.0: "kullback-leibler", 0.0: "itakura-saito"}


@dataclass(frozen=True)
class Case:
    """A matrix, where it is known (1, 0 or a weight), a start, chunks, and what is asked for."""

    V: Array
    weights: Array | None
    W: Array
    H: Array
    chunks: tuple[tuple[int, ...], tuple[int, ...]]
    beta: float
    solver: MU | HALS | Newton
    alpha: float
    l1_ratio: float

    def l1_l2(self, size: int) -> tuple[float, float]:
        return size * self.alpha * self.l1_ratio, size * self.alpha * (1 - self.l1_ratio)

    def improve(self, V: Array, W: Array, H: Array, weights: Array | None, size: int) -> Array:
        """One half-step for W by the oracle."""
        l1, l2 = self.l1_l2(size)
        if isinstance(self.solver, MU):
            for _ in range(self.solver.inner):
                W = oracle.mu_W(V, W, H, self.beta, weights, l1, l2)
        elif isinstance(self.solver, HALS):
            W = oracle.hals_W(V, W, H, self.solver.inner, weights, l1, l2)
        else:
            exact = self.beta == 2
            least = 0.0 if exact else self.solver.least
            for _ in range(1 if exact else self.solver.inner):
                W = oracle.newton_W(V, W, H, self.beta, self.solver.sweeps, least, weights, l1, l2)
        return W

    def half_step_H(self, W: Array, H: Array) -> Array:
        """One step for H, from the derivatives that a pass sums."""
        M = None if self.weights is None else self.weights.T
        one = self.solver if isinstance(self.solver, HALS) else MU()
        if isinstance(self.solver, Newton):
            l1, l2 = self.l1_l2(len(self.V))
            least = 0.0 if self.beta == 2 else self.solver.least
            # Whether the loss fell is for the next pass to see.
            new = oracle.newton_W(
                self.V.T, H.T, W.T, self.beta, self.solver.sweeps, least, M, l1, l2, safe=False
            )
            return new.T
        case = Case(**{**vars(self), "solver": one})
        return case.improve(self.V.T, H.T, W.T, M, len(self.V)).T

    def objective(self, W: Array, H: Array) -> float:
        (m, n), r = self.V.shape, self.l1_ratio
        found = oracle.divergence(self.V, W @ H, self.beta, self.weights)
        for F, size in ((W, n), (H, m)):
            found += size * self.alpha * (r * F.sum() + (1 - r) / 2 * (F**2).sum())
        return float(found)

    def factorize(self, passes: int, **more: Any) -> dask_nmf.Result:
        V = da.from_array(self.V, chunks=self.chunks)
        weights = self.weights
        if weights is not None:
            weights = da.from_array(weights, chunks=self.chunks)
        elif self.beta == 2:
            weights = np.ones(self.V.shape)
        return dask_nmf.factorize(
            V,
            self.W.shape[1],
            init=(self.W, self.H),
            loss=self.beta,
            solver=self.solver,
            weights=weights,
            alpha_W=self.alpha,
            l1_ratio=self.l1_ratio,
            **{"tol": 0, "max_passes": passes, "block_rows": None} | more,
        )


def _cut(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    edges = sorted(draw(st.sets(st.integers(1, size - 1), max_size=size - 1))) if size > 1 else []
    return tuple(np.diff([0, *edges, size]).tolist())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    # Never wider than high: blocks are mostly rows, then.
    n = draw(st.integers(1, 9))
    m, k = draw(st.integers(4 * n, 4 * n + 9)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    beta = draw(st.sampled_from(BETAS))
    V = random.random((m, n)) + 0.05
    if beta > 0:
        V[random.random((m, n)) < draw(st.sampled_from([0.0, 0.5]))] = 0.0
    V[0, 0] = 1.0
    solvers: list[MU | HALS | Newton] = [MU(), MU(inner=3)]
    solvers += [Newton(inner=2), Newton()] if 1 <= beta <= 2 else []
    solvers += [HALS(), HALS(inner=1)] if beta == 2 else []
    weights = None
    if draw(st.booleans()):
        weights = (random.random((m, n)) < 0.7) * random.choice([1.0, 0.5, 2.0], (m, n))
        weights[:, 0] = weights[0] = 1.0
    scale = draw(st.sampled_from([1.0, 1e-8, 1e8]))
    W, H = random.random((m, k)) + 0.1, random.random((k, n)) + 0.1
    alpha = draw(st.sampled_from([0.0, 0.0, 0.01])) * scale**beta
    chunks = _cut(draw, m), _cut(draw, n)
    solver, ratio = draw(st.sampled_from(solvers)), draw(st.sampled_from([0.0, 0.4, 1.0]))
    root = scale**0.5
    alpha = alpha / root
    if ratio < 1:  # l1 and l2 have other units: one scale is enough there
        scale = root = 1.0
        alpha = min(alpha, 0.01)
    return Case(V * scale, weights, W * root, H * root, chunks, beta, solver, alpha, ratio)


def assert_close(found: Any, wanted: Array, near: float = 1e-10) -> None:
    size = np.abs(wanted).max()
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=near, atol=near * size)


@given(cases())
def test_two_sweeps_are_the_oracle_s(case: Case) -> None:
    W = case.improve(case.V, case.W, case.H, case.weights, case.V.shape[1])
    result = case.factorize(2)
    assume(result.plan and not result.plan.transposed)  # there it is the method on V.T
    assert_close(result.W, W)
    assert_close(result.H, case.H)
    assert result.H.flags.c_contiguous
    assert result.history[-1].objective == pytest.approx(case.objective(W, case.H), rel=1e-10)

    H = case.half_step_H(W, case.H)
    W_2 = case.improve(case.V, W, H, case.weights, case.V.shape[1])
    before, now = case.objective(W, case.H), case.objective(W_2, H)
    result = case.factorize(3)
    if abs(now - before) > 1e-9 * abs(before):  # else rounding decides
        # Where rows are nearly met (few columns), second derivatives blow rounding up.
        near = 1e-7 if isinstance(case.solver, Newton) else 1e-10
        assert_close(result.W, W_2 if now < before else W, near)
        assert_close(result.H, H if now < before else case.H, near)


@given(cases())
def test_never_rises_and_stays_finite(case: Case) -> None:
    result = case.factorize(9)
    losses = [record.objective or 0.0 for record in result.history]
    assert all(b <= a for a, b in pairwise(losses))
    for F in (np.asarray(result.W), np.asarray(result.H)):
        assert F.flags.c_contiguous
        assert np.isfinite(F).all()
        assert (F >= 0).all()
    assert losses[-1] == pytest.approx(case.objective(np.asarray(result.W), result.H), rel=1e-10)


@pytest.mark.parametrize("beta", BETAS)
def test_the_loss_is_scikit_learn_s_and_its_slope_is_a_difference_quotient(beta: float) -> None:
    random = np.random.default_rng(0)
    V, X = random.random((2, 5, 4)) + 0.1
    loss = Beta(beta)
    wanted = _beta_divergence(V, X, np.eye(4), beta)
    assert loss.distance(V, X).sum() == pytest.approx(wanted, rel=1e-12)
    assert oracle.divergence(V, X, beta) == pytest.approx(wanted, rel=1e-12)
    step = 1e-6
    slope = (loss.distance(V, X + step) - loss.distance(V, X - step)) / (2 * step)
    np.testing.assert_allclose(loss.push(X) - loss.pull(V, X), slope, rtol=1e-5, atol=1e-8)
    if loss.convex:
        at = [loss.push(X + e) - loss.pull(V, X + e) for e in (step, -step)]
        bend = (at[0] - at[1]) / (2 * step)
        np.testing.assert_allclose(loss.curvature(V, X), bend, rtol=1e-5)
    mean = np.full(V.shape, V.mean())
    of_mean = loss.from_sums(V.sum(), loss.own(V).sum(), V.size)
    assert of_mean == pytest.approx(loss.distance(V, mean).sum(), rel=1e-10)


@pytest.mark.parametrize("beta", [1.0, 0.0])
def test_scikit_learn_s_minimum_in_no_more_passes_than_its_iterations(beta: float) -> None:
    """From the same start, as the function of scikit-learn."""
    random = np.random.default_rng(1)
    V = random.gamma(0.5, 1, (60, 4)) @ random.gamma(0.5, 1, (4, 20)) + 0.05
    V *= random.gamma(5, 0.2, V.shape)
    W, H = random.random((60, 4)) + 0.1, random.random((4, 20)) + 0.1
    told: dict[str, Any] = {"init": "custom", "solver": "mu", "beta_loss": NAMES[beta]}
    W_s, H_s, passes = non_negative_factorization(
        V, W.copy(), H.copy(), n_components=4, tol=1e-4, max_iter=500, **told
    )
    wanted = oracle.divergence(V, W_s @ H_s, beta)
    for solver in ("mu", "auto"):
        result = dask_nmf.factorize(
            V, 4, init=(W, H), loss=NAMES[beta], solver=solver, tol=0, max_passes=passes
        )
        found = oracle.divergence(V, np.asarray(result.W) @ result.H, beta)
        assert found <= 1.001 * wanted, (solver, passes)


@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler", 0.5])
@pytest.mark.parametrize("solver", ["auto", "mu", "hals"])
def test_what_has_no_weight_has_no_influence(loss: Any, solver: str) -> None:
    if solver == "hals" and loss != "frobenius":
        pytest.skip("hals is for Frobenius")
    random = np.random.default_rng(0)
    V = random.random((50, 12)) + 0.1
    there = random.random(V.shape) < 0.7
    there[7] = False
    there[:, 3] = False
    told: dict[str, Any] = {"loss": loss, "solver": solver, "tol": 0, "max_passes": 6}
    one = dask_nmf.factorize(V, 3, weights=there, **told)
    for nothing in (np.nan, -1.0, 1e300, np.inf):
        other = dask_nmf.factorize(np.where(there, V, nothing), 3, weights=there, **told)
        assert np.asarray(other.W).tobytes() == np.asarray(one.W).tobytes()
        assert other.H.tobytes() == one.H.tobytes()
        assert [r.error for r in other.history] == [r.error for r in one.history]
    assert not np.asarray(one.W)[7].any()
    assert not one.H[:, 3].any()
    as_nan = dask_nmf.factorize(np.where(there, V, np.nan), 3, missing="nan", **told)
    assert as_nan.H.tobytes() == one.H.tobytes()
    assert as_nan.history[-1].held_out is None
    masked = dask_nmf.factorize(np.ma.MaskedArray(V, ~there), 3, **told)
    assert masked.H.tobytes() == one.H.tobytes()


def test_the_error_of_hidden_entries_is_told() -> None:
    random = np.random.default_rng(0)
    V = random.random((80, 3)) @ random.random((3, 12))
    there = random.random(V.shape) < 0.7
    result = dask_nmf.factorize(V, 3, weights=there, tol=0, max_passes=40)
    rest = (V - np.asarray(result.W) @ result.H)[~there]
    wanted = float(np.linalg.norm(rest) / np.linalg.norm(V[~there]))
    assert result.history[-1].held_out == pytest.approx(wanted, rel=1e-10)
    assert wanted < 0.02  # of rank 3 as V is, they are told by the others
    result = dask_nmf.factorize(V, 3, weights=there, loss="kullback-leibler", max_passes=5, tol=0)
    X, v = (np.asarray(result.W) @ result.H)[~there], V[~there]
    mean = np.full(v.shape, v.mean())
    wanted = oracle.divergence(v, X, 1) / oracle.divergence(v, mean, 1)
    assert result.history[-1].held_out == pytest.approx(wanted, rel=1e-10)


def test_on_the_transpose_it_is_the_method_on_the_transpose() -> None:
    random = np.random.default_rng(0)
    V, there = random.random((30, 4000)), random.random((30, 4000)) < 0.8
    W, H = random.random((30, 3)), random.random((3, 4000))
    wide = da.from_array(V, chunks=(30, 100))
    told: dict[str, Any] = {"loss": 1.0, "tol": 0, "max_passes": 5, "solver": "newton"}
    told |= {"alpha_W": 0.01, "alpha_H": 0.02}
    one = dask_nmf.factorize(
        wide, 3, init=(W, H), weights=da.from_array(there, chunks=(30, 100)), **told
    )
    assert one.plan is not None
    assert one.plan.transposed
    told |= {"alpha_W": 0.02, "alpha_H": 0.01}
    other = dask_nmf.factorize(V.T.copy(), 3, init=(H.T, W.T), weights=there.T.copy(), **told)
    np.testing.assert_allclose(np.asarray(one.W), other.H.T, rtol=1e-9)
    np.testing.assert_allclose(np.asarray(one.H), np.asarray(other.W).T, rtol=1e-9, atol=1e-12)
    assert one.history[-1].objective == pytest.approx(other.history[-1].objective, rel=1e-10)


@pytest.mark.parametrize("loss", ["kullback-leibler", 1.5, 0.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_sparse_is_dense(loss: Any, weighted: bool) -> None:
    random = np.random.default_rng(0)
    V = random.poisson(random.gamma(0.3, 1, (90, 4)) @ random.gamma(0.3, 1, (4, 30))).astype(float)
    V[5], V[:, 7] = 0.0, 0.0
    weights = (random.random(V.shape) < 0.7) * 1.5 if weighted else None
    for solver in ("auto", "mu"):
        told: dict[str, Any] = {"loss": loss, "weights": weights, "solver": solver, "tol": 0}
        one = dask_nmf.factorize(V, 4, max_passes=6, block_rows=30, **told)
        other = dask_nmf.factorize(csr_array(V), 4, max_passes=6, block_rows=30, **told)
        # Flat ways of the loss make more of rounding than the loss shows.
        np.testing.assert_allclose(np.asarray(other.W), np.asarray(one.W), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other.H, one.H, rtol=1e-5, atol=1e-6)
        assert other.history[-1].objective == pytest.approx(one.history[-1].objective, rel=1e-8)
        held_out = [result.history[-1].held_out or 0.0 for result in (one, other)]
        assert held_out[1] == pytest.approx(held_out[0], rel=1e-7)
        assert (held_out[0] > 0) == weighted


@pytest.mark.parametrize("kind", ["dense", "sparse", "weighted"])
def test_killed_and_called_again_gives_the_same_bits(kind: str, tmp_path: Any) -> None:
    random = np.random.default_rng(0)
    V: Any = random.poisson(random.random((90, 4)) @ random.random((4, 30)) * 2).astype(float)
    weights = random.random(V.shape) < 0.7 if kind == "weighted" else None
    V = csr_array(V) if kind == "sparse" else V
    told: dict[str, Any] = {"loss": "kullback-leibler", "tol": 0, "block_rows": 30}
    told |= {"weights": weights, "max_passes": 8}
    kept = told | {"checkpoint_every": 1}
    whole = dask_nmf.factorize(V, 4, **told)

    def stop(record: dask_nmf.SweepRecord) -> None:
        if record.sweep == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dask_nmf.factorize(V, 4, out=tmp_path / "out", callback=stop, **kept)
    again = dask_nmf.factorize(V, 4, out=tmp_path / "out", **kept)
    assert again.resumed_from == 4
    assert np.asarray(again.W).tobytes() == np.asarray(whole.W).tobytes()
    assert again.H.tobytes() == whole.H.tobytes()
    losses = [[r.objective for r in result.history] for result in (again, whole)]
    assert losses[0] == losses[1]
    if weights is not None:
        with pytest.raises(FileExistsError, match="weights"):
            dask_nmf.factorize(V, 4, out=tmp_path / "out", **told | {"weights": ~weights})
    with pytest.raises(FileExistsError, match="loss"):
        dask_nmf.factorize(V, 4, out=tmp_path / "out", **told | {"loss": 1.5})


def test_scale_is_carried_through() -> None:
    """Not scikit-learn's absolute epsilon: entries of 1e-8 are fitted as those of 1."""
    random = np.random.default_rng(0)
    V = random.poisson(random.random((90, 4)) @ random.random((4, 30)) * 2).astype(float)
    told: dict[str, Any] = {"loss": "kullback-leibler", "tol": 0, "max_passes": 8}
    one = dask_nmf.factorize(V, 4, **told)
    for scale in (1e-8, 1e8):
        other = dask_nmf.factorize(V * scale, 4, **told)
        np.testing.assert_allclose(other.error, one.error, rtol=1e-6)


@pytest.mark.parametrize(
    ("V", "more", "text"),
    [
        (np.eye(4), {"loss": 0}, "V contains zeros, of which loss=0 makes infinitely much"),
        (np.eye(4), {"loss": -1.0}, "V contains zeros"),
        (np.ones((4, 4)), {"weights": np.zeros((4, 4))}, "no entry of V has a weight above 0"),
        (
            np.ones((4, 4)),
            {"weights": -np.eye(4)},
            "weights must be finite.*row 0, column 0",
        ),
        (np.ones((4, 4)), {"weights": np.eye(4) * np.nan}, "weights must be finite"),
        (
            np.diag([1, -1.0, 1, 1]),
            {"weights": np.eye(4)},
            "V must be .*row 1, column 1 ",
        ),
        (np.full((4, 4), np.nan), {"missing": "nan"}, "no entry of V has a weight above 0"),
        (
            np.diag([1, np.nan]),
            {"loss": 1},
            "V must be finite.*row 1, column 1",
        ),
        (np.ones((9, 9)), {"weights": np.eye(9), "init": "nndsvda"}, "needs all entries of V"),
        (
            np.ma.masked_less(np.eye(3), 1),
            {"weights": np.eye(3)},
            "weights must be None for",
        ),
    ],
)
def test_bad_input(V: Any, more: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        dask_nmf.factorize(V, 2, **more)
