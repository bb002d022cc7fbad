"""Which dask scheduler is active, and what a worker process of it has. Starts nothing."""

import sys
from concurrent.futures import CancelledError
from dataclasses import dataclass

import dask
from dask.base import get_scheduler
from dask.system import CPU_COUNT

from dask_nmf.errors import ClusterLost


@dataclass(frozen=True)
class Scheduler:
    """What will run the tasks.

    Attributes
    ----------
    name : str
    processes, threads : int
        Worker processes, and threads of each.
    remote : bool
        Whether not all of it is in this process.
    memory : int or None
        Bytes that the least of the workers may use, where they say.
    flexible : bool
        Whether a run may take fewer threads.
    """

    name: str
    processes: int
    threads: int
    remote: bool
    memory: int | None = None
    flexible: bool = False


def active_scheduler() -> Scheduler:
    """The scheduler that ``dask.compute`` would use here and now.

    Raises
    ------
    RuntimeError
        Under an asynchronous Client, without workers, or with dask's array query planning on.
    """
    if dask.config.get("array.query-planning", None):
        raise RuntimeError(
            "dask_nmf does not support dask's array query planning: set "
            "dask.config.set({'array.query-planning': False}) before dask.array is imported"
        )
    try:
        get = get_scheduler()
    except RuntimeError as error:  # dask's own words for an asynchronous client
        raise RuntimeError(
            f"{error}: call factorize under a synchronous distributed.Client, or without one"
        ) from error
    client = getattr(get, "__self__", None)
    if client is not None and "distributed" in sys.modules:
        return _of_client(client)
    name = getattr(get, "__module__", "dask.threaded") if get is not None else "dask.threaded"
    workers = dask.config.get("num_workers", None) or CPU_COUNT
    pool = dask.config.get("pool", None)
    workers = getattr(pool, "_max_workers", None) or workers
    if name == "dask.threaded":
        return Scheduler("threads", 1, workers, remote=False, flexible=pool is None)
    if name == "dask.multiprocessing":
        raise RuntimeError(
            "dask's multiprocessing scheduler keeps no results in its workers: use threads, or "
            "distributed.Client() for processes"
        )
    return Scheduler("synchronous", 1, 1, remote=False)


def _of_client(client: object) -> Scheduler:
    from distributed import Client, LocalCluster

    if not isinstance(client, Client):
        raise RuntimeError(f"unknown scheduler {client!r}: use threads or a distributed.Client")
    try:
        threads = client.nthreads()
    except (OSError, CancelledError) as error:
        raise ClusterLost(
            f"the scheduler of {client!r} does not answer ({error}): connect a Client to one that "
            "does, and make the same call again"
        ) from error
    if not threads:
        raise RuntimeError(
            f"the cluster at {client.scheduler.address} has no workers: start some, or wait for "
            "them with client.wait_for_workers(1)"
        )
    in_process = isinstance(client.cluster, LocalCluster) and not client.cluster.processes
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [worker["memory_limit"] for worker in workers if worker.get("memory_limit")]
    return Scheduler(
        client.scheduler.address,
        len(threads),
        max(threads.values()),
        remote=not in_process,
        memory=min(limits, default=None),
    )
