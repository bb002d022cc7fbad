"""What limits a pass on many workers: the constants of cluster/SCALE.md.

Scheduler and workers are processes of their own on this machine, V is simulated: its store gives
the same chunk for every key, after a sleep that stands for what a read costs.

`--workers`: seconds of a sweep beside a bare read of V by the same workers, for 1, 2 and 4 of them.
`--tasks`: for so many blocks, processor time of the scheduler, the driver and the workers in a
sweep, and what it adds to their memory.
`--moved`: bytes that workers have from each other in a sweep, beside the formula.
"""

import argparse
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import dask
import numpy as np
from distributed import Client

from dask_nmf import MU, SweepRecord, factorize, fitting
from dask_nmf.blocks import Grid
from dask_nmf.io import open_matrix
from dask_nmf.types import ConvergenceWarning
from tests.benchmarks.common import table
from tests.benchmarks.simulated import simulated
from tests.processes import CONTEXT, schedule, work

READ_SECONDS, BLOCKS = 0.1, 48


@contextmanager
def processes(workers: int) -> Iterator[Client]:
    """A scheduler and so many workers of one thread."""
    folder = Path(tempfile.mkdtemp())
    here, there = CONTEXT.Pipe()
    config: dict[str, Any] = {"distributed.scheduler.worker-ttl": "5 minutes"}
    started = [CONTEXT.Process(target=schedule, args=(folder / "scheduler", config, there))]
    started[0].start()
    address = here.recv()
    for number in range(workers):
        told = folder / f"worker-{number}", config, address, folder
        started.append(CONTEXT.Process(target=work, args=told))
        started[-1].start()
    try:
        with Client(address) as client:
            client.wait_for_workers(workers)
            yield client
    finally:
        for process in started:
            process.kill()


def sweep_seconds(V: Any, rank: int, rows: int, sweeps: int, note: Any = None) -> list[float]:
    """Of each sweep but the first, which starts from a pass with other sums."""
    options: dict[str, Any] = {"solver": MU(), "tol": 0, "max_passes": 1 + sweeps}
    result = factorize(V, rank, block_rows=rows, callback=note, **options)
    return list(np.diff([record.seconds for record in result.history]))


def bare_read(V: Any, grid: Any) -> float:
    began = time.perf_counter()
    blocks = open_matrix(V).blocks(grid)
    ones = (1,) * len(grid.heights), (1,)
    blocks.map_blocks(_corner, dtype="f4", chunks=ones, meta=np.empty((0, 0), "f4")).compute()
    return time.perf_counter() - began


def _corner(V_b: Any) -> Any:
    return V_b[:1, :1]


def by_workers(rounds: int) -> None:
    rows = []
    V = simulated(BLOCKS, 1000, 1000, READ_SECONDS)
    alone = 0.0
    for workers in (1, 2, 4):
        with processes(workers):
            bare, ours = [], []
            for _ in range(rounds):
                bare.append(bare_read(V, Grid((1000,) * BLOCKS, (1000,))))
                ours += sweep_seconds(V, 8, 1000, 2)
        read, sweep = median(bare), median(ours)
        alone = alone or sweep
        rows.append([workers, read, sweep, sweep / read, alone / sweep / workers])
        print(*rows[-1], flush=True)
    heads = ["workers", "bare read, s", "sweep, s", "sweep / read", "efficiency"]
    table(f"{BLOCKS} blocks of 4 MB, each of which takes {READ_SECONDS} s", heads, rows)


def _cost(dask_scheduler: Any = None) -> tuple[float, float]:
    """Seconds of this process, and MB that it holds."""
    held = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]
    return time.process_time(), int(held) / 1e3


def by_tasks(counts: list[int], on_disk: bool) -> None:
    rows = []
    for blocks in counts:
        V = simulated(blocks, 8, 16, 0.0)
        costs: list[tuple[float, tuple[float, float], tuple[float, float], float]] = []

        with processes(2) as client:

            def note(_: SweepRecord, client: Client = client, costs: Any = costs) -> None:
                of_workers = sum(cost for cost, _ in client.run(_cost).values())
                now = client.run_on_scheduler(_cost), _cost()
                costs.append((time.perf_counter(), *now, of_workers))

            options: dict[str, Any] = {"solver": MU(), "block_rows": 8, "tol": 0, "max_passes": 3}
            if on_disk:
                options["out"] = tempfile.mkdtemp() + "/out.zarr"
            told = factorize(V, 2, callback=note, **options).plan
        assert told is not None
        (began, scheduler, driver, workers), (ended, scheduler_, driver_, workers_) = costs[-2:]
        per = 1e6 / told.tasks
        rows.append(
            [
                f"{blocks:,}",
                f"{told.tasks:,}",
                ended - began,
                (scheduler_[0] - scheduler[0]) * per,
                (driver_[0] - driver[0]) * per,
                (workers_ - workers) * per,
                scheduler_[1],
                driver_[1],
            ]
        )
        print(*rows[-1], flush=True)
    heads = ["blocks", "tasks", "sweep, s", "us of scheduler a task", "of driver", "of workers"]
    table("a sweep over blocks of 512 bytes", [*heads, "scheduler, MB", "driver, MB"], rows)


def _fetched(dask_worker: Any = None) -> dict[str, int]:
    """Bytes that a worker has had from others, by what they are."""
    found: Counter[str] = Counter()
    kinds = {"blocks": "V", "nmf-improve": "W", "nmf-sum": "sums", "array": "H"}
    for transfer in dask_worker.transfer_incoming_log:
        for key, size in transfer["keys"].items():
            name = str(key).strip("('")
            found[next((k for begin, k in kinds.items() if name.startswith(begin)), "rest")] += size
    return dict(found)


def between_workers() -> None:
    rows = []
    for workers, blocks, columns, rank, size in (
        *((2, 32, 4096, 16, 2**24), (4, 32, 4096, 16, 2**24), (4, 32, 16384, 16, 2**24)),
        *((4, 32, 4096, 64, 2**24), (4, 32, 4096, 16, 2**18)),
    ):
        height = size // columns
        V = simulated(blocks, height, columns, READ_SECONDS)
        told: list[Counter[str]] = []
        with processes(workers) as client:

            def note(_: SweepRecord, client: Client = client, told: Any = told) -> None:
                told.append(sum(map(Counter, client.run(_fetched).values()), Counter()))

            factorize(V, rank, solver=MU(), block_rows=height, tol=0, max_passes=5, callback=note)
        sweep = {kind: (told[-1][kind] - told[0][kind]) / (len(told) - 1) / 1e6 for kind in "VHW"}
        moved = (told[-1]["sums"] - told[0]["sums"]) / (len(told) - 1) / 1e6
        sums = blocks * rank * columns * 4  # the partial products are in V's dtype
        higher = sum(-(-blocks // 8**level) for level in (1, 2, 3)) * rank * columns * 8
        formula = (1 - 1 / workers) * (sums + higher) / 1e6
        shape = f"{blocks} x {4 * size / 2**20:g} MiB, n = {columns:,}, k = {rank}"
        rows.append([workers, shape, sweep["V"], sweep["W"], sweep["H"], moved, formula])
        print(*rows[-1], flush=True)
    heads = ["workers", "V", "V, MB", "W, MB", "H, MB", "sums, MB", "by the formula, at most"]
    table("what workers have from each other in a sweep", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, nargs="*", help="numbers of blocks")
    parser.add_argument("--on-disk", action="store_true", help="W, for --tasks")
    parser.add_argument("--moved", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    fitting._SPARE = 0.0  # nothing of V stays in memory
    with dask.config.set({"distributed.worker.memory.spill": False}):
        if options.workers:
            by_workers(options.rounds)
        if options.tasks:
            by_tasks(options.tasks, options.on_disk)
        if options.moved:
            between_workers()


if __name__ == "__main__":
    main()
