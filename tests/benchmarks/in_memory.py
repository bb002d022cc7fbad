"""Seconds to scikit-learn's final error for a V in memory, beside scikit-learn's own.

Both begin at the same random start, of scikit-learn's kind, and use all cores. The library stops
after the first sweep whose error is at most scikit-learn's final one.
"""

import warnings
from functools import partial
from statistics import median

import numpy as np
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from dask_nmf import HALS, Result, factorize
from dask_nmf.oracle import error
from dask_nmf.types import Array
from tests.benchmarks.common import arguments, table, timed

M, N, RANK, SEEDS = 20_000, 2_000, 20, (0, 1, 2)
MOST_SWEEPS = 400  # the library's, if it does not get there


def uniform() -> Array:
    """A product of uniform factors, plus noise of 5 %."""
    rng = np.random.default_rng(0)
    V: Array = rng.random((M, RANK)) @ rng.random((RANK, N))
    return np.maximum(V * (1 + 0.05 * rng.standard_normal((M, N))), 0)


def counts() -> Array:
    """Poisson counts with skewed factors and many zeros, as of words or genes."""
    rng = np.random.default_rng(0)
    mean = rng.gamma(0.2, size=(M, RANK)) @ rng.gamma(0.3, size=(RANK, N))
    return rng.poisson(2 * mean).astype(np.float64)


def random_start(V: Array, seed: int) -> tuple[Array, Array]:
    """scikit-learn's init="random"."""
    rng, scale = np.random.default_rng(seed), np.sqrt(V.mean() / RANK)
    W, H = (scale * np.abs(rng.standard_normal(shape)) for shape in ((M, RANK), (RANK, N)))
    return W, H


def sklearn_nmf(V: Array, W: Array, H: Array, tol: float) -> tuple[float, int]:
    """Its relative error and number of iterations."""
    model = NMF(RANK, solver="cd", init="custom", max_iter=200, tol=tol)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        W = model.fit_transform(V, W=W.copy(), H=H.copy())
    return error(V, W, model.components_), int(model.n_iter_)


def library(V: Array, W: Array, H: Array, target: float) -> Result:
    return factorize(
        V,
        RANK,
        init=(W, H),
        solver=HALS(),
        tol=0,
        max_passes=MOST_SWEEPS,
        callback=lambda record: record.error <= target,
    )


def compare(V: Array, seed: int, tol: float, rounds: int) -> list[object]:
    """A row of the table: medians over the rounds, in which the two take turns."""
    W, H = random_start(V, seed)
    theirs, ours = [], []
    for _ in range(rounds):
        taken, (target, iterations) = timed(partial(sklearn_nmf, V, W, H, tol))
        theirs.append(taken)
        taken, result = timed(partial(library, V, W, H, target))
        ours.append(taken)
    ratio = median(our / their for our, their in zip(ours, theirs, strict=True))
    row = [median(theirs), iterations, f"{target:.6f}"]
    return [*row, median(ours), len(result.history), f"{result.error:.6f}", ratio]


def main() -> None:
    _, rounds = arguments(__doc__, rounds=3)
    rows = []
    for make in (uniform, counts):
        V = make()
        for tol in (1e-4, 0.0):
            for seed in SEEDS:
                label = f"{make.__name__}, tol={tol:g}, seed {seed}"
                rows.append([label, *compare(V, seed, tol, rounds)])
    scikit_learn, library_ = ("scikit-learn", "iterations", "error"), ("library", "sweeps", "error")
    table(
        f"Seconds to scikit-learn's final error: V {M} x {N} of float64 in memory, rank {RANK}",
        ["V, tol of scikit-learn, start", *scikit_learn, *library_, "library / scikit-learn"],
        rows,
    )


if __name__ == "__main__":
    main()
