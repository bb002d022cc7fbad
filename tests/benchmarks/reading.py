"""Seconds to read V through our reader, beside zarr's own, zarrs, and memory-mapped chunks.

Two threads take block after block and touch one number per page. The blocks are the same for all:
whole chunks of whole rows, about 32 MB. V lies in the page cache.

- **ours**: `dask_nmf.reader.Reader`.
- **zarr**: `array[rows]`, as a hand-written loop has it.
- **zarrs**: the same with the codec pipeline of the package zarrs, if it is installed.
- **ours + zarrs**: ours where the user has switched that pipeline on.
- **mapped**: `np.memmap` of each chunk's file, which needs uncompressed chunks; copied side by
  side where a block is several of them.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import zarr

from dask_nmf.reader import Reader
from dask_nmf.types import Array, working_dtype
from tests.benchmarks.common import THREADS, arguments, table, timed
from tests.benchmarks.memory import CODECS

NUMBERS = 96_000_000
COLUMNS = 2_000
BLOCK_ROWS = 4_000
CHUNKS: dict[str, dict[str, Any]] = {
    "32 MB": {"chunks": (4_000, 2_000)},
    "1.6 MB": {"chunks": (200, 2_000)},
    "0.2 MB": {"chunks": (25, 2_000)},
    "squares": {"chunks": (1_000, 500)},
    "shards of 32 kB": {"chunks": (80, 100), "shards": (4_000, 2_000)},
}
_ZARRS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}


def make(path: Path, codec: str, dtype: str, layout: dict[str, Any]) -> str:
    """Counts, which shrink to about 30 %."""
    shape = (NUMBERS // COLUMNS, COLUMNS)
    if not (path / "complete").exists():
        V = zarr.create_array(
            path, shape=shape, dtype=dtype, compressors=CODECS[codec], overwrite=True, **layout
        )
        for start in range(0, shape[0], BLOCK_ROWS):
            random = np.random.default_rng(start)
            V[start : start + BLOCK_ROWS] = random.poisson(3, (BLOCK_ROWS, COLUMNS))
        (path / "complete").touch()
    return str(path)


def touch(block: Array) -> float:
    return float(block.reshape(-1)[:: 4096 // block.itemsize].sum())


def contestants(path: str, codec: str, dtype: str, rows: int) -> dict[str, Callable[[int], float]]:
    V: Any = zarr.open_array(path, mode="r")
    reader = Reader(V, working_dtype(V.dtype))

    def ours(start: int) -> float:
        return touch(reader[start : start + BLOCK_ROWS, 0:COLUMNS])

    def by_zarr(start: int) -> float:
        return touch(V[start : start + BLOCK_ROWS].astype(reader.dtype, copy=False))

    def mapped(start: int) -> float:
        names = range(start // rows, (start + BLOCK_ROWS) // rows)
        parts = [np.memmap(f"{path}/c/{i}/0", dtype=dtype, mode="r") for i in names]
        block = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return touch(block.astype(reader.dtype, copy=False))

    found: dict[str, Callable[[int], float]] = {"ours": ours, "zarr": by_zarr}
    if find_spec("zarrs"):
        with zarr.config.set(_ZARRS):
            other: Any = zarr.open_array(path, mode="r")
        found["zarrs"] = lambda start: touch(
            other[start : start + BLOCK_ROWS].astype(reader.dtype, copy=False)
        )
        with zarr.config.set(_ZARRS):
            through = Reader(zarr.open_array(path, mode="r"), reader.dtype)
        found["ours + zarrs"] = lambda start: touch(through[start : start + BLOCK_ROWS, 0:COLUMNS])
    if codec == "none" and V.shards is None and V.chunks[1] == COLUMNS:
        found["mapped"] = mapped
    return found


def _read_all(pool: ThreadPoolExecutor, call: Callable[[int], float], starts: range) -> float:
    return sum(pool.map(call, starts))


def main() -> None:
    folder, rounds = arguments(__doc__, rounds=5)
    rows: list[list[object]] = []
    names = ["ours", "zarr", "zarrs", "mapped", "ours + zarrs"]
    for chunks, layout in CHUNKS.items():
        for codec in CODECS:
            for dtype in ("float32", "uint16"):
                name = f"reading-{chunks.replace(' ', '-')}-{codec}-{dtype}.zarr"
                path = make(folder / name, codec, dtype, layout)
                calls = contestants(path, codec, dtype, layout["chunks"][0])
                taken: dict[str, list[float]] = {name: [] for name in calls}
                starts = range(0, NUMBERS // COLUMNS, BLOCK_ROWS)
                with ThreadPoolExecutor(THREADS) as pool:
                    for _ in range(rounds):
                        for name, call in calls.items():
                            seconds, _ = timed(partial(_read_all, pool, call, starts))
                            taken[name].append(seconds)
                found = {name: median(times) for name, times in taken.items()}
                best = min(seconds for name, seconds in found.items() if "ours" not in name)
                ratios = [best / found[n] if n in found else "" for n in ("ours", "ours + zarrs")]
                times = [found.get(name, "") for name in names]
                rows.append([f"{chunks}, {codec}, {dtype}", *times, *ratios])
                print(*rows[-1], flush=True)
    table(
        f"Seconds to read {NUMBERS:,} numbers with {THREADS} threads (aim: speed >= 0.9)",
        ["chunks, codec, dtype", *names, "speed", "with zarrs"],
        rows,
    )


if __name__ == "__main__":
    main()
