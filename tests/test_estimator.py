"""The estimator: scikit-learn's numbers, any container, and scikit-learn's own machinery."""

import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn.decomposition
import zarr
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from dask_nmf import NMF, estimator, factorize, loop, non_negative_factorization, open_result
from dask_nmf.types import Array

RNG = np.random.default_rng(0)
X = RNG.random((60, 4)) @ RNG.random((4, 25)) + 0.1 * RNG.random((60, 25))
X[:, 3] = 0.0
X[RNG.random(X.shape) < 0.2] = 0.0

CD: dict[str, Any] = {"init": "random", "random_state": 3, "tol": 0, "max_iter": 12}
MU = CD | {"solver": "mu"}
KINDS: dict[str, dict[str, Any]] = {
    "cd": CD,
    "cd, penalties": CD | {"alpha_W": 0.01, "alpha_H": 0.02, "l1_ratio": 0.5},
    "mu": MU,
    "mu, penalties": MU | {"alpha_W": 0.01, "alpha_H": 0.02, "l1_ratio": 0.5},
    "kl": MU | {"beta_loss": "kullback-leibler"},
    "kl, penalties": MU | {"beta_loss": 1.0, "alpha_W": 0.01, "l1_ratio": 0.3},
    "beta 1.5": MU | {"beta_loss": 1.5},
}


def lazy(X: Array, kind: str, path: Path) -> Any:
    """X in 2-D chunks that fit nothing."""
    if kind == "dask":
        return da.from_array(X, chunks=(23, 11))
    return zarr.create_array(path / "X.zarr", data=X, chunks=(23, 11))


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small a lazy X is, it is read block by block."""
    monkeypatch.setattr(estimator, "_SMALL", 0)


# ------------------------------------------------------------------------------- the same numbers
@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_array, scipy.sparse.csc_matrix])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_scikit_learns(kind: str, form: Any) -> None:
    """(Theirs of the dense X: of a CSC one "mu" takes the entries in another order than W H's.)"""
    ours, theirs = NMF(4, **KINDS[kind]), sklearn.decomposition.NMF(4, **KINDS[kind])
    np.testing.assert_allclose(
        ours.fit_transform(form(X)), theirs.fit_transform(X), rtol=1e-6, atol=1e-9
    )
    np.testing.assert_allclose(ours.components_, theirs.components_, rtol=1e-6, atol=1e-9)
    assert ours.reconstruction_err_ == pytest.approx(theirs.reconstruction_err_, rel=1e-7)
    assert ours.n_iter_ == theirs.n_iter_ == len(ours.history_) == 12
    assert not ours.converged_


@pytest.mark.parametrize("container", ["dask", "zarr"])
@pytest.mark.parametrize("kind", ["cd, penalties", "mu", "kl"])
def test_numbers_are_the_same_in_blocks(
    kind: str, container: str, tmp_path: Path, streamed: None
) -> None:
    ours, theirs = NMF(4, **KINDS[kind]), sklearn.decomposition.NMF(4, **KINDS[kind])
    W = ours.fit_transform(lazy(X, container, tmp_path))
    assert isinstance(W, da.Array)
    assert container == "zarr" or W.chunks == ((23, 23, 14), (4,))
    np.testing.assert_allclose(W, theirs.fit_transform(X), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.components_, theirs.components_, rtol=1e-6, atol=1e-9)
    assert ours.reconstruction_err_ == pytest.approx(theirs.reconstruction_err_, rel=1e-7)


def test_small_lazy_arrays_are_read_once(tmp_path: Path) -> None:
    W = NMF(4, **CD).fit_transform(X)
    for container in ("dask", "zarr"):
        found = NMF(4, **CD).fit_transform(lazy(X, container, tmp_path))
        assert isinstance(found, da.Array)
        np.testing.assert_array_equal(found, W)


@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler", 0.5])
@pytest.mark.parametrize("solver", ["mu", "auto"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_array])
def test_at_hand_or_in_graphs_has_the_same_bits(
    loss: Any, solver: str, dtype: str, form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V in memory is multiplied without graphs; tasks do the very same."""
    V = form(X.astype(dtype))
    call: dict[str, Any] = {"rank": 4, "loss": loss, "solver": solver, "max_passes": 8}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        direct = factorize(V, **call)
        monkeypatch.setattr(loop, "AT_HAND", False)
        graphs = factorize(V, **call)
    np.testing.assert_array_equal(direct.W.compute(), graphs.W.compute())
    np.testing.assert_array_equal(direct.H, graphs.H)
    assert [r.error for r in direct.history] == [r.error for r in graphs.history]


# ----------------------------------------------------------------------------------- transform
@pytest.mark.parametrize("kind", ["cd", "kl", "beta 1.5"])
def test_transform_does_not_depend_on_the_slices(kind: str, streamed: None) -> None:
    model = NMF(4, **KINDS[kind]).fit(X)
    whole = model.transform(X)
    rows = np.vstack([model.transform(X[i : i + 1]) for i in range(0, 60, 19)])
    np.testing.assert_allclose(rows, whole[::19], rtol=1e-7, atol=1e-9)
    blocks = model.transform(da.from_array(X, chunks=(13, 9)))
    assert blocks.chunks[0] == (13, 13, 13, 13, 8)
    np.testing.assert_allclose(blocks, whole, rtol=1e-7, atol=1e-9)


def test_transform_is_the_nonnegative_least_squares_solution() -> None:
    from scipy.optimize import nnls

    model = NMF(4, **CD).fit(X)
    best = np.array([nnls(model.components_.T, row)[0] for row in X])
    np.testing.assert_allclose(model.transform(X), best, atol=1e-8)


def test_inverse_transform_is_lazy_for_dask() -> None:
    model = NMF(4, **CD).fit(X)
    W = da.from_array(model.transform(X), chunks=(20, -1))
    found = model.inverse_transform(W)
    assert isinstance(found, da.Array)
    np.testing.assert_allclose(found, np.asarray(W) @ model.components_)


# --------------------------------------------------------------------------- lazy and larger ones
def test_out_keeps_the_factors(tmp_path: Path, streamed: None) -> None:
    out = str(tmp_path / "out.zarr")
    call: dict[str, Any] = {"n_components": 4, "out": out, "tol": 0, "random_state": 0}
    source = lazy(X, "zarr", tmp_path)
    model = NMF(**call, max_iter=5)
    W = model.fit_transform(source)
    kept = open_result(tmp_path / "out.zarr")
    np.testing.assert_array_equal(W, kept.W)
    np.testing.assert_array_equal(model.components_, kept.H)
    again = NMF(**call, max_iter=5).fit(source)  # what is finished is returned
    assert again.history_ == model.history_


def test_rank_has_to_be_given_for_lazy_arrays(streamed: None) -> None:
    with pytest.raises(ValueError, match="pass n_components"):
        NMF().fit(da.from_array(X, chunks=(23, 11)))


def test_negative_entry_of_a_lazy_array_is_named(streamed: None) -> None:
    bad = X.copy()
    bad[50, 20] = -1
    with pytest.raises(ValueError, match=r"(?s)negative.*row 50.*column 20"):
        NMF(2, init="random").fit(da.from_array(bad, chunks=(23, 11)))


def test_path_of_a_store(tmp_path: Path) -> None:
    lazy(X, "zarr", tmp_path)
    W = NMF(4, **CD).fit_transform(str(tmp_path / "X.zarr"))
    np.testing.assert_array_equal(W, NMF(4, **CD).fit_transform(X))


def test_auto_needs_few_reads() -> None:
    model = NMF(4, solver="auto", tol=5e-3, init="random", random_state=0).fit(X)
    assert model.converged_
    best = sklearn.decomposition.NMF(4, init="random", random_state=0, max_iter=2000, tol=1e-6)
    assert model.reconstruction_err_ <= 1.01 * best.fit(X).reconstruction_err_
    assert model.n_iter_ < 30


# ------------------------------------------------------------------------ what stays as it was
def test_nothing_of_the_caller_is_written_and_dtypes_are_cast() -> None:
    W0, H0 = RNG.random((60, 4)), RNG.random((4, 25)).astype("f4")
    before = X.copy(), W0.copy(), H0.copy()
    model = NMF(init="custom", solver="mu", max_iter=3, tol=0)
    model.fit(X, W=W0, H=H0)
    assert model.components_.dtype == np.float64
    for now, then in zip((X, W0, H0), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_convergence_is_told() -> None:
    with pytest.warns(ConvergenceWarning, match="Maximum number of iterations 2 reached"):
        model = NMF(4, max_iter=2).fit(X)
    assert not model.converged_
    assert NMF(4, max_iter=2000, tol=1e-3).fit(X).converged_


def test_gradient_rule_is_close_to_scikit_learns() -> None:
    call: dict[str, Any] = {"init": "random", "random_state": 3, "tol": 1e-3, "max_iter": 1000}
    ours, theirs = NMF(4, **call).fit(X), sklearn.decomposition.NMF(4, **call).fit(X)
    assert theirs.n_iter_ / 2 < ours.n_iter_ < theirs.n_iter_ * 2
    assert ours.reconstruction_err_ == pytest.approx(theirs.reconstruction_err_, rel=2e-3)


def test_an_exact_fit_has_converged() -> None:
    """Of a product the gradient is rounding from the first sweep on, and never falls."""
    exact = np.outer(np.arange(1.0, 7), np.arange(1.0, 6))
    for solver in ("cd", "mu", "auto"):
        model = NMF(1, solver=solver, random_state=0).fit(exact)
        assert model.converged_
        assert model.reconstruction_err_ < 1e-10


def test_zeros() -> None:
    model = NMF(2, solver="mu", init="random").fit(np.zeros((6, 5)))
    assert model.reconstruction_err_ == 0
    assert not model.components_.any()


def test_verbose_prints_a_line_for_each_iteration(capsys: pytest.CaptureFixture[str]) -> None:
    NMF(4, **CD, verbose=1).fit(X)
    assert len(re.findall(r"^iteration \d+: error 0\.\d+", capsys.readouterr().out, re.M)) == 12


def test_without_scikit_learn_the_extra_is_named() -> None:
    code = "import sys; sys.modules['sklearn'] = None; import dask_nmf; dask_nmf.NMF"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode
    assert "dask_nmf[sklearn]" in done.stderr.splitlines()[-1]


# ------------------------------------------------------------------- scikit-learn's machinery
def test_pipeline_and_grid_search() -> None:
    y = X @ RNG.random(25)
    pipeline = make_pipeline(NMF(random_state=0, tol=1e-3, max_iter=2000), LinearRegression())
    grid = {"nmf__n_components": [1, 4], "nmf__solver": ["cd", "auto"]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(X, y)
    assert search.best_params_["nmf__n_components"] == 4  # what X was made of
    assert search.best_score_ > 0.8


def test_set_output_names_the_columns() -> None:
    frame = pd.DataFrame(X, columns=[f"gene{i}" for i in range(25)])
    model = NMF(4, **CD).set_output(transform="pandas")
    found = model.fit_transform(frame)
    assert list(found.columns) == ["nmf0", "nmf1", "nmf2", "nmf3"]
    assert list(model.feature_names_in_) == list(frame.columns)
    np.testing.assert_array_equal(found, NMF(4, **CD).fit_transform(X))


def test_clone_and_pickle(streamed: None) -> None:
    model = NMF(4, **CD, memory="1GiB").fit(da.from_array(X, chunks=(23, 11)))
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.transform(X), model.transform(X))
    assert len(pickle.dumps(model)) < 20_000  # of H, not of X or W
    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    assert not hasattr(fresh, "components_")


def test_function_is_the_class() -> None:
    W, H, n_iter = non_negative_factorization(X, n_components=4, **CD)
    model = NMF(4, **CD)
    np.testing.assert_array_equal(W, model.fit_transform(X))
    np.testing.assert_array_equal(H, model.components_)
    assert n_iter == 12
    W, same, _ = non_negative_factorization(X, H=H, update_H=False)
    np.testing.assert_array_equal(W, model.transform(X))
    assert same is H or np.array_equal(same, H)


def test_signatures_are_scikit_learns() -> None:
    from inspect import signature

    for ours, theirs in (
        (NMF, sklearn.decomposition.NMF),
        (non_negative_factorization, sklearn.decomposition.non_negative_factorization),
    ):
        mine, wanted = signature(ours).parameters, signature(theirs).parameters
        assert list(mine)[: len(wanted)] == list(wanted)
        for name, parameter in wanted.items():
            assert mine[name].default == parameter.default, name
            assert mine[name].kind == parameter.kind, name
