"""What grows with the number of chunks, and that nothing grows from pass to pass.

V is simulated: its store gives the same chunk for every key, so a matrix of 10^6 chunks needs no
disk. Printed per number of chunks: blocks, tasks and bytes of a pass's graph, the driver's memory
after the second and the last sweep.
"""

import gc
import pickle
import warnings
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr
from zarr.storage import MemoryStore

from dask_nmf import MU, SweepRecord, factorize, fitting
from dask_nmf.io import open_matrix
from dask_nmf.types import ConvergenceWarning
from tests.benchmarks.common import arguments, table

COLUMNS, ROWS, RANK = 16, 64, 2  # a chunk is 4 kB
SWEEPS = 4


class Repeated(MemoryStore):
    """A store in which every chunk is the same one."""

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        if key.startswith("c/"):
            key = "c/0/0"
        return await super().get(key, prototype, byte_range)


def simulated(chunks: int) -> zarr.Array[Any]:
    V = zarr.create_array(
        Repeated(),
        shape=(chunks * ROWS, COLUMNS),
        chunks=(ROWS, COLUMNS),
        dtype="f4",
        compressors=None,
    )
    V[:ROWS] = np.random.default_rng(0).random((ROWS, COLUMNS))
    return V


def resident() -> float:
    """MB held by this process now."""
    gc.collect()
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1e3


def row(chunks: int) -> list[object]:
    V = simulated(chunks)
    held: list[float] = []

    def note(record: SweepRecord) -> None:
        held.append(resident())

    with dask.config.set(scheduler="threads", num_workers=2):
        result = factorize(
            V,
            RANK,
            solver=MU(),
            tol=0,
            max_passes=1 + SWEEPS,
            callback=note,
            block_rows=ROWS * max(1, chunks // 10_000),
        )
    assert result.plan is not None
    graph = open_matrix(V).blocks(result.plan.grid)
    seconds = [
        now.seconds - then.seconds
        for then, now in zip(result.history, result.history[1:], strict=False)
    ]
    nbytes = len(pickle.dumps(graph.__dask_graph__()))
    found = [
        f"{chunks:,}",
        result.plan.blocks,
        result.plan.tasks,
        nbytes / 1e3,
        held[1],
        held[-1],
        float(np.median(seconds)),
    ]
    print(*found, flush=True)
    return found


def main() -> None:
    arguments(__doc__, rounds=1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    fitting._SPARE = 0  # nothing of V stays in memory
    rows = [row(chunks) for chunks in (10**3, 10**4, 10**5, 10**6)]
    table(
        f"{SWEEPS} sweeps over chunks of 4 kB on two threads",
        ["chunks", "blocks", "tasks", "V's graph, kB", "MB, sweep 2", f"MB, sweep {SWEEPS}", "s"],
        rows,
    )


if __name__ == "__main__":
    main()
