"""Factor a matrix of 1.5 GB in 300 MB of memory: python larger_than_memory.py [folder]

V is made first, chunk by chunk: the photon counts of a scanned scene, one row per pixel and one
column per wavelength. A pixel mixes a few of 16 materials, and the detector adds shot noise. The
factorization finds spectra (the rows of H) and how much of each lies in every pixel (W).
"""

import argparse
import logging
import math
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr
from numpy.typing import NDArray
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from zarr.codecs import BloscCodec

import dask_nmf

COLUMNS, MATERIALS, THREADS = 2_000, 16, 2
CHUNK_ROWS = 1_000  # chunks of 8 MB: the library joins as many to a block as the memory allows
MAX_PASSES, TOL = 30, 5e-4  # stops within 1 % of the shot noise, below which there is only noise


def spectra() -> NDArray[np.float64]:
    """(16, 2000): smooth curves, each a sum of six bands above a low floor."""
    random = np.random.default_rng(0)
    height, centre, width = random.random((3, MATERIALS, 6, 1))
    distance = (np.linspace(0, 1, COLUMNS) - centre) / (0.02 + 0.1 * width)
    return np.asarray(0.05 + (height * np.exp(-(distance**2) / 2)).sum(axis=1))


def pixels(chunk: int, rows: int) -> NDArray[np.float32]:
    """Counts of one chunk of pixels: they depend on its number, not on the order of work."""
    random = np.random.default_rng([1, chunk])
    abundances = random.gamma(0.15, size=(rows, MATERIALS))  # far below 1: most are tiny
    light = 100 * random.uniform(0.5, 1.5, size=(rows, 1))
    expected = light * abundances / abundances.sum(axis=1, keepdims=True) @ spectra()
    return np.asarray(random.poisson(expected), dtype=np.float32)


def write_chunk(path: Path, first: int) -> tuple[float, float]:
    """Make and write one chunk of V; its sum, and that of its squares."""
    V = zarr.open_array(path, mode="r+")
    block = pixels(first // CHUNK_ROWS, min(CHUNK_ROWS, V.shape[0] - first))
    V[first : first + CHUNK_ROWS] = block
    return block.sum(dtype=float), np.square(block).sum(dtype=float)


def make_V(path: Path, rows: int) -> zarr.Array[Any]:
    """V, written two chunks at a time unless it is there and complete."""
    recipe = "larger_than_memory, 1"
    if path.exists():
        V = zarr.open_array(path, mode="r")
        if V.attrs.get("recipe") != recipe:
            raise SystemExit(f"{path} was not made by this example: choose another folder")
        if V.shape[0] == rows and V.attrs["complete"]:
            return V
    V = zarr.create_array(
        path,
        shape=(rows, COLUMNS),
        chunks=(min(CHUNK_ROWS, rows), COLUMNS),
        dtype="float32",
        compressors=BloscCodec(cname="lz4"),  # counts shrink to 30 %, and decode fast
        attributes={"recipe": recipe, "complete": False},
        overwrite=True,
    )

    # In processes of their own, so that what they hold is not added to this one's peak.
    with ProcessPoolExecutor(THREADS, get_context("spawn")) as pool:
        firsts = range(0, rows, CHUNK_ROWS)
        sums = pool.map(write_chunk, repeat(path), firsts, chunksize=8)
        bar = tqdm(sums, "making V", V.nchunks, unit="chunk", disable=None, leave=False)
        total, squares = np.sum(list(bar), axis=0)
    # The variance of a count is its mean. Written last: an interrupted V is made again.
    V.update_attributes({"shot_noise": math.sqrt(total / squares), "complete": True})
    return V


def peak_bytes() -> int | None:
    """The most memory this process ever held, or None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose ru_maxrss can be that of the process that started us
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def main() -> None:
    parser = argparse.ArgumentParser(description="Factor a matrix of 1.5 GB in 300 MB of memory.")
    parser.add_argument("folder", nargs="?", default="larger_than_memory", type=Path)
    parser.add_argument("--rows", type=int, default=187_500, help="rows of V, 8 kB each")
    parser.add_argument("--rank", type=int, default=MATERIALS)
    parser.add_argument("--memory", default="300MB", help="for the whole process")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dask_nmf").setLevel(logging.INFO)  # the plan, then a line per sweep

    options.folder.mkdir(parents=True, exist_ok=True)
    path, out = options.folder / "V.zarr", options.folder / "results.zarr"
    V = make_V(path, options.rows)
    with (
        dask.config.set(num_workers=THREADS),
        logging_redirect_tqdm(),
        tqdm(total=MAX_PASSES, unit="pass", disable=None, leave=False) as bar,
    ):

        def show(record: dask_nmf.SweepRecord) -> None:  # not a lambda: True would stop the run
            bar.update(record.passes - bar.n)

        result = dask_nmf.factorize(
            path,
            options.rank,
            out=out,
            memory=options.memory,
            max_passes=MAX_PASSES,
            tol=TOL,
            overwrite=True,
            callback=show,
        )

    last, peak = result.history[-1], peak_bytes()
    print(f"""
V            {V.shape[0]:,} x {V.shape[1]:,} {V.dtype}, {V.nbytes / 1e6:,.0f} MB, in {path}
error        {result.error:.5f}; of the shot noise alone {V.attrs["shot_noise"]:.5f}
sweeps       {last.sweep} in {last.seconds:.0f} s: {result.status.value}
reads of V   {(last.passes - 1) / last.sweep:.2f} per sweep, and one before the first
read         {last.bytes_read / 1e9:.1f} GB, {last.bytes_read / last.seconds / 1e6:,.0f} MB/s
peak memory  {f"{peak / 1e6:.0f} MB" if peak else "unknown"} of {options.memory}
results      {out}

To open them:
    import dask_nmf, xarray
    result = dask_nmf.open_result({str(out)!r})  # W is lazy
    xarray.open_zarr({str(out)!r})
""")


if __name__ == "__main__":
    main()
