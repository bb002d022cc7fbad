"""Runs in step: one answer for all, one at work at a time, nothing left behind."""

import threading
import time
import traceback
from functools import partial
from typing import Any

import dask.array as da
import pytest

from dask_nmf.lockstep import in_lockstep
from dask_nmf.watch import Asked, aside, compute, hold_all
from tests.conftest import low_rank

DATA = low_rank(700, 60, 5, noise=0.5)
FEW: dict[str, Any] = {"tol": 0, "max_passes": 6, "block_rows": 70}


def test_no_thread_is_left_behind() -> None:
    """Neither of calls under way, nor of those that had not begun."""
    before = threading.active_count()

    def fails() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        in_lockstep([fails, fails, fails], {})
    assert threading.active_count() == before


def test_answers_are_those_of_their_questions(scheduler: str) -> None:
    """dask.compute puts the results of arrays before those of delayed objects."""
    arrays = [da.full((2, 2), i, chunks=2) for i in range(4)]
    blocks = [da.full((2, 2), 10 + i, chunks=2).to_delayed().item() for i in range(4)]
    asked = [Asked((), (arrays[i], blocks[i], arrays[i - 1])) for i in range(4)]
    for i, (_, found) in enumerate(hold_all(asked)):
        assert [x[0, 0] for x in found] == [i, 10 + i, (i - 1) % 4], scheduler


@pytest.mark.parametrize("at_once", [1, 2])
def test_so_many_step_aside_at_once(at_once: int) -> None:
    meet = threading.Barrier(2, timeout=0.5)

    def step() -> bool:
        try:
            meet.wait()
        except threading.BrokenBarrierError:
            return False
        return True

    def call() -> bool:
        return aside(step)

    assert in_lockstep([call, call], {}, at_once) == [at_once == 2] * 2


def test_one_at_work_besides() -> None:
    """What runs share is touched by one of them at a time."""
    inside, most = 0, 0

    def call() -> None:
        nonlocal inside, most
        for _ in range(20):
            inside += 1
            most = max(most, inside)
            time.sleep(1e-4)
            inside -= 1
            aside(partial(time.sleep, 1e-4))

    in_lockstep([call] * 4, {}, 4)
    assert most == 1


def test_an_error_is_told_to_each_as_if_to_it_alone() -> None:
    """Of 20 runs the traceback had gone through all of them, one below the other."""

    def fail(block: Any) -> Any:
        raise ValueError("a bad chunk")

    V = da.from_array(low_rank(20, 6, 2), chunks=(10, 6)).map_blocks(fail, dtype=float, meta=0)
    with pytest.raises(ValueError, match="a bad chunk") as failed:
        in_lockstep([partial(compute, V.sum())] * 20, {"V": V})
    frames = [frame.name for frame in traceback.extract_tb(failed.value.__traceback__)]
    assert frames.count("_ask") == 1
    assert frames[-1] == "fail"
