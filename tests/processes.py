"""Real processes that can be killed, stopped and replaced: a scheduler, its workers, drivers.

They are forked from a server that has everything imported, so that a new one takes a tenth of a
second.
"""

import asyncio
import ctypes
import hashlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Scheduler, Worker

from dask_nmf import driver, fitting
from dask_nmf.blocks import Grid
from dask_nmf.errors import RunStopped
from dask_nmf.result import Result

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.processes", "tests.conftest", "zarr.testing"])

CONFIG: dict[str, Any] = {
    "distributed.scheduler.worker-ttl": "3s",  # it takes 5 s, 10 heartbeats, at least
    "distributed.comm.timeouts.connect": "5s",
    "distributed.deploy.lost-worker-timeout": "1s",
    "dask_nmf.patience": 10,
}


# ------------------------------------------------------------------------- what the processes do
def _settle(log: Path, config: dict[str, Any]) -> None:
    """What is printed goes to a file; configured as all of them are; gone when the tests are."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
    if sys.platform == "linux":  # killed when its parent ends, which ends with the tests
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    dask.config.set(CONFIG | config)
    warnings.resetwarnings()


def schedule(log: Path, config: dict[str, Any], tell: Connection) -> None:
    """A scheduler, which says where it listens."""
    _settle(log, config)

    async def run() -> None:
        async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
            tell.send(scheduler.address)
            await scheduler.finished()

    asyncio.run(run())


def work(log: Path, config: dict[str, Any], address: str, folder: Path) -> None:
    """A worker of one thread; SIGTERM closes it, as it does those of dask's command line."""
    _settle(log, config)

    async def run() -> None:
        worker = Worker(
            address, nthreads=1, memory_limit="2GiB", local_directory=folder, dashboard=False
        )
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGTERM, lambda: asyncio.ensure_future(worker.close(timeout=2))
        )
        async with worker:
            await worker.finished()

    asyncio.run(run())


@dataclass(frozen=True)
class Call:
    """A call of `factorize`: on a small V in blocks that its driver does not choose.

    V : path or zarr array. kept : whether blocks of V may stay in the workers' memory. config : of
    dask, in the driver.
    """

    V: Any
    rank: int
    grid: Grid
    options: dict[str, Any]
    out: Any = None
    kept: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    def make(self) -> Result:
        if not self.kept:
            vars(fitting)["_SPARE"] = 0
        vars(fitting)["choose_grid"] = lambda *_: self.grid
        dask.config.set(self.config)
        return driver.factorize(self.V, self.rank, out=self.out, **self.options)


@dataclass(frozen=True)
class Outcome:
    """What came of a call: a digest of its result, or an error's type and text.

    stopped : whether it is a `RunStopped`. where : functions of the package that it went through.
    """

    digest: str = ""
    resumed_from: int | None = None
    error: str = ""
    text: str = ""
    stopped: bool = False
    where: tuple[str, ...] = ()


def drive(log: Path, config: dict[str, Any], tell: Connection, address: str, call: Call) -> None:
    """Make the call, on that scheduler or (for "") in sequence, and tell what came of it."""
    _settle(log, config)
    try:
        if address:
            Client(address, timeout=10).wait_for_workers(1, timeout=20)
        else:
            dask.config.set(scheduler="synchronous")
        result = call.make()
        outcome = Outcome(digest(result), result.resumed_from)
    except BaseException as error:
        with suppress(OSError):  # on a full disk
            traceback.print_exc()
        frames = traceback.extract_tb(error.__traceback__)
        where = tuple(frame.name for frame in frames if "dask_nmf/" in frame.filename)
        stopped, name = isinstance(error, RunStopped), type(error).__name__
        outcome = Outcome("", None, name, str(error), stopped, where)
    tell.send(outcome)
    os._exit(0)


def digest(result: Result) -> str:
    """Of all that a run decides: not of the time it took, and of what was read again."""
    sha = hashlib.sha256()
    with dask.config.set(scheduler="synchronous"):
        for factor in (result.W, result.H):
            sha.update(factor.compute().tobytes() if hasattr(factor, "compute") else factor)
    for record in result.history:
        sha.update(repr((record.sweep, record.passes, record.error, record.kkt)).encode())
    return sha.hexdigest()[:16]


# ------------------------------------------------------------------------------ from the outside
@dataclass
class Process:
    """One of them; what it tells comes through a pipe."""

    role: str
    process: BaseProcess
    ear: Connection | None = None
    stopped: bool = False

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def send(self, number: int) -> None:
        """A signal, unless it has ended."""
        if self.alive and self.process.pid:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)
        if number in (signal.SIGSTOP, signal.SIGCONT):
            self.stopped = number == signal.SIGSTOP

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.process.join(10)

    def heard(self) -> bool:
        """Whether it has told something, or ended."""
        return self.ear is not None and self.ear.poll()

    def told(self, seconds: float = 0.0) -> Any:
        """What it has told; None if nothing, and it never will if it has ended."""
        assert self.ear is not None
        try:
            return self.ear.recv() if self.ear.poll(seconds) else None
        except (EOFError, ConnectionError):
            return None


@dataclass
class Processes:
    """A scheduler, workers and drivers, with their logs and spilled memory in a folder.

    config : of dask, in all of them, beside `CONFIG`.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    address: str = ""
    scheduler: Process | None = None
    workers: list[Process] = field(default_factory=list)
    others: list[Process] = field(default_factory=list)
    _number: int = 0

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self, workers: int) -> None:
        """A new scheduler with workers; what was there before is left to itself."""
        self.others, self.workers = self.all, []
        self.scheduler = self._start(schedule, tells=True)
        self.address = self.scheduler.told(30)
        for _ in range(workers):
            self.add_worker()

    def add_worker(self) -> Process:
        self.workers.append(self._start(work, self.address, self.folder / "spill"))
        return self.workers[-1]

    def drive(self, call: Call, address: str | None = None) -> Process:
        """A driver that makes the call, on this cluster or another ("" is in sequence)."""
        self.others.append(
            self._start(drive, self.address if address is None else address, call, tells=True)
        )
        return self.others[-1]

    def _start(self, role: Callable[..., None], *args: Any, tells: bool = False) -> Process:
        self._number += 1
        log = self.folder / f"{self._number:03d}-{role.__name__}.log"
        ear, mouth = CONTEXT.Pipe(duplex=False) if tells else (None, None)
        parts = (mouth, *args) if mouth else args
        process = CONTEXT.Process(target=role, args=(log, self.config, *parts), daemon=True)
        process.start()
        if mouth:
            mouth.close()
        return Process(role.__name__, process, ear)

    @property
    def all(self) -> list[Process]:
        return [*([self.scheduler] if self.scheduler else []), *self.workers, *self.others]

    def end(self) -> None:
        """All are gone after this, the stopped ones too."""
        found = self.all
        for one in found:
            one.send(signal.SIGKILL)
        for one in found:
            one.process.join(10)
            if one.alive:
                raise RuntimeError(f"{one.role} {one.process.pid} could not be killed")
            if one.ear:
                one.ear.close()
        self.workers, self.others, self.scheduler = [], [], None


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something that must happen: a hard limit."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.02)
