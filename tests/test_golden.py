"""Runs that earlier releases have left are gone on with."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import dask_nmf
from tests.golden import CALL, FOLDER, SOLVERS, V

RELEASES = sorted(folder.name for folder in FOLDER.iterdir())


def test_there_is_one_of_this_release() -> None:
    assert dask_nmf.__version__ in RELEASES


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("release", RELEASES)
def test_old_runs_go_on(tmp_path: Path, release: str, solver: str) -> None:
    shutil.copytree(FOLDER / release / solver, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the run at .* began with other arithmetic")
        found = dask_nmf.factorize(V, out=tmp_path / "out", solver=solver, **CALL)
    expected = dask_nmf.factorize(V, solver=solver, **CALL)
    assert found.resumed_from == 4
    # "auto" has begun with other steps since: the same components, of other lengths.
    lengths = np.linalg.norm(found.H, axis=1, keepdims=True)
    now = np.linalg.norm(expected.H, axis=1, keepdims=True)
    if solver != "auto":
        np.testing.assert_allclose(lengths, now, rtol=1e-6)
    np.testing.assert_allclose(found.H / lengths, expected.H / now, rtol=1e-5, atol=1e-7)
    W, W_now = found.W.compute() * lengths.T, expected.W.compute() * now.T
    np.testing.assert_allclose(W, W_now, rtol=1e-5, atol=1e-7)
    assert [r.error for r in found.history] == pytest.approx([r.error for r in expected.history])
