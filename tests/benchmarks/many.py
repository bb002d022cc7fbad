"""Many runs from one read: restarts of one rank on a big V, and a thousand fits of a small one.

`--big`: 20 restarts of rank 20 beside one, as wall time, on the float32 matrix of the sweep's
benchmark (1.6 GB), from the page cache, from blosc-lz4, and from a store of so many MB/s (as an
object store or a shared disk has); both stop after the same passes. Peak memory is that of a
process of its own.

`--small DATA`: `indian_pines.npz` or `bbc_news_counts.npz`, k = 5 to 14, 100 restarts, beside the
same number of fits by scikit-learn, extrapolated from two per rank, as it comes (`tol`, 200
iterations); and for some ranks with as many iterations as take it to within 1 % of the median error
here.
"""

import argparse
import asyncio
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import zarr
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning as Unconverged
from zarr.storage import LocalStore, WrapperStore

import dask_nmf
from dask_nmf import fitting
from tests.benchmarks.common import big_matrix, table

RANK, RESTARTS, PASSES = 20, 20, 4
RANKS = range(5, 15)
MOST_ITERATIONS = 3200


class Throttled(WrapperStore[LocalStore]):
    """A store of so many MB/s, for all that read at once."""

    def __init__(self, store: LocalStore, rate: float) -> None:
        super().__init__(store)
        self._rate, self._free = rate * 1e6, 0.0

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        found = await super().get(*args, **kwargs)
        if found is not None:
            now = time.monotonic()
            self._free = max(self._free, now) + len(found) / self._rate
            await asyncio.sleep(self._free - now)
        return found


def one_of_big(path: str, rate: float, restarts: int) -> None:
    """In a process of its own: prints seconds, passes, and bytes at most."""
    V: Any = path
    if rate:
        V = zarr.open_array(Throttled(LocalStore(path, read_only=True), rate), mode="r")
    dask_nmf.factorize(np.ones((50, 4)), 2)  # what is loaded once
    fitting._SPARE = 0.0  # nothing of V is kept, as of one that is larger than memory
    began = time.perf_counter()
    warnings.simplefilter("ignore")
    dask_nmf.factorize(V, RANK, restarts=restarts, max_passes=PASSES, tol=0, memory="6GB")
    seconds = time.perf_counter() - began
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def big(folder: Path, rates: list[float], rounds: int) -> None:
    rows = []
    kinds = [("uncompressed", 0.0), ("blosc-lz4", 0.0), *(("uncompressed", r) for r in rates)]
    for codec, rate in kinds:
        path = big_matrix(folder, codec)
        told: dict[int, list[list[float]]] = {}
        for _ in range(rounds):
            for restarts in (1, RESTARTS):
                code = f"from tests.benchmarks.many import one_of_big as f; f({path!r}, {rate}, "
                done = subprocess.run(
                    [sys.executable, "-c", f"{code}{restarts})"],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                told.setdefault(restarts, []).append([float(x) for x in done.stdout.split()])
        one, many = (np.median(told[r], axis=0) for r in (1, RESTARTS))
        where = f"{codec}, {rate:.0f} MB/s" if rate else f"{codec}, page cache"
        peaks = [f"{x[1] / 2**20:,.0f}" for x in (one, many)]
        rows.append([where, f"{one[0]:.1f}", f"{many[0]:.1f}", f"{many[0] / one[0]:.2f}", *peaks])
        print(rows[-1], flush=True)
    heads = [
        "V from",
        "1 run, s",
        f"{RESTARTS} runs, s",
        "ratio",
        "peak MiB of 1",
        f"of {RESTARTS}",
    ]
    table("restarts of one rank", heads, rows)


def small(data: Path, loss: str, restarts: int, until: list[int]) -> None:
    saved = np.load(data)
    if "cube" in saved:
        V: Any = saved["cube"].reshape(-1, saved["cube"].shape[2])
    else:
        parts = saved["data"], saved["indices"], saved["indptr"]
        V = scipy.sparse.csr_array(parts, shape=saved["shape"])
    began = time.perf_counter()
    found = dask_nmf.scan(V, RANKS, restarts=restarts, loss=loss)
    ours = time.perf_counter() - began
    fits = len(RANKS) * restarts
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{data.stem}, {loss}: {fits} fits in {ours:.0f} s, peak {peak:,.0f} MiB", flush=True)
    X = scipy.sparse.csr_matrix(V, dtype=float) if scipy.sparse.issparse(V) else V.astype(float)
    how: dict[str, Any] = {"init": "random", "beta_loss": loss}
    how["solver"] = "cd" if loss == "frobenius" else "mu"
    rows, theirs = [], 0.0
    for rank in RANKS:
        median = float(np.median([result.error for result in found.results[rank]]))
        usual = [_fit(X, NMF(rank, random_state=seed, **how), loss) for seed in range(2)]
        theirs += restarts * sum(seconds for seconds, _, _ in usual) / 2
        told = [f"{np.mean([x[i] for x in usual]):.4g}" for i in range(2)]
        more = ["", ""]
        if rank in until:
            seconds, error, iterations = _until(X, rank, how, loss, median * 1.01)
            more = [f"{seconds:.1f}", f"{iterations} ({error:.4f})"]
        rows.append([rank, f"{median:.4f}", *told[::-1], *more])
        print(rows[-1], flush=True)
    heads = ["k", "error", "its error", "its s", "s to within 1 % of ours", "iterations"]
    table(data.stem, heads, rows)
    print(f"scikit-learn, {fits} fits as they come: {theirs:.0f} s, {theirs / ours:.1f} x")


def _fit(X: Any, model: NMF, loss: str) -> tuple[float, float, int]:
    """Seconds, error as it is measured here, iterations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Unconverged)
        began = time.perf_counter()
        model.fit(X)
        seconds = time.perf_counter() - began
    error = float(model.reconstruction_err_)
    if loss == "frobenius":
        squares = (X.data if scipy.sparse.issparse(X) else X) ** 2
        return seconds, error / float(np.sqrt(squares.sum())), model.n_iter_
    mean = X.sum() / np.prod(X.shape)
    own = float((X.data * np.log(X.data / mean)).sum())  # of V's mean as a constant
    return seconds, error**2 / 2 / own, model.n_iter_


def _until(X: Any, rank: int, how: Any, loss: str, wanted: float) -> tuple[float, float, int]:
    """The same with four times the iterations until the error is reached, or they are too many."""
    iterations = 50
    while True:
        model = NMF(rank, random_state=0, tol=0, max_iter=iterations, **how)
        fitted = _fit(X, model, loss)
        if fitted[1] <= wanted or iterations >= MOST_ITERATIONS:
            return fitted
        iterations *= 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--big", action="store_true")
    parser.add_argument("--folder", type=Path, default=tempfile.gettempdir())
    parser.add_argument("--rates", type=float, nargs="*", default=[100.0], help="MB/s")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--small", type=Path, help="the .npz")
    parser.add_argument("--until", type=int, nargs="*", default=[5, 14], help="ranks")
    parser.add_argument("--loss", default="frobenius")
    parser.add_argument("--restarts", type=int, default=100)
    options = parser.parse_args()
    if options.big:
        folder = options.folder / "dask_nmf_benchmarks"
        folder.mkdir(exist_ok=True)
        big(folder, options.rates, options.rounds)
    if options.small:
        small(options.small, options.loss, options.restarts, options.until)


if __name__ == "__main__":
    main()
