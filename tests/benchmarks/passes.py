"""Passes over V to within 1 % and 0.1 % of the best error known, beside scikit-learn.

Eight sets, five seeds, random starts, V in zarr in ten row blocks, nothing of it kept in memory.
"Passes" are reads of V, the first one that checks it included. scikit-learn's coordinate descent
reads V twice per iteration; MiniBatchNMF once per epoch, and once at the end for W. Flops are those
of the products and the half-steps, as counted by their formulas. `--best` looks for better errors.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import zarr
from sklearn.decomposition import MiniBatchNMF
from sklearn.decomposition._nmf import _update_coordinate_descent

from dask_nmf import HALS, MU, SweepRecord, factorize, fitting
from dask_nmf.blas import one_blas_thread
from dask_nmf.blocks import Grid
from dask_nmf.descent import LowRank
from dask_nmf.firstpass import first_pass
from dask_nmf.geometry import sample_size, sketch_width
from dask_nmf.init import Random
from dask_nmf.io import open_matrix
from dask_nmf.solvers import LookAhead, Solver
from dask_nmf.types import Array
from tests.benchmarks.common import table
from tests.benchmarks.sets import SETS, Named

SEEDS = range(5)
MOST = {"auto": 16, "others": 60}
WITHIN = (0.01, 0.001)


@dataclass(frozen=True)
class Point:
    """Where a contestant is after so many reads of V."""

    passes: int
    error: float
    seconds: float
    flops: float


Trace = list[Point]


# -------------------------------------------------------------------------------- contestants
def library(solver: Solver) -> Callable[[str, Array, Named, int], Trace]:
    """A run of `factorize`."""

    def run(path: str, V: Array, named: Named, seed: int) -> Trace:
        (m, n), k = V.shape, named.rank
        ahead = isinstance(solver, LookAhead)
        steps = [0]
        trace: Trace = []

        def improve_W(self: LowRank, W: Array, H: Array) -> Array:
            steps[0] += 1
            return original(self, W, H)

        def note(record: SweepRecord) -> bool:
            passes, error, seconds = record.passes, record.error, record.seconds
            flops = (passes - 1) * (4 * m * n * k + 2 * solver.inner * (m + n) * k * k)
            if ahead:
                s, width = sample_size(m, k), sketch_width(n, k)
                flops += 4 * s * n * width
                flops += steps[0] * (50 * s + 20 * n) * k * k
            trace.append(Point(passes, error, seconds, flops))
            return error <= named.best * (1 + WITHIN[-1])

        original = LowRank.improve_W
        most = MOST["auto" if ahead else "others"]
        with warnings.catch_warnings(), patch.object(LowRank, "improve_W", improve_W):
            warnings.simplefilter("ignore")
            factorize(path, k, solver=solver, seed=seed, tol=0, max_passes=most, callback=note)
        return trace

    return run


def scikit_cd(path: str, V: Array, named: Named, seed: int) -> Trace:
    """scikit-learn's solver "cd", one iteration at a time, from the same start."""
    W, H = random_start(V, named.rank, seed)
    Ht, rng = np.ascontiguousarray(H.T), np.random.RandomState(0)
    (m, n), k = V.shape, named.rank
    trace: Trace = []
    began = time.perf_counter()
    X = np.asarray(zarr.open_array(path, mode="r")[:])
    seconds = time.perf_counter() - began
    for iteration in range(1, MOST["others"] // 2 + 1):
        began = time.perf_counter()
        _update_coordinate_descent(X, W, Ht, 0, 0, False, rng)
        _update_coordinate_descent(X.T, Ht, W, 0, 0, False, rng)
        seconds += time.perf_counter() - began
        flops = iteration * (4 * m * n * k + 2 * (m + n) * k * k)
        trace.append(Point(2 * iteration, error(V, W, Ht.T), seconds, flops))
        if trace[-1].error <= named.best * (1 + WITHIN[-1]):
            break
    return trace


def scikit_minibatch(path: str, V: Array, named: Named, seed: int) -> Trace:
    """MiniBatchNMF over row blocks, an epoch at a time; W is the best one for its H."""
    k, trace, seconds = named.rank, Trace(), 0.0
    (m, n), size = V.shape, 1024
    X = np.asarray(zarr.open_array(path, mode="r")[:])
    W, H = random_start(V, k, seed)
    model = MiniBatchNMF(k, init="custom", batch_size=size, random_state=seed)
    first = True
    for epoch in range(1, MOST["others"]):
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for start in range(0, m, size):
                batch = slice(start, start + size)
                if first:
                    model.partial_fit(X[batch], W=W[batch].copy(), H=H.copy())
                    first = False
                else:
                    model.partial_fit(X[batch])
        seconds += time.perf_counter() - began
        H_now = np.asarray(model.components_)
        best_W = LookAhead().improve(np.zeros((m, k)), V @ H_now.T, H_now @ H_now.T)
        flops = epoch * 6 * m * n * k
        trace.append(Point(epoch + 1, error(V, best_W, H_now), seconds, flops))
        if trace[-1].error <= named.best * (1 + WITHIN[-1]):
            break
    return trace


def random_start(V: Array, rank: int, seed: int) -> tuple[Array, Array]:
    """The library's."""
    X = open_matrix(V).blocks(Grid((len(V),), (V.shape[1],)))
    W, H = Random().factors(X, rank, first_pass(X).sums, seed)
    return np.array(W.compute()), np.array(H)


def error(V: Array, W: Array, H: Array) -> float:
    return float(np.linalg.norm(V - W @ H) / np.linalg.norm(V))


CONTESTANTS: dict[str, Callable[[str, Array, Named, int], Trace]] = {
    "auto": library(LookAhead()),
    "HALS 10": library(HALS(inner=10)),
    "HALS 1": library(HALS(inner=1)),
    "MU": library(MU()),
    "scikit-learn cd": scikit_cd,
    "MiniBatchNMF": scikit_minibatch,
}


# ------------------------------------------------------------------------------------- report
def reached(traces: list[Trace], best: float, share: float, what: str) -> float:
    """The median over seeds of passes, seconds or flops to within that share of the best error."""
    found = []
    for trace in traces:
        close = (point for point in trace if point.error <= best * (1 + share))
        point = next(close, None)
        found.append(np.inf if point is None else float(getattr(point, what)))
    return median(found)


def cells(traces: list[Trace], best: float) -> Iterator[str]:
    for share in WITHIN:
        yield _number(reached(traces, best, share, "passes"), "d")
    yield _number(reached(traces, best, WITHIN[0], "seconds"), ".2f")
    yield _number(reached(traces, best, WITHIN[0], "flops") / 1e9, ".1f")


def _number(value: float, form: str) -> str:
    return "-" if np.isinf(value) else format(int(value) if form == "d" else value, form)


def stored(folder: Path, name: str, V: Array) -> str:
    path = str(folder / f"{name.split(' k=')[0].replace(' ', '_')}.zarr")
    rows = -(-len(V) // 10)
    zarr.create_array(path, data=V, chunks=(rows, V.shape[1]), overwrite=True)
    return path


def look_for_better(path: str, named: Named) -> float:
    """The lowest error of long runs."""
    lowest = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for solver, seeds, most in ((LookAhead(), 10, 40), (HALS(inner=10), 3, 120)):
            for seed in range(seeds):
                result = factorize(
                    path, named.rank, solver=solver, seed=seed, tol=1e-9, max_passes=most
                )
                lowest = min(lowest, result.error)
    return lowest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--best", action="store_true", help="long runs, for the best error")
    parser.add_argument("--sets", nargs="*", default=list(SETS), help="some of the sets")
    parser.add_argument("--solvers", nargs="*", default=list(CONTESTANTS))
    chosen = parser.parse_args()
    fitting._SPARE = 0  # nothing of V stays in memory
    header = ["", "passes to 1 %", "to 0.1 %", "seconds to 1 %", "Gflop to 1 %"]
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.sets:
            named = SETS[name]
            V = named.make()
            path = stored(Path(folder), name, V)
            if chosen.best:
                print(f"{name}: {look_for_better(path, named):.8f}", flush=True)
                continue
            rows = []
            for label in chosen.solvers:
                with one_blas_thread:
                    traces = [CONTESTANTS[label](path, V, named, seed) for seed in SEEDS]
                rows.append([label, *cells(traces, named.best)])
                print(f"{name}: {label}", file=sys.stderr, flush=True)
            table(f"{name}, {V.shape[0]} x {V.shape[1]}, best {named.best:.6f}", header, rows)


if __name__ == "__main__":
    main()
