"""Factor a matrix of 1.5 GB in 300 MB of memory: python larger_than_memory.py [folder]

V is made first, chunk by chunk: the photon counts of a scanned scene, one row per pixel and one
column per wavelength. A pixel mixes a few of 16 materials, and the detector adds shot noise. The
factorization then finds the materials' spectra (rows of H) and how much of each lies in every
pixel (W).
"""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import numpy as np
import numpy.typing as npt
import zarr
from dask.utils import format_bytes, parse_bytes
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from zarr.codecs import BloscCodec

import dask_nmf

COLUMNS, MATERIALS, CHUNK_ROWS, THREADS = 2_000, 16, 1_000, 2  # a chunk is 8 MB
Floats = npt.NDArray[np.floating]


def spectra() -> Floats:
    """The true H, (16, 2000): smooth curves, each a sum of six bands above a low floor."""
    random = np.random.default_rng(0)
    wavelength = np.linspace(0, 1, COLUMNS)
    height, centre, width = random.random((3, MATERIALS, 6, 1))
    bands = height * np.exp(-(((wavelength - centre) / (0.02 + 0.1 * width)) ** 2) / 2)
    return 0.05 + bands.sum(axis=1)


def pixels(chunk: int, rows: int, H: Floats) -> Floats:
    """Counts of one chunk of pixels; they depend on its number only, not on the order of work."""
    random = np.random.default_rng([1, chunk])
    abundances = random.gamma(0.15, size=(rows, MATERIALS))  # this far below 1, few matter
    light = 100 * random.uniform(0.5, 1.5, size=(rows, 1))
    return random.poisson(light * abundances / abundances.sum(axis=1, keepdims=True) @ H)


def make_V(path: Path, rows: int) -> None:
    """Write V in chunks of 8 MB, two at a time, unless it is there and complete."""
    recipe = {"recipe": "larger_than_memory 1", "rows": rows}
    if path.exists():
        found = dict(zarr.open(path, mode="r").attrs)
        if found == {**recipe, "complete": True}:
            print(f"V: reused from {path}")
            return
        if found.get("recipe") != recipe["recipe"]:
            raise SystemExit(f"{path} was not made by this example: choose another folder")
    V = zarr.create_array(
        path,
        shape=(rows, COLUMNS),
        chunks=(CHUNK_ROWS, COLUMNS),
        dtype="float32",
        compressors=BloscCodec(cname="lz4"),  # counts shrink to a third and decode at 1 GB/s
        attributes={**recipe, "complete": False},
        overwrite=True,
    )
    H = spectra()

    def write(chunk: int) -> None:
        first = chunk * CHUNK_ROWS
        last = min(first + CHUNK_ROWS, rows)
        V[first:last] = pixels(chunk, last - first, H)

    with ThreadPoolExecutor(THREADS) as pool:
        chunks = pool.map(write, range(V.nchunks))
        list(tqdm(chunks, "making V", V.nchunks, unit="chunk", disable=None, leave=False))
    V.update_attributes({"complete": True})  # last: an interrupted V is made again


def peak_bytes() -> int | None:
    """The most memory this process ever held, or None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose ru_maxrss may be that of the process that started us
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def progress(bar: "tqdm[None]") -> Callable[[dask_nmf.SweepRecord], None]:
    def show(record: dask_nmf.SweepRecord) -> None:
        bar.update(record.passes - bar.n)
        bar.set_postfix_str(f"error {record.error:.5f}")

    return show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="larger_than_memory", type=Path)
    parser.add_argument("--rows", type=int, default=187_500, help="rows of V, of 8 kB each")
    parser.add_argument("--rank", type=int, default=MATERIALS)
    parser.add_argument("--memory", default="300MB", help="what the whole process may use")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dask_nmf").setLevel(logging.INFO)  # the plan, then one line per sweep

    began = time.perf_counter()
    options.folder.mkdir(parents=True, exist_ok=True)
    make_V(options.folder / "V.zarr", options.rows)
    print(f"V: ready after {time.perf_counter() - began:.0f} s\n")
    print(peak_bytes() / 1e6)
    P = 8
    with (
        logging_redirect_tqdm(),
        dask.config.set(num_workers=THREADS),
        tqdm(total=P, unit="pass", disable=None, leave=False) as bar,
    ):
        result = dask_nmf.factorize(
            options.folder / "V.zarr",
            options.rank,
            out=options.folder / "results.zarr",
            overwrite=True,
            memory=options.memory,
            max_passes=P,
            callback=progress(bar),
            tol=1e-5,
        )
    print(result, peak_bytes() / 1e6)
    print(time.perf_counter() - began)
    t = spectra()
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    h = result.H / np.linalg.norm(result.H, axis=1, keepdims=True)
    print(np.sort((h @ t.T).max(0)))


if __name__ == "__main__":
    main()
