"""Seconds per sweep on two threads, beside a hand-written loop and the usual dask code.

- **library**: a sweep of `factorize`, from one callback to the next.
- **hand loop**: the same reads and products with two threads and no dask.
- **bare read**: the library's own reads, each block dropped at once.
- **usual**: multiplicative updates as one writes them with dask arrays: one compute for W, one for
  H, one for the error. BLAS threads are as found; "usual, 1 BLAS" limits them to one.
- **close fit**: a sweep of the library that also takes the residual block by block, as it does
  where the error would be lost to cancellation.

V lies in the page cache: on a slower store all are nearer to the bare read. The library is kept
from holding blocks of V in memory, which it does where they fit: it reads all of V in each sweep.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.callbacks import Callback as DaskCallback
from threadpoolctl import threadpool_limits

from dask_nmf import HALS, MU, factorize, fitting
from dask_nmf.io import open_matrix
from dask_nmf.solvers import Solver
from dask_nmf.stream import sweep
from dask_nmf.types import Array, Callback, DaskArray
from tests.benchmarks.common import (
    CODECS,
    GRID,
    HEIGHTS,
    RANK,
    THREADS,
    HandLoop,
    Turns,
    arguments,
    big_matrix,
    in_turns,
    random_start,
    table,
)


class Usual:
    """The usual code: V is read three times per sweep."""

    def __init__(self, path: str, blas_threads: int | None) -> None:
        self.W, self.H = dask_start()
        self.path, self.blas_threads = path, blas_threads

    def sweep(self) -> None:
        V, W, H = da.from_zarr(self.path), self.W, self.H
        with threadpool_limits(self.blas_threads, user_api="blas"):
            W = W * (V @ H.T) / (W @ (H @ H.T))
            W = W.persist()
            H = H * (W.T @ V) / ((W.T @ W) @ H)
            H = H.compute()
            da.linalg.norm(V - W @ H).compute()
        self.W, self.H = W, H


class CloseFit:
    """The library's sweep with the residual."""

    def __init__(self, path: str, solver: Solver) -> None:
        self.W, self.H = dask_start()
        self.path, self.solver = path, solver

    def sweep(self) -> None:
        V = open_matrix(self.path).blocks(GRID)
        self.W, seen = sweep(V, self.W, self.H, self.solver, residual=True)
        made = seen.products
        H = self.solver.improve(self.H.T, made.WtV.T, made.WtW).T
        self.H = np.ascontiguousarray(H, dtype=np.float32)


def dask_start() -> tuple[DaskArray, Array]:
    W, H = random_start()
    return da.concatenate([da.from_array(W_b) for W_b in W]).persist(), H


def bare_read(path: str) -> None:
    V = open_matrix(path).blocks(GRID)
    V.map_blocks(_drop, chunks=(1, 1), dtype=V.dtype, meta=np.empty((0, 0), V.dtype)).compute()


def _drop(V_b: Array) -> Array:
    return V_b[:1, :1].copy()  # a view would keep the whole block in memory


def run(path: str, solver: Solver, callback: Callback) -> None:
    """The library, until the callback stops it."""
    factorize(path, RANK, solver=solver, tol=0, callback=callback)


def compare(path: str, solver: Solver, rounds: int) -> Turns:
    others: dict[str, Callable[[], object]] = {
        "hand loop": HandLoop(path, solver).sweep,
        "bare read": partial(bare_read, path),
        "close fit": CloseFit(path, solver).sweep,
    }
    if isinstance(solver, MU):
        others["usual"] = Usual(path, os.cpu_count()).sweep
        others["usual, 1 BLAS"] = Usual(path, 1).sweep
    return in_turns(partial(run, path, solver), others, rounds)


class TaskCount(DaskCallback):  # type: ignore[misc]
    """Counts the tasks that a scheduler of this process runs; values and aliases are none."""

    def __init__(self) -> None:
        super().__init__(pretask=self._count)
        self.tasks = 0

    def _count(self, key: Any, dsk: Any, state: Any) -> None:
        self.tasks += type(dsk[key]).__name__ not in ("DataNode", "Alias")


def tasks_per_block(path: str, *, residual: bool) -> float:
    """Tasks of one sweep of the library per block of V, with the trees of its sums."""
    V, (W, H) = open_matrix(path).blocks(GRID), dask_start()
    with TaskCount() as count:
        sweep(V, W, H, MU(), residual=residual)
    return int(count.tasks) / len(HEIGHTS)


def main() -> None:
    folder, rounds = arguments(__doc__, rounds=7)
    fitting._SPARE = 0  # nothing of V stays in memory
    contestants = ["bare read", "hand loop", "library", "close fit", "usual", "usual, 1 BLAS"]
    rows: list[list[object]] = []
    ratios: list[list[object]] = []
    with dask.config.set(scheduler="threads", num_workers=THREADS):
        for codec in CODECS:
            path = big_matrix(folder, codec)
            for solver in (MU(), HALS(inner=5)):
                turns, label = compare(path, solver, rounds), f"{codec}, {solver}"
                present = [name for name in contestants if name in turns.taken]
                seconds = {name: turns.seconds(name) for name in present}
                rows.append([label, *(seconds.get(name, "") for name in contestants)])
                others = {name: turns.ratio("library", name) for name in present}
                ratios.append([label, *(others.get(name, "") for name in contestants)])
        plain, close = (tasks_per_block(path, residual=residual) for residual in (False, True))
    table(
        f"Seconds per sweep: V of 1.6 GB in {len(HEIGHTS)} blocks, rank {RANK}, {THREADS} threads",
        ["V, solver", *contestants],
        rows,
    )
    table(
        "The library's seconds over the other's (aims: hand loop <= 1.10, usual <= 0.4)",
        ["V, solver", *contestants],
        ratios,
    )
    table(
        "Tasks per block and sweep (aim: <= 5)",
        ["", "tasks"],
        [["library", plain], ["close fit", close]],
    )


if __name__ == "__main__":
    main()
