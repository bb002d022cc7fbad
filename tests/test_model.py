"""The model between passes, and the runs that look ahead on it."""

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given

import dask_nmf
from dask_nmf import HALS, LookAhead, firstpass, geometry, model, oracle, sweeps
from dask_nmf.losses import Frobenius
from dask_nmf.types import Products, Seen, Sketch, Sums
from tests.conftest import Array, counted, data, low_rank
from tests.test_descent import factors
from tests.test_laws import Case, cases

QUIET: dict[str, Any] = {"tol": 0, "max_passes": 6}


@pytest.fixture(params=["all rows", "a sample of rows"])
def rows_of_model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the model has all rows of V, also of one as small as these."""
    if request.param != "all rows":
        monkeypatch.setattr(geometry, "MODEL_ALL", 0)
        monkeypatch.setattr(geometry, "MODEL_ROWS", 40)
        monkeypatch.setattr(geometry, "MODEL_ROWS_PER_COMPONENT", 1)
    return str(request.param)


def _collected(V: Array, W: Array, H: Array, rows: Array | None) -> tuple[Sketch, Seen, Sums]:
    """What a first pass and a pass at (W, H) collect, in plain numpy."""
    G = model.directions(V.shape[1], len(H), V.dtype)
    chosen = slice(None) if rows is None else rows
    Y = V[chosen] @ G
    sketch = Sketch(rows, len(Y) / len(V), Y, Y.T @ V[chosen])
    made = Products(WtV=W.T @ V, WtW=W.T @ W)
    seen = Seen(H, made, V @ H.T, W) if rows is None else Seen(H, made)
    return sketch, seen, Sums(V.sum(), (V**2).sum(), V.max())


# ------------------------------------------------------------------------------------ the model
@pytest.mark.parametrize(("m", "n", "k"), [(200, 30, 4), (60, 7, 3), (50, 3, 5), (9, 40, 6)])
def test_gradients_of_the_model_are_those_of_V(m: int, n: int, k: int) -> None:
    V, W, H = factors(m, n, k)
    found, _ = model.model_at(*_collected(V, W, H, None))
    M = found.left @ found.right
    size = np.abs(V @ H.T).max()
    np.testing.assert_allclose(M @ H.T, V @ H.T, atol=1e-9 * size)
    np.testing.assert_allclose(W.T @ M, W.T @ V, atol=1e-8 * np.abs(W.T @ V).max())


def test_the_model_is_second_order() -> None:
    """Its error differs from V's, but for a constant, by the square of a move in W and in H."""
    V, W, H = factors(200, 30, 4)
    found, _ = model.model_at(*_collected(V, W, H, None))
    M, random = found.left @ found.right, np.random.default_rng(0)
    dW, dH = random.standard_normal(W.shape), random.standard_normal(H.shape)

    def differs(step: float) -> float:
        X = (W + step * dW) @ (H + step * dH)
        return float(((V - X) ** 2).sum() - ((M - X) ** 2).sum())

    assert differs(1e-2) - differs(0) == pytest.approx(100 * (differs(1e-3) - differs(0)), rel=0.2)
    assert abs(differs(1e-2) - differs(0)) > 1e-6  # it does differ


def test_a_sample_has_the_gradient_and_the_error_of_all_rows() -> None:
    V, W, H = factors(200, 30, 4)
    rows = np.arange(0, 200, 3)
    found, W_s = model.model_at(*_collected(V, W, H, rows))
    made = found.products(W_s)
    np.testing.assert_allclose(made.WtW @ H - made.WtV, W.T @ W @ H - W.T @ V, atol=1e-9)
    assert found.squared_error(made, H) == pytest.approx(((V - W @ H) ** 2).sum())


def test_a_sample_of_exact_data_is_its_own_model() -> None:
    """Sums over all rows must not be mixed with those of the sample."""
    V, W, H = factors(200, 30, 4)
    V = low_rank(200, 30, 9, noise=0.0)
    rows = np.arange(0, 200, 3)
    found, _ = model.model_at(*_collected(V, W, H, rows))
    np.testing.assert_allclose(found.left @ found.right, V[rows], atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_a_sample_leads_on_from_the_start(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(geometry, "MODEL_ALL", 0)
    monkeypatch.setattr(geometry, "MODEL_ROWS", 1000)
    rng = np.random.default_rng(seed)
    V = rng.random((4000, 6)) @ rng.random((6, 80))
    V = np.maximum(V * (1 + 0.05 * rng.standard_normal(V.shape)), 0)
    result = dask_nmf.factorize(V, 6, tol=0, max_passes=4)
    first, second, third = (record.error for record in result.history)
    assert first > second > third


def test_steps_on_the_model_gain() -> None:
    V, W, H = factors(200, 30, 4)
    sketch, seen, sums = _collected(V, W, H, None)
    W_ahead, H_ahead = model.look_ahead(sketch, seen, H, sums, steps=50)
    assert min(W_ahead.min(), H_ahead.min()) >= 0
    assert oracle.error(V, W_ahead, H_ahead) < oracle.error(V, W, H)


def test_a_dead_component_and_twins_do_no_harm() -> None:
    V, W, H = factors(200, 30, 4)
    H[2], W[:, 2] = 0, 0  # dead
    H[1], W[:, 1] = H[0], W[:, 0]  # W'W has rank 2
    sketch, seen, sums = _collected(V, W, H, None)
    found, _ = model.model_at(sketch, seen, sums)
    np.testing.assert_allclose(found.left @ (found.right @ H.T), V @ H.T, atol=1e-8)
    W_ahead, H_ahead = model.look_ahead(sketch, seen, H, sums, steps=20)
    assert np.isfinite(W_ahead).all()
    assert np.isfinite(H_ahead).all()


def test_a_sample_depends_on_the_shape_only() -> None:
    assert model.sample_rows(100, 5) is None
    m, k = 10**6, 20
    rows, again = model.sample_rows(m, k), model.sample_rows(m, k)
    assert rows is not None
    assert len(rows) == len(set(rows.tolist())) == geometry.sample_size(m, k) == 8192
    assert (np.diff(rows) > 0).all()
    assert again is not None
    assert np.array_equal(rows, again)


# ------------------------------------------------------------------------------- the half-step
def test_settled_half_step_is_one_of_fewer_sweeps() -> None:
    V, W, H = factors(80, 20, 5)
    terms = np.ones_like(W), V @ H.T, H @ H.T
    found = HALS(inner=50, settle=1e-2).improve(*terms)
    same = [j for j in range(1, 51) if np.array_equal(found, HALS(inner=j).improve(*terms))]
    assert len(same) == 1
    assert 1 < same[0] < 50


def test_half_step_of_look_ahead_is_no_worse_and_nearly_exact() -> None:
    V, W, H = factors(80, 20, 5)
    best = HALS(2000).improve(W, V @ H.T, H @ H.T)
    for start in (np.zeros_like(W), W, 100 * W):
        found = LookAhead().improve(start, V @ H.T, H @ H.T)
        assert found.min() >= 0
        assert oracle.error(V, found, H) <= oracle.error(V, start, H)
        assert oracle.error(V, found, H) < 1.03 * oracle.error(V, best, H)


@pytest.mark.parametrize("option", [{"inner": 0}, {"settle": 1.0}, {"settle": "x"}, {"steps": 0}])
def test_options_are_checked(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        LookAhead(**option)


# ------------------------------------------------------------------------------------- whole runs
@given(case=cases((1e-8, 1.0, 1e8)))
def test_auto_is_nonnegative_monotone_and_true(case: Case) -> None:
    result = dask_nmf.factorize(case.blocks, len(case.H), **QUIET)
    W = result.W.compute()
    assert np.isfinite(W).all()
    assert np.isfinite(result.H).all()
    assert W.min() >= 0
    assert result.H.min() >= 0
    assert all(b.error <= a.error for a, b in pairwise(result.history))
    assert result.error == pytest.approx(oracle.error(case.V, W, result.H), rel=1e-4, abs=1e-7)


@cache
def _best_of(dtype: str) -> float:
    V: Any = low_rank(300, 40, 6, noise=0.2).astype(dtype).astype("f8")
    return dask_nmf.factorize(V, 5, solver=HALS(10), tol=0, max_passes=99).error


@pytest.mark.parametrize("solver", [LookAhead(), LookAhead(model=False)], ids=repr)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_runs_of_any_kind(rows_of_model: str, solver: LookAhead, dtype: str) -> None:
    """All errors are verified ones, they never rise, and the last is that of the factors."""
    V = low_rank(300, 40, 6, noise=0.2).astype(dtype)
    result = dask_nmf.factorize(V, 5, solver=solver, tol=0, max_passes=9, block_rows=70)
    assert all(b.error <= a.error for a, b in pairwise(result.history))
    true = oracle.error(V.astype("f8"), result.W.compute().astype("f8"), result.H.astype("f8"))
    assert result.error == pytest.approx(true, rel=1e-5)
    near = 1.01 if solver.model and rows_of_model == "all rows" else 1.05
    assert result.error < near * _best_of(dtype)


def test_the_history_does_not_depend_on_the_blocks(rows_of_model: str) -> None:
    V = low_rank(300, 40, 6, noise=0.2)
    histories = [
        [r.error for r in dask_nmf.factorize(V, 5, block_rows=rows, **QUIET).history]
        for rows in (300, 64, 7)
    ]
    for other in histories[1:]:
        assert other == pytest.approx(histories[0], rel=1e-4)  # 300 steps enlarge rounding


@pytest.mark.parametrize("chunks", [(50, 40), (300, 9), (60, 15)])
def test_columns_and_grids(chunks: tuple[int, int]) -> None:
    V = low_rank(300, 40, 6, noise=0.2)
    result = dask_nmf.factorize(da.from_array(V, chunks=chunks), 5, **QUIET)
    assert result.error == pytest.approx(oracle.error(V, result.W.compute(), result.H), rel=1e-9)
    assert result.error < 1.01 * dask_nmf.factorize(V, 5, **QUIET).error


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scale_changes_nothing_but_scale(scale: float) -> None:
    V = low_rank(120, 30, 6, noise=0.2)
    found, expected = (
        [r.error for r in dask_nmf.factorize(X, 4, **QUIET).history] for X in (scale * V, V)
    )
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 6, 9])
def test_exact_data_and_any_rank(rank: int) -> None:
    """Rank-deficient W'W, components of no use, and integers."""
    V = np.rint(100 * low_rank(40, 6, 1, noise=0)) @ np.ones((6, 6))
    for matrix in (V, V.astype("u2")):
        result = dask_nmf.factorize(matrix, rank, tol=1e-3, max_passes=60)
        assert result.error < 1e-5
        assert result.status.converged


def test_a_close_given_start_is_kept() -> None:
    """A sketch of V knows less than factors that the caller has."""
    W, H = low_rank(300, 4, 2), low_rank(4, 40, 2)
    result = dask_nmf.factorize(W @ H, 4, init=(W, H), tol=0, max_passes=2)
    assert result.error < 1e-6


@pytest.mark.usefixtures("nothing_kept")
def test_a_worse_pass_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model may lead astray: the run goes back, and on from there; it costs its read."""
    matrix = low_rank(300, 40, 6, noise=0.2)
    V, store = counted(tmp_path / "V.zarr", matrix, (100, 40))
    steps: list[int] = []

    def astray(*args: Any) -> tuple[Array, Array]:
        steps.append(args[4])
        W, H = model.look_ahead(*args)
        return W, (H[:, ::-1].copy() if len(steps) == 2 else H)

    monkeypatch.setattr(sweeps, "look_ahead", astray)
    out = tmp_path / "out.zarr"
    result = dask_nmf.factorize(V, 5, out=out, tol=0, max_passes=8)
    errors = [r.error for r in result.history]
    assert errors[2] == errors[1] > errors[3]
    assert steps[:4] == [100, 100, 25, 50]  # a quarter; a plain pass changes nothing
    assert set(store.reads().values()) == {8} == {result.history[-1].passes}
    again = dask_nmf.open_result(out)
    true = oracle.error(matrix, again.W.compute(), again.H)
    assert again.error == pytest.approx(true, rel=1e-9)
    assert [r.kkt for r in again.history] == [r.kkt for r in result.history]
    assert "generations" not in zarr.open_group(out)


def test_nothing_worse_is_ever_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the last pass was the worse one."""
    V = low_rank(300, 40, 6, noise=0.2)
    monkeypatch.setattr(sweeps, "look_ahead", lambda *args: (args[1].W, args[2][:, ::-1].copy()))
    result = dask_nmf.factorize(V, 5, tol=0, max_passes=3, block_rows=90)
    assert result.history[1].error == result.history[0].error
    assert result.error == pytest.approx(oracle.error(V, result.W.compute(), result.H), rel=1e-9)


def test_a_model_that_does_not_fit_is_left_out(tmp_path: Path) -> None:
    V = zarr.create_array(tmp_path / "V", shape=(2000, 50_000), chunks=(50, 50_000), dtype="f4")
    V[:] = 1.0
    most = dask_nmf.plan(V, 20, out=tmp_path / "out")
    least = dask_nmf.plan(V, 20, out=tmp_path / "out", solver=LookAhead(model=False))
    assert "model of V (all rows)" in repr(most)
    assert most.parts["sketch"] > 0 == least.parts["sketch"]
    between = (most.peak_bytes - most.parts["kept"] + least.peak_bytes - least.parts["kept"]) // 2
    found = dask_nmf.plan(V, 20, out=tmp_path / "out", memory=between)
    if found.parts["sketch"] == 0:
        assert "extrapolation" in repr(found)
    assert found.peak_bytes <= between


def test_plans_of_other_solvers_have_no_model() -> None:
    found = dask_nmf.plan(np.ones((300, 40)), 5, solver="hals")
    assert found.parts["sketch"] == found.parts["model"] == 0
    assert "nothing" in dict(found.rows())["between passes"]


# ------------------------------------------------------------------------------------------- KKT
def test_kkt_is_the_projected_gradient_and_free_of_scale() -> None:
    V, W, H = factors(80, 20, 5)
    H[:, 3] = 0
    gradient = W.T @ (W @ H - V)
    gradient[(H == 0) & (gradient > 0)] = 0
    lengths = np.linalg.norm(W, axis=0)[:, None]
    expected = np.linalg.norm(gradient / lengths) / np.linalg.norm(V - W @ H)

    def kkt(V: Array, W: Array, H: Array) -> float:
        sums = Sums(V.sum(), (V**2).sum(), V.max())
        return Frobenius().kkt(sums, Products(W.T @ V, W.T @ W), H)

    assert kkt(V, W, H) == pytest.approx(expected, rel=1e-9)
    size = np.array([1e-3, 1, 5, 1e4, 7.0])
    assert kkt(1e6 * V, 1e6 * W / size, H * size[:, None]) == pytest.approx(expected, rel=1e-9)


def test_kkt_is_small_at_a_stationary_point_only() -> None:
    V = low_rank(200, 90, 6, noise=0.3)
    with pytest.warns(dask_nmf.ConvergenceWarning):
        early = dask_nmf.factorize(V, 4, tol=1e-6, max_passes=2)
    late = dask_nmf.factorize(V, 4, tol=1e-4, max_passes=300)
    assert late.status.converged
    assert late.history[-1].kkt < 1e-4 < early.history[-1].kkt
    W, H = late.W.compute(), late.H
    for gradient, F in ((W.T @ (W @ H - V), H), ((W @ H - V) @ H.T, W)):
        assert np.linalg.norm(np.minimum(gradient, F)) < 1e-2 * np.linalg.norm(V)


# ------------------------------------------------------------------------------ few reads of V
def test_within_one_percent_of_the_best_error_in_three_passes() -> None:
    """Truth: the best errors known for these data, from many restarts elsewhere."""
    V = data("all_aml.npz")["V"]
    for rank, best in ((2, 0.55636662789), (5, 0.43197873070)):
        errors = [
            dask_nmf.factorize(V, rank, seed=seed, tol=0, max_passes=3).error for seed in range(5)
        ]
        assert np.median(errors) < 1.01 * best


def test_the_first_pass_sketches_any_chunks() -> None:
    V = low_rank(60, 20, 3)
    rows, G = np.array([0, 1, 17, 59]), model.directions(20, 3, V.dtype)
    for chunks in ((60, 20), (7, 20), (13, 6)):
        found = firstpass.first_pass(da.from_array(V, chunks=chunks), G=G, rows=rows)
        sums, sketch = found.sums, found.sketch
        assert sketch is not None
        assert sums.squares == pytest.approx((V**2).sum())
        np.testing.assert_allclose(sketch.Y, V[rows] @ G)
        np.testing.assert_allclose(sketch.YtV, (V[rows] @ G).T @ V[rows])
