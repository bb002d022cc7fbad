"""Computing on the active scheduler, watched: what is stuck or lost ends in an error that says so.

distributed waits for ever for workers that do not come, are paused, or do not answer.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import dask
from dask.base import get_scheduler, tokenize
from dask.callbacks import Callback as TaskCallback
from dask.delayed import Delayed

from dask_nmf.bundles import bundled
from dask_nmf.errors import ClusterLost, PoisonBlock

_POLL = 1.0  # seconds between two looks
_SILENT = 20.0  # seconds, or the patience: a worker that is not heard of so long does not work
_WORKING = 10  # times the patience where workers answer, and just do not get ready

T = TypeVar("T")

logger = logging.getLogger("dask_nmf")


def patience() -> float:
    """Seconds in which nothing finishes, until a cluster that does not work is an error."""
    return float(dask.config.get("dask_nmf.patience", 60))


@dataclass(frozen=True)
class Asked:
    """What a compute is asked for: what stays in the workers' memory, and what comes back."""

    held: tuple[Any, ...]
    collections: tuple[Any, ...]


_asking: ContextVar[Callable[[Asked], Any] | None] = ContextVar("asking", default=None)


_stepping: ContextVar[Callable[[Callable[[], Any]], Any] | None] = ContextVar(
    "stepping", default=None
)


@contextmanager
def asking(ask: Callable[[Asked], Any], step: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
    """Have this thread's computes go by way of `ask`, and `aside` by way of `step`."""
    before, stepped = _asking.set(ask), _stepping.set(step)
    try:
        yield
    finally:
        _asking.reset(before)
        _stepping.reset(stepped)


def aside(call: Callable[[], T]) -> T:
    """What the call returns; other runs go on meanwhile, as it touches nothing that they share."""
    step = _stepping.get()
    found: T = call() if step is None else step(call)
    return found


def compute(*collections: Any) -> tuple[Any, ...]:
    """``dask.compute``, watched.

    Raises
    ------
    ClusterLost
        If the scheduler is gone, or nothing finishes on it for `patience` seconds.
    PoisonBlock
        If the workers that run a task die; its `key` is the task's.
    """
    return _one(Asked((), collections))[1]


def hold(held: Any, *collections: Any) -> tuple[Any, tuple[Any, ...]]:
    """`held` persisted in the workers' memory, and the others computed, from one graph."""
    (kept,), results = _one(Asked((held,), collections))
    return kept, results


def _one(asked: Asked) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    ask = _asking.get()
    found: tuple[Any, Any] = hold_all([asked])[0] if ask is None else ask(asked)
    return found


def hold_all(asked: Sequence[Asked]) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """What is held and what came back of each, from one graph.

    What several have asked for is sent once: distributed mixes up what has the same key. Delayed
    objects go last: dask returns results in that order, whatever the order they were given in.
    """
    held = [x for one in asked for x in one.held]
    wanted = [x for one in asked for x in one.collections]
    unique = {tokenize(x): x for x in sorted(wanted, key=lambda x: isinstance(x, Delayed))}
    place, collections = {key: i for i, key in enumerate(unique)}, list(unique.values())
    client = active_client()
    if client is None:
        with _told_when_stuck():
            if held:
                both = dask.persist(*held, *collections)
                held, collections = list(both[: len(held)]), list(both[len(held) :])
            results = list(dask.compute(*collections))
    else:
        with _releasing() as ours, _losses_named(client):
            both, size = bundled([*held, *collections], lambda: sum(client.nthreads().values()))
            held, collections = both[: len(held)], both[len(held) :]
            with _sending():
                if held:
                    both = dask.persist(*held, *collections)
                    held, collections = list(both[: len(held)]), list(both[len(held) :])
                    ours += [future for x in held for future in _futures(x)]
                futures = client.compute(collections)
            ours += futures
            results = _results(client, futures, size)
    kept, found = iter(held), iter([results[place[tokenize(x)]] for x in wanted])
    return [
        (tuple(islice(kept, len(one.held))), tuple(islice(found, len(one.collections))))
        for one in asked
    ]


def release(*held: Any) -> None:
    """Let the workers drop what is held there, whoever still refers to it."""
    for x in held:
        for future in _futures(x):
            future.release()  # to cancel it as well would confuse a scheduler that has just lost it


def active_client() -> Any:
    """The distributed.Client that dask would use here; None for local schedulers."""
    if "distributed" not in sys.modules:
        return None
    from distributed import Client

    client = getattr(get_scheduler(), "__self__", None)
    return client if isinstance(client, Client) else None


def _futures(held: Any) -> list[Any]:
    if held is None or "distributed" not in sys.modules:
        return []
    from distributed import futures_of

    return list(futures_of(held))


# ------------------------------------------------------------------------------- on a cluster
def _results(client: Any, futures: list[Any], in_turn: int) -> list[Any]:
    """in_turn : so many blocks are gone through by one task."""
    from distributed import wait
    from distributed.comm import CommClosedError
    from distributed.utils import TimeoutError as TimedOut

    watch, pending = _Watch(client, in_turn), list(futures)
    with _seceded():
        while pending:
            if _closed(client):  # its scheduler has not come back
                raise CommClosedError("its client has closed")
            try:
                done, left = wait(pending, timeout=_POLL, return_when="FIRST_COMPLETED")
            except (TimedOut, TimeoutError):
                watch.look()
                continue
            pending = list(left)
            if any(future.status == "error" for future in done):
                break
        results: list[Any] = client.gather(futures)
    for future in futures:  # now, not when Python finds that nobody refers to them
        future.release()
    return results


def _sending() -> Any:
    """H goes with the graph, once, and on from worker to worker: dask need not warn of its size."""
    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"})


@contextmanager
def _releasing() -> Iterator[list[Any]]:
    """On an error, also Ctrl-C, no task of ours stays behind; those of others are not touched."""
    ours: list[Any] = []
    try:
        yield ours
    except BaseException:
        for future in ours:
            future.release()
        raise


@contextmanager
def _losses_named(client: Any) -> Iterator[None]:
    """A lost scheduler and killed workers as errors of ours."""
    from distributed import KilledWorker
    from distributed.comm import CommClosedError
    from distributed.scheduler import NoWorkerError

    address = _address(client)
    try:
        yield
    except KilledWorker as error:
        raise PoisonBlock(str(error), error.task) from error
    except NoWorkerError as error:
        raise ClusterLost(
            f"the cluster at {address} has no workers, and its scheduler gave up after "
            f"{error.timeout:.0f} s (distributed.scheduler.no-workers-timeout). Start some and "
            "make the same call again"
        ) from error
    except (CancelledError, CommClosedError) as error:
        raise ClusterLost(_lost(address, error)) from error
    except (OSError, TimeoutError) as error:
        if client.status == "running":  # a task's own
            raise
        raise ClusterLost(_lost(address, error)) from error


def _closed(client: Any) -> bool:
    return client.status in ("closing", "closed")


def _address(client: Any) -> str:
    """Of its scheduler; a client that has closed has forgotten it."""
    return getattr(client.scheduler, "address", "an unknown address")


def _lost(address: str, error: BaseException) -> str:
    return (
        f"the scheduler at {address} was lost, or dropped the work: "
        f"{type(error).__name__}: {error}. Start a cluster and make the same call again"
    )


@contextmanager
def _seceded() -> Iterator[None]:
    """Inside a task of another job: others may run in its place while it waits."""
    from distributed import rejoin, secede
    from distributed.worker import thread_state

    inside = getattr(thread_state, "key", False)
    if inside:
        secede()
    try:
        yield
    finally:
        if inside:
            rejoin()


class _Watch:
    """Notices when nothing finishes on a cluster."""

    def __init__(self, client: Any, in_turn: int) -> None:
        self._client, self._address, self._in_turn = client, _address(client), in_turn
        self._since = self._warned = time.monotonic()
        self._finished = -1

    def look(self) -> None:
        """Raise ClusterLost if nothing has finished for too long."""
        silent = min(_SILENT, patience())
        try:
            finished, why = self._client.run_on_scheduler(_progress, silent, callback_timeout=10)
        except Exception as error:
            if not isinstance(error, (TimeoutError, OSError)) and not _closed(self._client):
                raise
            finished, why = self._finished, "the scheduler does not answer"
        now = time.monotonic()
        if finished != self._finished:
            self._finished, self._since, self._warned = finished, now, now
            return
        seconds, least = now - self._since, patience()
        if seconds >= (least if why else _WORKING * self._in_turn * least):
            raise ClusterLost(
                f"nothing has finished for {seconds:.0f} s on the cluster at {self._address}: "
                f"{why or 'its workers are at work all the time'}. Mend it and make the same call "
                "again; to wait longer, dask.config.set({'dask_nmf.patience': seconds})"
            )
        if now - self._warned >= least / 2:
            self._warned = now
            logger.warning("nothing has finished for %.0f s: %s", seconds, why or "still at work")


def _progress(silent: float, dask_scheduler: Any = None) -> tuple[int, str]:
    """How many tasks have finished on a scheduler, and why none can; runs there."""
    prefixes = list(dask_scheduler.task_prefixes.values())
    finished = sum(prefix.state_counts[state] for prefix in prefixes for state in _ENDED)
    workers = list(dask_scheduler.workers.values())
    now = time.time()
    if not workers:
        return finished, "it has no workers"
    if all(now - worker.last_seen > silent for worker in workers):
        return finished, f"none of its {len(workers)} workers answers"
    if not any(worker.status.name == "running" for worker in workers):
        return finished, (
            f"its {len(workers)} workers are paused: their memory, or the disk they spill to, is "
            "full"
        )
    return finished, ""


_ENDED = ("memory", "erred", "released")


# ------------------------------------------------------------------------------------ in here
@contextmanager
def _told_when_stuck() -> Iterator[None]:
    """A line in the log whenever no task has finished for a while: threads cannot be ended."""
    ended = threading.Event()
    finished = [0]

    def count(*_: Any) -> None:
        finished[0] += 1

    def watch() -> None:
        before, since = 0, time.monotonic()
        while not ended.wait(patience() / 2):
            if finished[0] != before:
                before, since = finished[0], time.monotonic()
            else:
                logger.warning(
                    "no task has finished for %.0f s: is a disk or a server out of reach?",
                    time.monotonic() - since,
                )

    threading.Thread(target=watch, daemon=True).start()
    try:
        with TaskCallback(posttask=count):
            yield
    finally:
        ended.set()
