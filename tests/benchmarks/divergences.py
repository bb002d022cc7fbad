"""Kullback-Leibler: reads of V to near the lowest loss known, beside scikit-learn's iterations.

`--cost` prints the seconds of a pass per million non-zeros instead, beside scikit-learn's;
`--masked` the error of hidden entries of a hyperspectral image.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.decomposition import non_negative_factorization

from dask_nmf import MU, Newton, SweepRecord, factorize, oracle
from dask_nmf.blas import one_blas_thread
from dask_nmf.divergences import Beta
from dask_nmf.entrywise import Problem, column_sums, improve_rows
from dask_nmf.terms import NO_TERMS
from dask_nmf.types import Array
from tests.benchmarks.common import table
from tests.benchmarks.sets import SETS

NAMES = ("bbc_news_counts k=20", "Poisson counts k=20", "digits k=16")
SOLVERS: dict[str, Any] = {"auto": "auto", "MU, 10 inner": MU(inner=10), "MU": MU()}
THEIRS = "scikit-learn MU, an iteration"
MOST = {"auto": 30, "MU, 10 inner": 60, "MU": 60}


def passes(seeds: int) -> None:
    rows = []
    for name in NAMES:
        V, rank = SETS[name].make(), SETS[name].rank
        X: Any = scipy.sparse.csr_array(V) if np.mean(V > 0) < 0.2 else V
        runs: dict[str, list[list[float]]] = {}
        for solver, given in SOLVERS.items():
            told: dict[str, Any] = {"solver": given, "loss": "kullback-leibler", "tol": 0}
            for seed in range(seeds):
                found = factorize(X, rank, max_passes=MOST[solver], seed=seed, **told)
                losses = [np.inf] + [record.objective or 0.0 for record in found.history]
                runs.setdefault(solver, []).append(losses)
        runs["scikit-learn MU"] = [_by_scikit_learn(X, rank, seed) for seed in range(seeds)]
        best = min(min(losses) for all_seeds in runs.values() for losses in all_seeds)
        for solver, all_seeds in runs.items():
            reads = [_median_reads(all_seeds, best * (1 + share)) for share in (0.05, 0.01, 0.001)]
            rows.append([f"{name}, {solver}", *reads])
    title = "reads of V to within so much of the lowest loss known, medians; -: not in 60"
    table(title, ["V, solver", "to 5 %", "1 %", "0.1 %"], rows)


def _median_reads(runs: list[list[float]], wanted: float) -> str:
    reads = [next((i + 1 for i, x in enumerate(run) if x <= wanted), np.inf) for run in runs]
    middle = median(reads)
    return "-" if middle == np.inf else f"{middle:.0f}"


def _by_scikit_learn(V: Any, rank: int, seed: int) -> list[float]:
    """The loss after 10, 20 .. iterations, each of which reads V twice."""
    W, H, losses = None, None, []
    dense = V.toarray() if scipy.sparse.issparse(V) else V
    told: dict[str, Any] = {"solver": "mu", "beta_loss": "kullback-leibler", "tol": 0}
    for _ in range(3):
        init = "random" if W is None else "custom"
        W, H, _ = non_negative_factorization(
            scipy.sparse.csr_matrix(V) if scipy.sparse.issparse(V) else V.astype(float),
            W,
            H,
            n_components=rank,
            init=init,
            max_iter=10,
            random_state=seed,
            **told,
        )
        losses += [np.inf] * 19 + [oracle.divergence(dense.astype(float), W @ H, 1.0)]
    return losses


def cost(rows: int = 20_000, columns: int = 20_000, rank: int = 20) -> None:
    """CPU seconds per million non-zeros of both half-steps, on one core, interleaved."""
    random = np.random.default_rng(0)
    indices = np.sort(random.integers(0, columns, (rows, 100)), axis=1).astype(np.int32)
    ends = np.arange(0, 100 * rows + 1, 100, dtype=np.int32)
    values = random.integers(1, 5, 100 * rows).astype(np.float32)
    V = scipy.sparse.csr_array((values, indices.ravel(), ends), shape=(rows, columns))
    V.sum_duplicates()
    W, H = random.random((rows, rank)), random.random((rank, columns))
    W_4, H_4 = W.astype(np.float32), H.astype(np.float32)
    told: dict[str, Any] = {"solver": "mu", "beta_loss": "kullback-leibler", "tol": 0}

    def ours(solver: Any) -> None:
        problem = Problem(Beta(1.0), solver, NO_TERMS, V.mean())
        column_sums(V, None, improve_rows(V, None, W, H, problem), H, problem)

    def theirs() -> None:
        V_m = scipy.sparse.csr_matrix(V)
        non_negative_factorization(
            V_m, W_4.copy(), H_4.copy(), n_components=rank, init="custom", max_iter=1, **told
        )

    seconds: dict[str, list[float]] = {}
    calls: dict[str, Callable[[], None]] = {
        "MU": lambda: ours(MU()),
        "MU, 10 inner": lambda: ours(MU(inner=10)),
        "Newton, 5 inner (auto)": lambda: ours(Newton()),
        THEIRS: theirs,
    }
    with one_blas_thread:
        for _ in range(3):
            for name, call in calls.items():
                began = time.process_time()
                call()
                seconds.setdefault(name, []).append(time.process_time() - began)
    base = median(seconds[THEIRS])
    table(
        "CPU seconds of a pass per million non-zeros",
        ["a pass", "seconds", "x scikit-learn"],
        [[name, median(s) / V.nnz * 1e6, median(s) / base] for name, s in seconds.items()],
    )


def masked() -> None:
    """30 % of an image's entries at random: told by the others, and by a fit of all."""
    V, rank = SETS["indian_pines k=16"].make(), 16
    there = np.random.default_rng(0).random(V.shape) < 0.7
    last: list[SweepRecord] = []
    hidden = factorize(V, rank, weights=there, tol=0, max_passes=15, callback=last.append)
    full = factorize(V, rank, tol=0, max_passes=15)

    def error(W: Array, H: Array) -> float:
        rest = (V - W @ H)[~there]
        return float(np.linalg.norm(rest) / np.linalg.norm(V[~there]))

    table(
        "indian_pines, 30 % hidden at random",
        ["fit of", "error", "of the hidden entries"],
        [
            ["70 %", f"{hidden.error:.5f}", f"{error(np.asarray(hidden.W), hidden.H):.5f}"],
            ["all", f"{full.error:.5f}", f"{error(np.asarray(full.W), full.H):.5f}"],
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--masked", action="store_true")
    asked = parser.parse_args()
    if asked.cost:
        cost()
    elif asked.masked:
        masked()
    else:
        passes(asked.seeds)


if __name__ == "__main__":
    main()
