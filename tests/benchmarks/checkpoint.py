"""What it costs to keep a run: seconds per sweep without `out`, with it, and committing each.

V is that of the sweep's benchmark, 1.6 GB in the page cache, which is where a pass is fastest and a
commit weighs most. Whole runs take turns; a sweep's seconds are the mean from the first callback to
the last, so that sweeps with and without a commit count. "W on disk" is what it costs where W has
no room in memory, without any commit. "saving" is the share of commits in a sweep with `out`.
"""

import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import dask

from dask_nmf import HALS, MU, LookAhead, SweepRecord, factorize
from dask_nmf.checkpoint import Run
from dask_nmf.solvers import Solver
from tests.benchmarks.common import CODECS, RANK, THREADS, arguments, big_matrix, table

SWEEPS = 12
KINDS: dict[str, dict[str, Any]] = {
    "no out": {},
    "out": {"checkpoint_every": None},
    "committed": {"checkpoint_every": 1},
    "W on disk": {"checkpoint_every": 10**6},
}


class Saving:
    """Adds up the seconds of `Run.save`."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        original = Run.save

        def save(run: Run, *args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            state = original(run, *args, **kwargs)
            self.seconds.append(time.perf_counter() - began)
            return state

        Run.save = save  # type: ignore[method-assign,assignment]


def seconds_per_sweep(path: str, out: Path, solver: Solver, kind: str) -> float:
    at: list[float] = []

    def note(_: SweepRecord) -> None:
        at.append(time.perf_counter())

    options = KINDS[kind] | ({"out": out} if KINDS[kind] else {})
    options |= {"solver": solver, "tol": 0, "max_passes": SWEEPS + 1, "callback": note}
    # Nothing of V stays in memory.
    spare = patch("dask_nmf.fitting._SPARE", 0 if kind == "W on disk" else 0.9)
    with spare, patch("dask_nmf.fitting._kept_blocks", lambda *_: 0):
        factorize(path, RANK, **options)
    shutil.rmtree(out, ignore_errors=True)
    return (at[-1] - at[0]) / (len(at) - 1)


def main() -> None:
    folder, rounds = arguments(__doc__, rounds=5)
    saving = Saving()
    rows: list[list[object]] = []
    with dask.config.set(scheduler="threads", num_workers=THREADS):
        for codec in CODECS:
            path = big_matrix(folder, codec)
            solvers: tuple[Solver, ...] = (MU(), HALS(), LookAhead())
            for solver in solvers:
                taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
                shares: list[float] = []
                for _ in range(rounds):
                    for kind in KINDS:
                        saving.seconds.clear()
                        each = seconds_per_sweep(path, folder / "out.zarr", solver, kind)
                        taken[kind].append(each)
                        if kind == "out":
                            shares.append(sum(saving.seconds[1:-1]) / SWEEPS / each)
                ratios = [
                    median(b / a for a, b in zip(taken["no out"], taken[kind], strict=True))
                    for kind in list(KINDS)[1:]
                ]
                rows.append([f"{codec}, {solver}", median(taken["no out"]), *ratios])
                rows[-1].append(median(shares))
                print(*rows[-1], flush=True)
    table(
        "V of 1.6 GB, rank 32: seconds of a sweep without out, ratios to it (aim: out <= 1.05)",
        ["V, solver", *KINDS, "saving / sweep"],
        rows,
    )


if __name__ == "__main__":
    main()
