"""Basis faces: python orl_faces.py orl_faces.npz

The .npz holds `images` (400, 112, 92): ten photographs each of forty people, images x rows x
columns of grey values. V is images x pixels: an image is a row, so a million more are only more
rows, read block by block, while H, the basis faces, stays in memory. W says how much of each
basis face an image has. V is read from zarr in several chunkings, which must not matter.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from matplotlib.figure import Figure
from numpy.typing import NDArray

import dask_nmf

RANK = 25
HEIGHT, WIDTH = 112, 92
# Name, chunks, rows per block. V is small (33 MB as float64) and would be read in one block.
CHUNKINGS = [
    ("rows", (50, 10_304), 50),
    ("squares", (100, 100), 100),
    ("columns", (400, 1_288), 400),
    ("one chunk", (400, 10_304), 400),
]
SHOWN = [0, 57, 114, 171, 228]  # five people


def in_all_chunkings(V: NDArray[Any], folder: Path) -> dask_nmf.Result:
    print("chunking   chunks        blocks  sweeps  passes  reads/sweep  error       seconds")
    for name, chunks, block_rows in CHUNKINGS:
        path = folder / f"{name}.zarr"
        zarr.create_array(path, data=V, chunks=chunks)
        result = dask_nmf.factorize(path, RANK, block_rows=block_rows)
        last = result.history[-1]
        print(
            f"{name:<9}  {chunks!s:<12}  {result.parameters['blocks']:>6}  {last.sweep:>6}  "
            f"{last.passes:>6}  {(last.passes - 1) / last.sweep:>11.2f}  {last.error:.8f}  "
            f"{last.seconds:.1f}"
        )
    return result


def draw(V: NDArray[Any], result: dask_nmf.Result, picture: Path) -> None:
    W, H = result.W.compute(), result.H
    figure = Figure(figsize=(11, 9), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=[5, 2.2], wspace=0.05)
    left, right = parts

    order = np.argsort(-W.mean(axis=0) * H.mean(axis=1))
    for j, ax in zip(order, left.subplots(5, 5).flat, strict=True):
        brightest = np.percentile(H[j], 99.5)
        ax.imshow(H[j].reshape(HEIGHT, WIDTH), cmap="gray", vmin=0, vmax=brightest)
        ax.set_axis_off()
    left.suptitle(f"The {RANK} basis faces (rows of H), most used first")

    for image, (original, again) in zip(SHOWN, right.subplots(len(SHOWN), 2), strict=True):
        rebuilt = W[image] @ H
        error = np.linalg.norm(V[image] - rebuilt) / np.linalg.norm(V[image])
        for ax, pixels in ((original, V[image]), (again, rebuilt)):
            ax.imshow(pixels.reshape(HEIGHT, WIDTH), cmap="gray", vmin=0, vmax=255)
            ax.set_axis_off()
        original.set_title(f"image {image}", fontsize=10)
        again.set_title(f"error {error:.3f}", fontsize=10)
    right.suptitle(f"V and W @ H; error of all {result.error:.3f}")
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="Basis faces of the ORL database.")
    parser.add_argument("data", type=Path, help="orl_faces.npz")
    parser.add_argument("--picture", type=Path, default="orl_faces.png")
    options = parser.parse_args()

    V = np.load(options.data)["images"].reshape(-1, HEIGHT * WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        result = in_all_chunkings(V, Path(folder))
    draw(V, result, options.picture)
    print(f"\npicture: {options.picture}")


if __name__ == "__main__":
    main()
