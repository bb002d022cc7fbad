"""What it costs to keep a run: seconds per sweep without `out`, with it, and with commits.

V is that of the sweep's benchmark, 1.6 GB in the page cache, which is where a pass is fastest and a
commit weighs most. Whole runs take turns; a sweep's seconds are those from callback to callback.
"saving" is the part of the last kind that is spent between two passes: the commit, and deleting
what it makes needless. (With `out` W is written and read in any case, commits or not.)
"""

import shutil
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import dask

from dask_nmf import HALS, MU, LookAhead, SweepRecord, factorize, fitting
from dask_nmf.checkpoint import Run
from dask_nmf.solvers import Solver
from tests.benchmarks.common import CODECS, RANK, THREADS, arguments, big_matrix, table

SWEEPS = 6
KINDS: dict[str, dict[str, Any]] = {
    "no out": {},
    "out": {"checkpoint_every": 10**6},
    "out, each sweep committed": {"checkpoint_every": 1},
}


class Saving:
    """Adds up the seconds of `Run.save`."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        original = Run.save

        def save(run: Run, *args: Any, **kwargs: Any) -> None:
            began = time.perf_counter()
            original(run, *args, **kwargs)
            self.seconds.append(time.perf_counter() - began)

        Run.save = save  # type: ignore[method-assign,assignment]


def seconds_per_sweep(path: str, out: Path, solver: Solver, options: dict[str, Any]) -> float:
    at: list[float] = []

    def note(_: SweepRecord) -> None:
        at.append(time.perf_counter())

    where: dict[str, Any] = {"out": out} if options else {}
    factorize(
        path, RANK, solver=solver, tol=0, max_passes=SWEEPS + 1, callback=note, **where, **options
    )
    shutil.rmtree(out, ignore_errors=True)
    return median(b - a for a, b in pairwise(at))


def main() -> None:
    folder, rounds = arguments(__doc__, rounds=5)
    fitting._SPARE = 0  # nothing of V stays in memory
    saving = Saving()
    rows: list[list[object]] = []
    with dask.config.set(scheduler="threads", num_workers=THREADS):
        for codec in CODECS:
            path = big_matrix(folder, codec)
            solvers: tuple[Solver, ...] = (MU(), HALS(), LookAhead())
            for solver in solvers:
                taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
                spent: list[float] = []
                for _ in range(rounds):
                    for kind, options in KINDS.items():
                        saving.seconds.clear()
                        each = seconds_per_sweep(path, folder / "out.zarr", solver, options)
                        taken[kind].append(each)
                    spent += saving.seconds[1:]
                first, *_, last = taken
                ratios = [
                    median(b / a for a, b in zip(taken[first], taken[kind], strict=True))
                    for kind in list(KINDS)[1:]
                ]
                share = median(spent) / median(taken[last])
                rows.append([f"{codec}, {solver}", median(taken[first]), *ratios, share])
                print(*rows[-1], flush=True)
    table(
        "V of 1.6 GB, rank 32: seconds of a sweep without out, ratios to it (aim: saving <= 0.05)",
        ["V, solver", *KINDS, "saving / sweep"],
        rows,
    )


if __name__ == "__main__":
    main()
