"""Memory, and the plan of a run: python memory_and_plan.py

`plan` says beforehand what `factorize` would do with the same arguments: blocks, reads, bytes per
process. V is not read for it. What does not fit is refused before any work is done, and what could
be faster is said as advice.
"""

import tempfile
from pathlib import Path

import numpy as np
import zarr

import dask_nmf


def main(folder: Path) -> None:
    # 1. A V of 1.6 TB, of which nothing is stored yet: a plan needs its shape and chunks only.
    huge = zarr.create_array(
        folder / "huge.zarr", shape=(100_000_000, 2_000), chunks=(4_000, 2_000), dtype="f8"
    )
    print(dask_nmf.plan(huge, rank=20, out="factors.zarr", memory="4GiB"))

    # 2. Less memory makes smaller blocks, and in the end a refusal, not a crash in the night.
    for memory in ("8GiB", "2GiB", "1GiB", "100MiB"):
        try:
            found = dask_nmf.plan(huge, rank=20, out="factors.zarr", memory=memory)
        except ValueError as error:
            print(f"{memory}: refused: {error}\n")
        else:
            peak = f"{found.peak_bytes / 2**20:,.0f} MiB predicted"
            print(f"{memory}: blocks of {found.block[0]:,} rows, {peak}")

    # 3. Chunks that are wide and low, or narrow and high, or small: each is still read once per
    # sweep, but the plan says what a copy in better chunks would gain.
    V = np.random.default_rng(0).random((4_000, 400), dtype="f4")
    zarr.create_array(folder / "small.zarr", data=V, chunks=(25, 25))
    before = dask_nmf.plan(folder / "small.zarr", rank=5)
    for line in before.advice:
        print(f"advice: {line}")
    dask_nmf.rechunk(folder / "small.zarr", folder / "better.zarr")  # streams; goes on when killed
    after = dask_nmf.plan(folder / "better.zarr", rank=5)
    print(f"chunks before {before.chunks}, after {after.chunks}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
