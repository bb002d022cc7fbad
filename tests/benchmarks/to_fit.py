"""Seconds to within 1 % of the best error, V on a disk, of "auto", HALS and dask MU.

V is the float32 matrix of the sweep's benchmark, 1.6 GB (10 GB with `--rows 1250000`), in zarr.
Before each sweep its files are dropped from the page cache, for all alike: a V larger than memory
is not there either. "dask MU" is the usual code (see the sweep's benchmark): the seconds of a few
of its sweeps, times the sweeps that multiplicative updates need, counted with the library's (they
are the same). The best error is that of 12 passes of "auto" (`--passes`).
"""

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import dask

from dask_nmf import HALS, MU, SweepRecord, factorize, fitting
from dask_nmf.solvers import LookAhead, Solver
from tests.benchmarks.common import CODECS, RANK, THREADS, M, big_matrix, table, timed
from tests.benchmarks.sweep import Usual

WITHIN = 0.01


def evict(path: str) -> None:
    """Drop the files from the page cache; mapped pages of a finished pass go with them."""
    for file in Path(path).rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def run(path: str, solver: Solver, target: float, most: int) -> SweepRecord:
    """The record of the first sweep at the target, or of the last one; evicting is not counted."""
    spent = 0.0
    last: list[SweepRecord] = []

    def note(record: SweepRecord) -> bool:
        nonlocal spent
        began = time.perf_counter()
        last[:] = [SweepRecord(**vars(record) | {"seconds": record.seconds - spent})]
        evict(path)
        spent += time.perf_counter() - began
        return record.error <= target

    evict(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        factorize(path, RANK, solver=solver, tol=0, max_passes=most, callback=note)
    return last[0]


def usual_seconds(path: str, sweeps: int = 3) -> float:
    usual = Usual(path, os.cpu_count())
    seconds = []
    for _ in range(sweeps):
        evict(path)
        seconds.append(timed(usual.sweep)[0])
    return median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(tempfile.gettempdir()) / "dask_nmf_benchmarks"
    parser.add_argument("--folder", type=Path, default=default, help="of the data (%(default)s)")
    parser.add_argument("--rows", type=int, default=M)
    parser.add_argument("--codec", choices=CODECS, default="uncompressed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--best", type=float, help="the best error, if it is known")
    parser.add_argument("--no-usual", action="store_true", help="leave out the dask MU")
    parser.add_argument("--passes", type=int, default=12, help="of auto, for the best error")
    parser.add_argument("--only", nargs="*", help="some of the solvers")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    fitting._SPARE = 0  # nothing of V stays in memory
    path = big_matrix(chosen.folder, chosen.codec, chosen.rows)
    with dask.config.set(scheduler="threads", num_workers=THREADS):
        best = chosen.best or run(path, LookAhead(), 0.0, chosen.passes).error
        target = best * (1 + WITHIN)
        solvers: dict[str, Solver] = {
            "auto": LookAhead(),
            "HALS(inner=5)": HALS(),
            "HALS(inner=1)": HALS(inner=1),
        }
        solvers = {name: solvers[name] for name in chosen.only or solvers}
        found: dict[str, list[SweepRecord]] = {name: [] for name in solvers}
        for _ in range(chosen.rounds):
            for name, solver in solvers.items():
                found[name].append(run(path, solver, target, 150))
        ours = median(record.seconds for record in found["auto"])
        rows: list[list[object]] = []
        for name, records in found.items():
            seconds = median(record.seconds for record in records)
            reached = "" if records[0].error <= target else " (not reached)"
            rows.append([name + reached, records[0].passes, seconds, seconds / ours])
        if not chosen.no_usual:
            sweeps = run(path, MU(), target, 600).sweep
            seconds = sweeps * usual_seconds(path)
            rows.append(["dask MU, W and H and error", 3 * sweeps, seconds, seconds / ours])
    table(
        f"To within 1 % of {best:.6f}: V of {chosen.rows} x 2000, {chosen.codec}, from disk",
        ["", "reads of V", "seconds", "x auto"],
        rows,
    )


if __name__ == "__main__":
    main()
