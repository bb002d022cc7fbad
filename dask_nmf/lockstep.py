"""Runs that take turns, and wait for each other where V is read: one read then serves them all.

Each call has a thread, of which one is at work at any time. Arithmetic that touches nothing shared
they give to a few other threads (few, because each keeps a heap of its own), and the next one goes
on. When all have asked for something to be computed, what they asked for is one graph, in which
what they share is computed once.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

import dask.array as da

from dask_nmf.watch import Asked, asking, hold_all

T = TypeVar("T")


class Dropped(BaseException):
    """What a call ends with when another one has failed."""


@dataclass(frozen=True)
class _Failure:
    """What all are told of one error, each as if it were the first: raising adds to a traceback."""

    error: BaseException
    traceback: TracebackType | None = None

    def again(self) -> BaseException:
        return self.error.with_traceback(self.traceback)


class _Turn(Generic[T]):
    """A call in its thread: goes on when told to, until it asks for something or ends.

    floor : held while it is at work. pool : does what it gives away.
    """

    def __init__(self, call: Callable[[], T], floor: threading.Lock, pool: Executor) -> None:
        self._floor, self._pool = floor, pool
        self.asked: Asked | None = None
        self.ended = False
        self.error: BaseException | None = None
        self.result: T | None = None
        self._call, self._answer = call, None
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._mine.acquire()
        self._floor.acquire()
        try:
            with asking(self._ask, self._aside):
                if isinstance(self._answer, _Failure):
                    raise self._answer.again()
                self.result = self._call()
        except BaseException as error:
            self.error = error
        finally:
            self.asked, self.ended = None, True
            self._floor.release()
            self._theirs.release()

    def _ask(self, asked: Asked) -> Any:
        self.asked = asked
        self._floor.release()
        self._theirs.release()
        self._mine.acquire()
        self._floor.acquire()
        answer, self._answer = self._answer, None  # arrays, which are not to stay here
        if isinstance(answer, _Failure):
            raise answer.again()
        return answer

    def _aside(self, step: Callable[[], Any]) -> Any:
        self._floor.release()
        try:
            return self._pool.submit(step).result()
        finally:
            self._floor.acquire()

    def go_on(self, answer: Any = None) -> None:
        """With what it has asked for, or a failure to raise there."""
        self._answer, self.asked = answer, None
        self._mine.release()

    def wait(self) -> None:
        """Until it has asked for something, or has ended."""
        self._theirs.acquire()


def in_lockstep(
    calls: Sequence[Callable[[], T]], passing: dict[Any, Any], at_once: int = 1
) -> list[T]:
    """What the calls return.

    Parameters
    ----------
    calls : sequence of callables
        What they compute by way of `watch`, and needs V, is computed at once for all.
    passing : dict
        The blocks of V, and of its weights, that they share in a pass; emptied after it.
    at_once : int
        Most that are at work aside.

    Raises
    ------
    BaseException
        The first that a call ends with; the others are ended where they stand.
    """
    with ThreadPoolExecutor(at_once, "nmf-aside") as pool:
        return _in_turns(calls, passing, pool)


def _in_turns(calls: Sequence[Callable[[], T]], passing: dict[Any, Any], pool: Executor) -> list[T]:
    floor = threading.Lock()
    turns = [_Turn(call, floor, pool) for call in calls]
    answers: list[Any] = [None] * len(turns)
    going = list(turns)
    try:
        while going:
            for turn in going:
                turn.go_on(answers.pop(0))
            for turn in going:
                turn.wait()
                while turn.asked is not None and not _needs(turn.asked, passing, floor):
                    turn.go_on(_answered([turn.asked])[0])
                    turn.wait()
            for turn in going:
                if turn.error is not None:
                    raise turn.error
            going = [turn for turn in going if turn.asked is not None]
            answers = _answered([turn.asked for turn in going if turn.asked is not None])
            passing.clear()
    except BaseException:
        for turn in turns:
            while not turn.ended:  # also one that has not begun
                turn.go_on(_Failure(Dropped()))
                turn.wait()
        raise
    return [turn.result for turn in turns]  # type: ignore[misc]


def _needs(asked: Asked, passing: dict[Any, Any], floor: threading.Lock) -> bool:
    """Whether V has to be read for it."""
    with floor:
        names = {V.name for V in passing.values() if isinstance(V, da.Array)}
    graphs = (x.__dask_graph__() for x in (*asked.held, *asked.collections))
    return any(names & set(getattr(graph, "layers", graph)) for graph in graphs)


def _answered(asked: list[Asked]) -> list[Any]:
    """What each has asked for; where that fails, the error for all."""
    if not asked:
        return []
    try:
        return hold_all(asked)
    except Exception as error:
        return [_Failure(error, error.__traceback__)] * len(asked)
