"""Materials in a hyperspectral scene: python indian_pines.py indian_pines.npz

The .npz holds `cube` (145, 145, 200): the AVIRIS scene Indian Pines, fields and woods in Indiana,
pixels x pixels x bands. V has a row per pixel, W holds the maps and H the spectra. V is read from
zarr in several chunkings, which must not matter, and once each with other solvers and starts.
"""

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from matplotlib.figure import Figure
from numpy.typing import NDArray

import dask_nmf

RANK = 16  # as many as the scene has ground classes
# Name, chunks, rows per block. V is small (33 MB as float64) and would be read in one block.
CHUNKINGS = [
    ("rows", (2_900, 200), 2_900),  # 20 lines of the image
    ("squares", (100, 100), 2_900),
    ("columns", (21_025, 25), 21_025),
    ("one chunk", (21_025, 200), 21_025),
]


def factorize(path: Path, **options: Any) -> dask_nmf.Result:
    with warnings.catch_warnings():  # the curves show how far each run came
        warnings.simplefilter("ignore", dask_nmf.ConvergenceWarning)
        return dask_nmf.factorize(path, RANK, max_passes=100, **options)


def in_all_chunkings(V: NDArray[Any], folder: Path) -> dask_nmf.Result:
    print("chunking   chunks         blocks  sweeps  passes  reads/sweep  error       seconds")
    for name, chunks, block_rows in CHUNKINGS:
        path = folder / f"{name}.zarr"
        zarr.create_array(path, data=V, chunks=chunks)
        result = factorize(path, block_rows=block_rows)
        last = result.history[-1]
        print(
            f"{name:<9}  {chunks!s:<13}  {result.parameters['blocks']:>6}  {last.sweep:>6}  "
            f"{last.passes:>6}  {(last.passes - 1) / last.sweep:>11.2f}  {last.error:.8f}  "
            f"{last.seconds:.1f}"
        )
    return result


def draw(runs: dict[str, dask_nmf.Result], bound: float, picture: Path) -> None:
    result = min(runs.values(), key=lambda run: run.error)
    W, H = result.W.compute(), result.H
    signal = W.mean(axis=0) * H.mean(axis=1)
    figure = Figure(figsize=(16, 9), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=[2, 1])
    left, right = parts

    axes = left.subplots(4, 8, width_ratios=[1.4, 1] * 4).reshape(RANK, 2)
    order = np.argsort(-signal)
    for number, (j, (image, line)) in enumerate(zip(order, axes, strict=True), start=1):
        shown = W[:, j].reshape(145, 145)
        drawn = image.imshow(shown / np.percentile(shown, 99.5), vmin=0, vmax=1, cmap="viridis")
        image.set_axis_off()
        image.set_title(f"{number}: {signal[j] / signal.sum():.1%}", fontsize=10)
        line.plot(np.arange(1, 201), H[j] / H[j].max(), linewidth=1)
        line.set(xlim=(-1, 202), ylim=(0, 1.05), xticks=[1, 100, 200], yticks=[], box_aspect=1.4)
        line.tick_params(labelsize=8)
    left.suptitle("Map and spectrum (against band) of each component, with its share of the signal")
    label = "abundance / its maximum"
    left.colorbar(drawn, ax=axes, location="bottom", shrink=0.4, aspect=40, label=label)

    ax = right.subplots()
    for name, run in runs.items():
        passes, errors = zip(*((r.passes, r.error) for r in run.history), strict=True)
        ax.loglog(passes, errors, label=f"{name}: {run.error:.4f}")
    ax.axhline(bound, color="black", linestyle=":", label=f"SVD, negative too: {bound:.4f}")
    ax.set(xlabel="passes: reads of V", ylabel="||V - W H|| / ||V||", title="Error against passes")
    ax.minorticks_off()
    ax.set_xticks([1, 2, 5, 10, 20, 50, 100], [1, 2, 5, 10, 20, 50, 100])
    ax.set_yticks([0.02, 0.03, 0.05, 0.1, 0.2], [0.02, 0.03, 0.05, 0.1, 0.2])
    ax.grid(alpha=0.3)
    right.legend(loc="outside lower center")
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="Materials in the Indian Pines scene.")
    parser.add_argument("data", type=Path, help="indian_pines.npz")
    parser.add_argument("--picture", type=Path, default="indian_pines.png")
    options = parser.parse_args()

    V = np.load(options.data)["cube"].reshape(-1, 200)  # line by line: row 145 y + x
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = in_all_chunkings(V, folder)
        path = folder / "one chunk.zarr"
        runs = {
            "MU, random start": factorize(path, solver="mu"),
            "HALS, random start": result,
            "HALS, NNDSVDa start": factorize(path, init="nndsvda"),
        }
    squares = np.linalg.svd(V.astype(float), compute_uv=False) ** 2
    bound = np.sqrt(squares[RANK:].sum() / squares.sum())
    draw(runs, float(bound), options.picture)
    print(f"\npicture: {options.picture}")


if __name__ == "__main__":
    main()
