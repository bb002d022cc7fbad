"""Seconds of a pass over a sparse V per million entries, beside scikit-learn's iterations.

V has 100 entries in each row of 20,000 columns, float32, as a CSR group of blosc-lz4 chunks; rank
20. scikit-learn has it in memory. Contestants take turns; medians. "From disk" is from the page
cache, with nothing of V kept. Then the peak memory of each, measured in a process of its own.
"""

import argparse
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import dask
import numpy as np
import scipy.sparse
import zarr
from sklearn.decomposition import non_negative_factorization

from dask_nmf import HALS, factorize
from dask_nmf.blas import one_blas_thread
from dask_nmf.io import open_matrix
from dask_nmf.types import Array
from tests.benchmarks.common import CODECS, table
from tests.benchmarks.memory import measure

N, PER_ROW, RANK = 20_000, 100, 20
CHUNK = 2**20  # entries
SWEEPS = 4
BLOCKS = 20  # as many for each thread
SOLVERS: dict[str, dict[str, Any]] = {
    "frobenius": {"mu": "mu", "hals": "hals", "hals, 1 inner": HALS(inner=1)},
    "kullback-leibler": {"mu": "mu", "newton": "newton"},
}


def make(folder: Path, rows: int) -> str:
    """The path of V, made row slab by row slab unless it is there already."""
    path = folder / f"sparse-{rows}.zarr"
    if not path.exists():
        print(f"making {path}", flush=True)
        made = path.with_suffix(".part")
        group = zarr.open_group(made, mode="w")
        told: Any = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [rows, N]}
        group.attrs.update(told)
        form: dict[str, Any] = {"chunks": (CHUNK,), "compressors": CODECS["blosc-lz4"]}
        nnz, slab = rows * PER_ROW, CHUNK
        data = group.create_array("data", shape=(nnz,), dtype="f4", **form)
        indices = group.create_array("indices", shape=(nnz,), dtype="i4", **form)
        group.create_array("indptr", data=np.arange(rows + 1) * PER_ROW, **form)
        for start in range(0, nnz, slab):
            stop = min(start + slab, nnz)
            random = np.random.default_rng(start)
            # One entry in each stripe of columns: sorted, and none twice.
            stripe = np.arange(start, stop) % PER_ROW * (N // PER_ROW)
            indices[start:stop] = stripe + random.integers(0, N // PER_ROW, stop - start)
            data[start:stop] = 1 + random.poisson(2, stop - start)
        made.rename(path)
    return str(path)


def in_memory(path: str) -> Any:
    group: Any = zarr.open_group(path, mode="r")
    parts = group["data"][:], group["indices"][:], group["indptr"][:].astype("i4")
    return scipy.sparse.csr_matrix(parts, shape=group.attrs["shape"])


def start(rows: int) -> tuple[Array, Array]:
    random = np.random.default_rng(0)
    return random.random((rows, RANK), np.float32), random.random((RANK, N), np.float32)


# -------------------------------------------------------------------------------- contestants
Times = tuple[float, float]
"""Seconds that passed, and of the processor: those hardly depend on what else is at work."""


def now() -> Times:
    return time.perf_counter(), time.process_time()


def per_pass(begin: Times, end: Times, passes: int) -> Times:
    return (end[0] - begin[0]) / passes, (end[1] - begin[1]) / passes


def library(V: Any, solver: Any, threads: int, loss: str, *, kept: bool) -> Callable[[], Times]:
    """A sweep, from the second one on."""

    def run() -> Times:
        marks: list[Times] = []
        spare = patch("dask_nmf.fitting._SPARE", 0.9 if kept else 0)
        with spare, dask.config.set(scheduler="threads", num_workers=threads):
            options: dict[str, Any] = {"tol": 0, "max_passes": 1 + SWEEPS, "init": factors}
            options |= {"solver": solver, "loss": loss, "block_rows": factors[0].shape[0] // BLOCKS}
            factorize(V, RANK, callback=lambda _: marks.append(now()), **options)
        return per_pass(marks[0], marks[-1], len(marks) - 1)

    factors = start(open_matrix(V).shape[0])
    return run


def scikit(X: Any, solver: str, threads: int, loss: str) -> Callable[[], Times]:
    """An iteration: of those that three take more than one."""

    def run() -> Times:
        spent: list[Times] = []
        for iterations in (1, 3):
            options: dict[str, Any] = {"tol": 0, "max_iter": iterations, "beta_loss": loss}
            options |= {"n_components": RANK, "init": "custom", "solver": solver}
            W, H = start(X.shape[0])
            with one_blas_thread if threads == 1 else nullcontext():
                began = now()
                non_negative_factorization(X, W, H, **options)
                spent.append(per_pass(began, now(), 1))
        return per_pass(spent[0], spent[1], 2)

    return run


def contestants(path: str, loss: str) -> dict[str, Callable[[], Times]]:
    found: dict[str, Callable[[], Times]] = {}
    X = in_memory(path)
    for threads in (1, 2):
        for told, given in SOLVERS[loss].items():
            name = f"dask_nmf {told}, {threads} thread(s)"
            found[f"{name}, from disk"] = library(path, given, threads, loss, kept=False)
            found[f"{name}, kept"] = library(path, given, threads, loss, kept=True)
            found[f"{name}, scipy"] = library(X, given, threads, loss, kept=True)
        for solver in ("mu", "cd") if loss == "frobenius" else ("mu",):
            name = f"scikit-learn {solver}, {threads} BLAS thread(s)"
            found[name] = scikit(X, solver, threads, loss)
    return found


def speeds(path: str, rows: int, rounds: int, loss: str, only: str) -> None:
    taken: dict[str, list[Times]] = {}
    runs = {name: run for name, run in contestants(path, loss).items() if re.search(only, name)}
    for _ in range(rounds):
        for name, run in runs.items():
            taken.setdefault(name, []).append(run())
            print(name, *taken[name][-1], file=sys.stderr, flush=True)
    millions = rows * PER_ROW / 1e6
    found = []
    for name, times in taken.items():
        seconds, cpu = (median(column) for column in zip(*times, strict=True))
        found.append([name, seconds, 1e3 * seconds / millions, 1e3 * cpu / millions])
    title = f"{loss}: a pass over {rows:,} x {N:,} with {millions:,.0f} million entries"
    table(title, ["", "seconds", "ms per million", "of the processor"], found)


# ------------------------------------------------------------------------------------- memory
def peaks(path: str, folder: Path, loss: str) -> None:
    rows = []
    out = {"out": str(folder / "sparse-out.zarr"), "overwrite": True}
    settings: list[tuple[int, str | None, dict[str, Any]]] = [
        (1, None, {}),
        (2, None, {}),
        (2, "1GB", {}),
        (2, "1GB", out),
        (2, "500MB", out),
    ]
    for threads, memory, more in settings:
        for solver in ("hals", "auto") if loss == "frobenius" else SOLVERS[loss]:
            run = {"threads": threads, "memory": memory, "solver": solver, "loss": loss, **more}
            found = measure(V=path, rank=RANK, **run)
            predicted, measured = found["predicted"] / 1e6, found["measured"] / 1e6
            label = f"{solver}, {threads} thread(s), memory={memory}" + (", out" if more else "")
            block = "{:,} x {:,}".format(*found["plan"]["block"])
            rows.append([label, block, predicted, measured, predicted / measured])
    header = ["", "block", "predicted", "measured", "ratio"]
    table("Peak memory of a process in MB", header, rows)


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(tempfile.gettempdir()) / "dask_nmf_benchmarks"
    parser.add_argument("--folder", type=Path, default=default, help="of the data (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (%(default)s)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of V (%(default)s)")
    parser.add_argument("--only", default="", help="speeds of contestants that match this")
    parser.add_argument("--memory", action="store_true", help="the peak memory only")
    parser.add_argument("--loss", choices=SOLVERS, default="frobenius")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    path = make(chosen.folder, chosen.rows)
    if not chosen.memory:
        speeds(path, chosen.rows, chosen.rounds, chosen.loss, chosen.only)
    if not chosen.only:
        peaks(path, chosen.folder, chosen.loss)


if __name__ == "__main__":
    main()
