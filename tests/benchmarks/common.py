"""What the benchmarks share: the big V, the loop to compare with, fair timing, tables."""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from dask_nmf import SweepRecord
from dask_nmf.blas import one_blas_thread
from dask_nmf.blocks import Grid
from dask_nmf.solvers import Solver
from dask_nmf.types import Array, Callback

T = TypeVar("T")

M, N, RANK, BLOCK_ROWS = 200_000, 2_000, 32, 5_000  # V is 1.6 GB of float32, in 40 blocks
HEIGHTS = (BLOCK_ROWS,) * (M // BLOCK_ROWS)
GRID = Grid(HEIGHTS, (N,))
THREADS = 2
CODECS = {"uncompressed": None, "blosc-lz4": BloscCodec(cname="lz4", shuffle="shuffle")}


# ---------------------------------------------------------------------------------- the data
def big_matrix(folder: Path, codec: str, rows: int = M) -> str:
    """The path of V = W @ H + noise, made block by block unless it is there already.

    The noise is 20 % of V: no pass takes the residual, which closer fits need.
    """
    path = str(folder / (f"{codec}.zarr" if rows == M else f"{codec}-{rows}.zarr"))
    if not _complete(path):
        print(f"making {path}", flush=True)
        rng = np.random.default_rng(0)
        V = zarr.create_array(
            path,
            shape=(rows, N),
            chunks=(BLOCK_ROWS, N),
            dtype=np.float32,
            compressors=CODECS[codec],
            overwrite=True,
        )
        H = rng.random((RANK, N), np.float32)
        for start in range(0, rows, BLOCK_ROWS):
            W_b = rng.random((BLOCK_ROWS, RANK), np.float32)
            noise = rng.random((BLOCK_ROWS, N), np.float32)
            V[start : start + BLOCK_ROWS] = W_b @ H + 8 * noise
        V.attrs["complete"] = True
    return path


def _complete(path: str) -> bool:
    try:
        return bool(zarr.open_array(path, mode="r").attrs.get("complete", False))
    except FileNotFoundError:
        return False


def random_start() -> tuple[list[Array], Array]:
    """W0 in row blocks, and H0."""
    rng = np.random.default_rng(1)
    W = [rng.random((height, RANK), np.float32) for height in HEIGHTS]
    return W, rng.random((RANK, N), np.float32)


# ------------------------------------------------------------------------------- the hand loop
class HandLoop:
    """The reads and products of a sweep with threads alone: what a sweep must at least cost.

    It works as `factorize` does (products in V's dtype, sums and half-steps in float64, the same
    solver), but has no dask, no checks and no way to run anywhere else.
    """

    def __init__(self, path: str, solver: Solver) -> None:
        self.V: Any = zarr.open_array(path, mode="r")
        self.W, self.H = random_start()
        self.solver = solver

    def sweep(self) -> None:
        Ht = np.ascontiguousarray(self.H.T)
        HHt = Ht.astype(np.float64).T @ Ht.astype(np.float64)

        def visit(b: int) -> tuple[Array, Array]:
            V_b = self.V[b * BLOCK_ROWS : (b + 1) * BLOCK_ROWS]
            W_b = self.solver.improve(self.W[b], V_b @ Ht, HHt)
            self.W[b] = W_b.astype(np.float32)
            return self.W[b].T @ V_b, W_b.T @ W_b

        WtV, WtW = np.zeros((RANK, N)), np.zeros((RANK, RANK))
        with one_blas_thread, ThreadPoolExecutor(THREADS) as pool:
            for WtV_b, WtW_b in pool.map(visit, range(len(HEIGHTS))):
                WtV += WtV_b
                WtW += WtW_b
        self.H = self.solver.improve(self.H.T, WtV.T, WtW).T.astype(np.float32)


# ---------------------------------------------------------------------------------- the timing
def timed(call: Callable[[], T]) -> tuple[float, T]:
    """The seconds that the call took, and its result."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


@dataclass(frozen=True)
class Turns:
    """Seconds of each contestant, in the order of its turns."""

    taken: dict[str, list[float]]

    def seconds(self, name: str) -> float:
        return median(self.taken[name])

    def ratio(self, name: str, other: str) -> float:
        """The median of the ratios within a round: it does not see the machine's speed drift."""
        pairs = zip(self.taken[name], self.taken[other], strict=True)
        return median(mine / theirs for mine, theirs in pairs)


def in_turns(
    library: Callable[[Callback], object], others: dict[str, Callable[[], object]], rounds: int
) -> Turns:
    """Take the time of a sweep of `library`, then of a call of each of the others, and again.

    The others run inside the callback of `factorize`, which `library` passes on. The first round,
    in which everything is still cold, does not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in ("library", *others)}
    resumed = time.perf_counter()

    def between(record: SweepRecord) -> bool:
        nonlocal resumed
        taken["library"].append(time.perf_counter() - resumed)
        for name, call in others.items():
            taken[name].append(timed(call)[0])
        resumed = time.perf_counter()
        return record.sweep > rounds

    library(between)
    return Turns({name: times[1:] for name, times in taken.items()})


# ---------------------------------------------------------------------------------- the report
def arguments(doc: str | None, *, rounds: int) -> tuple[Path, int]:
    """The folder for the data and the number of rounds, from the command line."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    default = Path(tempfile.gettempdir()) / "dask_nmf_benchmarks"
    parser.add_argument("--folder", type=Path, default=default, help="of the data (%(default)s)")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each (%(default)s)")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    return chosen.folder, chosen.rounds


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under a header, numbers with three digits or so."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(f"\n{title}\n")
    for row in cells:
        aligned = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        print("  ".join([row[0].ljust(widths[0]), *aligned]))
    print(flush=True)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
