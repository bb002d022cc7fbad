"""Seconds of a pass on a cluster that is not here: the table of cluster/SCALE.md.

From the planner's own blocks, and constants that `python -m tests.benchmarks.limits` measures.
"""

import argparse
from math import ceil

from dask_nmf.blocks import choose_grid
from dask_nmf.bundles import size_of
from dask_nmf.geometry import FAN_IN, Geometry
from tests.benchmarks.common import table

COLUMNS, RANK, ITEM = 2_000, 20, 4  # float32
MEMORY = int(0.6 * 8 * 2**30)  # of a worker with 8 GiB and one thread
TASKS = 5.4  # per block: keys of the graph that a sweep sends, without bundles
IN_A_BUNDLE = 1.1  # times a task's own cost that a worker has for each block of a bundle
GFLOPS = 47.0  # of both products at rank 20, one thread
HALF_STEP = 0.7e-6  # seconds per row: "auto", mean of a run
DRIVER = 0.5  # seconds between two passes: H's half-step, steps on the model


def predicted(
    terabytes: float, workers: int, rate: float, scheduler: float, worker: float
) -> list[object]:
    """rate : bytes per second that a worker reads and decodes. scheduler, worker : s per task."""
    rows = int(terabytes * 1e12 / COLUMNS / ITEM)
    chunk = 4_000, COLUMNS  # 32 MB
    geometry = Geometry(
        m=rows,
        n=COLUMNS,
        rank=RANK,
        itemsize=ITEM,
        stored=ITEM,
        chunk=chunk,
        piece=chunk,
        threads=1,
        processes=workers,
        payload=1.0,
        W_on_disk=True,
        model=True,
        local=False,
    )
    grid = choose_grid(geometry, MEMORY)
    height, blocks = grid.heights[0], grid.blocks
    size = height * COLUMNS * ITEM
    reading = size / rate
    tasks = TASKS * blocks
    in_turn = size_of(blocks, ceil(tasks), workers)
    if in_turn > 1:
        tasks = grid.tasks_in_bundles(in_turn)
    own = worker * (TASKS if in_turn == 1 else IN_A_BUNDLE)
    work = 4 * RANK * height * COLUMNS / (GFLOPS * 1e9) + height * HALF_STEP + own
    turns = ceil(blocks / in_turn / workers) * in_turn
    at_work = min(turns, blocks) * (reading + work)
    scheduling = tasks * scheduler
    seconds = max(at_work, scheduling) + DRIVER
    bare = terabytes * 1e12 / workers / rate
    sums = RANK * COLUMNS * (ITEM + 8 / FAN_IN) * blocks * (1 - 1 / workers)
    parts = {
        "reading": turns * reading,
        "products": turns * work,
        "scheduler": scheduling,
    }
    worst = "scheduler" if scheduling > at_work else max(list(parts)[:2], key=lambda x: parts[x])
    return [
        f"{terabytes:g} TB",
        workers,
        f"{size / 2**20:,.0f}",
        f"{blocks:,}",
        in_turn,
        f"{tasks:,.0f}",
        f"{seconds:,.0f}",
        f"{bare / seconds:.0%}",
        f"{scheduling:,.0f}",
        f"{sums / 1e9:.1f}",
        worst,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=100.0, help="MB/s of one worker")
    parser.add_argument("--scheduler", type=float, default=0.7, help="ms a task")
    parser.add_argument("--worker", type=float, default=1.8, help="ms a task")
    told = parser.parse_args()
    rows = [
        predicted(size, workers, told.rate * 1e6, told.scheduler / 1e3, told.worker / 1e3)
        for size in (1, 10, 100)
        for workers in (10, 100, 1000)
    ]
    heads = ["V", "workers", "block, MiB", "blocks", "in a task", "tasks", "pass, s"]
    heads += ["of the bare read", "scheduler, s", "GB of sums moved", "bound by"]
    table(f"predicted, each worker reads {told.rate:g} MB/s", heads, rows)


if __name__ == "__main__":
    main()
