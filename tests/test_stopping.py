"""Why a run stops."""

import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import dask_nmf
from dask_nmf import Status, SweepRecord
from dask_nmf.options import Options
from dask_nmf.stopping import stop
from tests.conftest import low_rank

V = low_rank(60, 20, 3)
OPTIONS = Options(
    rank=2, tol=1e-2, max_passes=10, max_seconds=5.0, seed=0, memory=None, block_rows=None
)


def _history(
    *errors: float, passes: int = 3, seconds: float = 1.0, kkt: float = 0.5
) -> list[SweepRecord]:
    return [SweepRecord(i + 1, passes, error, seconds, 0, kkt) for i, error in enumerate(errors)]


@pytest.mark.parametrize(
    ("history", "asked", "expected"),
    [
        ([], False, Status.RUNNING),
        (_history(0.5), False, Status.RUNNING),
        (_history(0.5, 0.4), False, Status.RUNNING),
        (_history(0.5, 0.4999), False, Status.RUNNING),
        (_history(0.5, 0.4, kkt=0.009), False, Status.CONVERGED),
        (_history(0.5, 0.5), False, Status.RUNNING),
        (_history(0.5, 0.5, 0.5), False, Status.STALLED),
        (_history(0.5, 0.5, 0.5 - 1e-14), False, Status.STALLED),
        (_history(0.5, 0.5, 0.5 - 1e-9), False, Status.RUNNING),
        (_history(0.5, 0.51, 0.4), False, Status.RUNNING),
        (_history(0.0), False, Status.EXACT),
        (_history(0.5, 0.4), True, Status.CALLBACK),
        (_history(0.5, 0.4, passes=10), False, Status.MAX_PASSES),
        (_history(0.5, 0.4, seconds=5.0), False, Status.MAX_SECONDS),
        (_history(0.5, 0.499, passes=10, kkt=0.009), False, Status.CONVERGED),
    ],
)
def test_rule(history: list[SweepRecord], asked: bool, expected: Status) -> None:
    assert stop(history, OPTIONS, asked) is expected


def test_tol_zero_never_converges() -> None:
    assert stop(_history(0.5, 0.5, 0.5, kkt=0.0), replace(OPTIONS, tol=0)) is Status.RUNNING


def test_every_status_says_why() -> None:
    assert all(len(status.value) > 10 for status in Status)
    assert {s for s in Status if s.converged} == {Status.CONVERGED, Status.STALLED, Status.EXACT}


def test_max_passes_counts_reads_and_warns_once() -> None:
    with pytest.warns(dask_nmf.ConvergenceWarning, match="max_passes reads.*error is 0") as caught:
        result = dask_nmf.factorize(V, 3, solver="hals", max_passes=4, tol=1e-9)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert result.status is Status.MAX_PASSES
    assert result.history[-1].passes == 4
    assert len(result.history) == 3


def test_max_seconds_stops_at_a_sweep() -> None:
    def slow(record: SweepRecord) -> None:
        time.sleep(0.2)

    result = None
    with pytest.warns(dask_nmf.ConvergenceWarning, match="max_seconds"):
        result = dask_nmf.factorize(V, 3, solver="hals", max_seconds=0.3, callback=slow, tol=1e-12)
    assert result.status is Status.MAX_SECONDS
    assert result.history[-1].seconds >= 0.3 > result.history[-2].seconds


def test_callback_sees_the_history_and_stops() -> None:
    seen: list[SweepRecord] = []

    def third(record: SweepRecord) -> bool:
        seen.append(record)
        return record.sweep == 3

    result = dask_nmf.factorize(V, 3, callback=third, tol=0)
    assert result.status is Status.CALLBACK
    assert tuple(seen) == result.history
    assert len(seen) == 3


@pytest.mark.parametrize("answer", [None, 1, "yes", np.True_])
def test_only_true_stops(answer: Any) -> None:
    result = dask_nmf.factorize(V, 3, callback=lambda _: answer, max_passes=4, tol=0)
    assert result.status is Status.MAX_PASSES


def test_a_callback_that_fails_ends_the_run() -> None:
    def broken(record: SweepRecord) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        dask_nmf.factorize(V, 3, callback=broken)


@pytest.mark.parametrize("solver", ["mu", "hals"])
@pytest.mark.parametrize("init", ["random", "nndsvda"])
def test_all_zero_V_is_reproduced_exactly(solver: str, init: str) -> None:
    result = dask_nmf.factorize(np.zeros((7, 5)), 2, solver=solver, init=init)
    assert result.status is Status.EXACT
    assert result.error == 0
    assert not (result.W.compute() @ result.H).any()
    assert result.dead == 2


@pytest.mark.parametrize("rank", [1, 5, 9])
@pytest.mark.parametrize("solver", ["mu", "hals", "auto"])
def test_any_rank(rank: int, solver: str) -> None:
    """Rank 1, min(m, n) and beyond; with zero rows and columns."""
    matrix = low_rank(7, 5, 2)
    matrix[2], matrix[:, 3] = 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dask_nmf.ConvergenceWarning)  # MU on exact data
        result = dask_nmf.factorize(matrix, rank, solver=solver, tol=1e-2)
    W = result.W.compute()
    assert W.shape == (7, rank)
    assert np.allclose(W[2] @ result.H, 0)
    assert np.allclose(W @ result.H[:, 3], 0)
    assert result.error < 5e-3 or rank == 1
    assert result.status.converged or solver == "mu"


def test_dead_components_are_counted() -> None:
    """HALS empties the components that an exact rank-1 matrix has no use for."""
    matrix = np.outer(np.arange(1.0, 9), np.arange(1.0, 6))
    W, H = np.ones((8, 2)), np.ones((2, 5))
    W[:, 1], H[1] = 1e-9, np.array([0, 0, 0, 0, 1.0])
    result = dask_nmf.factorize(matrix, 2, init=(W, H), tol=1e-3)
    zero = ~result.W.compute().any(axis=0) | ~result.H.any(axis=1)
    assert result.dead == zero.sum()
