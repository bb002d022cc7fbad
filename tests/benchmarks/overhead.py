"""Seconds per sweep where V is next to nothing: what dask costs beside reads and products."""

from pathlib import Path
from statistics import median

import dask
import numpy as np
import zarr
from distributed import Client, LocalCluster

from dask_nmf import MU, factorize
from tests.benchmarks.common import THREADS, arguments, table

BLOCKS = (1, 16, 64, 256)
ROWS, COLUMNS, RANK = 10, 20, 3  # of a block


def tiny_matrix(folder: Path, blocks: int) -> str:
    path = str(folder / f"tiny_{blocks}.zarr")
    values = np.random.default_rng(0).random((blocks * ROWS, COLUMNS))
    zarr.create_array(path, data=values, chunks=(ROWS, COLUMNS), overwrite=True)
    return path


def seconds_per_sweep(path: str, sweeps: int) -> float:
    passes = sweeps + 1
    result = factorize(path, RANK, solver=MU(), block_rows=ROWS, tol=0, max_passes=passes)
    return float(median(np.diff([record.seconds for record in result.history])))


def main() -> None:
    folder, sweeps = arguments(__doc__, rounds=40)
    paths = {blocks: tiny_matrix(folder, blocks) for blocks in BLOCKS}
    with dask.config.set(scheduler="threads", num_workers=THREADS):
        threads = [seconds_per_sweep(paths[blocks], sweeps) for blocks in BLOCKS]
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
    ):
        processes = [seconds_per_sweep(paths[blocks], sweeps) for blocks in BLOCKS]
    rows = [
        [f"{blocks}", *(1e3 * seconds for seconds in pair)]
        for blocks, pair in zip(BLOCKS, zip(threads, processes, strict=True), strict=True)
    ]
    table(
        f"Milliseconds per sweep over blocks of {ROWS} x {COLUMNS}, rank {RANK}",
        ["blocks", f"{THREADS} threads", "2 processes"],
        rows,
    )


if __name__ == "__main__":
    main()
