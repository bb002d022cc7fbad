"""What tests of resumed runs share: how to kill a call, and what must be the same."""

from typing import Any

import numpy as np

import dask_nmf
from dask_nmf.types import SweepRecord
from tests.conftest import low_rank

DATA = low_rank(700, 60, 5, noise=0.5)
FEW: dict[str, Any] = {"tol": 0, "max_passes": 8, "block_rows": 70, "checkpoint_every": 1}


class Killed(BaseException):
    """Nothing in the library catches it."""


def killing(*sweeps: int) -> Any:
    """A callback that dies in each of these sweeps once."""
    left = set(sweeps)

    def callback(record: SweepRecord) -> None:
        if record.sweep in left:
            left.remove(record.sweep)
            raise Killed

    return callback


def until_done(V: Any, rank: int, callback: Any, **options: Any) -> dask_nmf.Result:
    """The same call, made again whenever it was killed."""
    for _ in range(20):
        try:
            return dask_nmf.factorize(V, rank, callback=callback, **options)
        except Killed:
            continue
    raise AssertionError("it never ended")


def assert_same(found: dask_nmf.Result, expected: dask_nmf.Result) -> None:
    assert found.W.compute().tobytes() == expected.W.compute().tobytes()
    assert np.asarray(found.H).tobytes() == np.asarray(expected.H).tobytes()
    for name in ("sweep", "passes", "error", "kkt"):
        assert [getattr(r, name) for r in found.history] == [
            getattr(r, name) for r in expected.history
        ]
    assert found.status is expected.status
