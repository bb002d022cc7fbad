"""Peak memory does not grow with V: python flat_memory.py [folder] [--sizes 1 4 16 40]

V grows from 1 to 40 GB on disk (it needs 50 GB there, with W), and is factored at each size by a
process of its own within 1.5 GB, which the system enforces. W, larger than that in the end, is
written to disk block by block. Prints a table of peak memory against size.
"""

import argparse
import json
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr
from tqdm import tqdm

import dask_nmf

COLUMNS, RANK, THREADS = 400, 16, 2
CHUNK_ROWS = 20_000  # 32 MB
ROWS_PER_GB = 625_000


def grow(path: Path, rows: int) -> zarr.Array[Any]:
    """V = W H and 20 % of noise, made longer chunk by chunk; what is there already stays."""
    if path.exists():
        V = zarr.open_array(path, mode="r+")
    else:
        shape, chunks = (0, COLUMNS), (CHUNK_ROWS, COLUMNS)
        V = zarr.create_array(path, shape=shape, chunks=chunks, dtype="f4", compressors=None)
    H = np.random.default_rng(0).random((RANK, COLUMNS), dtype="f4")
    made, V_rows = V.attrs.get("rows", 0), max(V.shape[0], rows)
    V.resize((V_rows, COLUMNS))

    def write(first: int) -> None:
        random = np.random.default_rng([1, first])
        size = min(CHUNK_ROWS, rows - first)
        W = random.gamma(0.3, size=(size, RANK)).astype("f4")
        V[first : first + size] = W @ H + random.random((size, COLUMNS), dtype="f4")

    starts = range(made, rows, CHUNK_ROWS)
    with ThreadPoolExecutor(THREADS) as pool:
        list(tqdm(pool.map(write, starts), "making V", len(starts), unit="chunk", leave=False))
    V.update_attributes({"rows": rows})
    return V


def peak_bytes() -> int:
    """The most memory that this process ever held (Linux)."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def factor(path: Path, memory: int, passes: int) -> dict[str, Any]:
    """Factor in this process, which cannot get more memory of its own than that."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    warnings.simplefilter("ignore", dask_nmf.ConvergenceWarning)
    with dask.config.set(scheduler="threads", num_workers=THREADS):
        result = dask_nmf.factorize(
            path,
            RANK,
            out=path.with_name("factors.zarr"),
            memory=memory,
            solver="hals",
            max_passes=passes,
            overwrite=True,
        )
    assert result.plan is not None
    return {
        "V, GB": result.plan.decoded_bytes / 1e9,
        "W, GB": result.W.nbytes / 1e9,
        "blocks": result.plan.blocks,
        "predicted, MB": result.plan.peak_bytes / 1e6,
        "peak, MB": peak_bytes() / 1e6,
        "s per pass": result.history[-1].seconds / result.history[-1].passes,
        "error": result.error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory does not grow with V.")
    parser.add_argument("folder", nargs="?", default="flat_memory", type=Path)
    parser.add_argument("--sizes", nargs="+", type=float, default=[1, 4, 16, 40], help="of V, GB")
    parser.add_argument("--memory", type=int, default=1_500_000_000, help="of the process, bytes")
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--only-factor", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.folder / "V.zarr"
    if options.only_factor:
        print(json.dumps(factor(path, options.memory, options.passes)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    for i, size in enumerate(sorted(options.sizes)):
        grow(path, int(size * ROWS_PER_GB))
        arguments = [str(options.folder), "--only-factor"]
        arguments += ["--memory", str(options.memory), "--passes", str(options.passes)]
        done = subprocess.run(
            [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
        )
        row = json.loads(done.stdout.splitlines()[-1])
        if i == 0:
            print("  ".join(f"{name:>13}" for name in row))
        print("  ".join(f"{value:>13.4g}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
