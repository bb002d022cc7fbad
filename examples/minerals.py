"""What a landscape is made of: python minerals.py indian_pines.npz [--rank 5]

The .npz holds `cube` (145, 145, 200): the AVIRIS scene Indian Pines, pixels x pixels x bands. The
light of a pixel is a sum of the spectra of what lies in it: H holds the spectra, W how much of each
is in a pixel. Which of the spectra can be trusted? Those that every start finds. So several ranks
are tried, from several starts each, all of which share each read of V, and the maps are those of
the median spectra, found by one read more. Needs pandas; with matplotlib, there is a picture too.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dask_nmf

RANKS = range(3, 8)
COLUMNS = ["error", "error_worst", "stability", "stability_least", "cophenetic", "passes"]


def chosen(found: dask_nmf.Scan, rank: int | None) -> int:
    """The rank that was asked for, or is suggested; else the last with components alike."""
    if rank is not None or len(found.ranks) == 1:
        return rank or found.ranks[0]
    suggestion = found.suggest()
    print(f"\n{suggestion}")
    return suggestion.rank or suggestion.votes["stability"] or found.ranks[0]


def draw(found: dask_nmf.Scan, rank: int, maps: NDArray[Any], picture: Path) -> None:
    """Above the maps (145, 145, rank); below, the spectra and what speaks for the rank."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('\nno picture: pip install "dask_nmf[plots]"')
        return
    figure = Figure(figsize=(13, 8), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[1, 1.9])
    above, below = parts
    axes = above.subplots(1, rank, squeeze=False)[0]
    for j, ax in enumerate(axes):
        shown = maps[:, :, j] / np.percentile(maps[:, :, j], 99.5)
        drawn = ax.imshow(shown, vmin=0, vmax=1, cmap="viridis")
        ax.set_title(f"component {j}")
        ax.set_axis_off()
    above.colorbar(drawn, ax=axes, shrink=0.7, label="abundance / its maximum")
    left, right = below.subplots(1, 2)
    dask_nmf.plot_components(found, rank, ax=left)
    left.set(xlabel="band, 0.4 to 2.5 µm", ylabel="spectrum (its stability)")
    dask_nmf.plot_ranks(found, ax=right)
    figure.savefig(picture, dpi=110)
    print(f"\npicture: {picture}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What a landscape is made of.")
    parser.add_argument("data", type=Path, help="indian_pines.npz")
    parser.add_argument("--rank", type=int, help="spectra; none: as suggested")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, help="that are tried")
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--picture", type=Path, default="minerals.png")
    options = parser.parse_args()

    cube = np.load(options.data)["cube"].astype(np.float32)
    V = cube.reshape(-1, cube.shape[2])
    V = V - V.min(axis=0)  # without the haze that all pixels have: it would be in every spectrum
    ranks = sorted({*options.ranks, *([options.rank] if options.rank else [])})
    found = dask_nmf.scan(V, ranks, restarts=options.restarts)
    print(found.table()[COLUMNS].round(3).to_string())

    rank = chosen(found, options.rank)
    agreed = found.consensus(rank)
    W = agreed.W.compute()
    error = np.linalg.norm(V - W @ agreed.H) / np.linalg.norm(V)
    print(
        f"\nrank {rank}: error {error:.4f} of the medians, {found.best(rank).error:.4f} of the best"
    )
    light = W.mean(axis=0) * agreed.H.mean(axis=1)
    print("component  light  stability  brightest band")
    for j, stability in enumerate(found.stability(rank)):
        share, band = light[j] / light.sum(), int(agreed.H[j].argmax())
        print(f"{j:>9}  {share:>5.0%}  {stability:>9.2f}  {band:>14}")
    draw(found, rank, W.reshape(*cube.shape[:2], rank), options.picture)


if __name__ == "__main__":
    main()
