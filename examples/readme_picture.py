"""The picture on the README's first screen: python readme_picture.py indian_pines.npz

The .npz is that of minerals.py. Above where each of four materials is (columns of W), below its
spectrum (rows of H).
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image  # comes with matplotlib

import dask_nmf


def main() -> None:
    parser = argparse.ArgumentParser(description="The picture on the README's first screen.")
    parser.add_argument("data", type=Path, help="indian_pines.npz")
    parser.add_argument("--picture", type=Path, default=Path(__file__).with_suffix(".png"))
    options = parser.parse_args()

    cube = np.load(options.data)["cube"].astype(np.float32)
    lines, samples, bands = cube.shape
    V = cube.reshape(-1, bands)
    V = V - V.min(axis=0)  # without the haze that all pixels have: it would be in every spectrum
    result = dask_nmf.factorize(V, rank=4)
    print(result)

    figure = Figure(figsize=(8.4, 3.3), layout="constrained")
    axes = figure.subplots(2, 4, height_ratios=[2, 1])
    for j, (above, below) in enumerate(axes.T):
        dask_nmf.plot_map(result, j, (lines, samples), ax=above)
        micrometres = np.linspace(0.4, 2.5, bands)
        dask_nmf.plot_component(result, j, names=micrometres, ax=below)
        below.set(title="", xlabel="wavelength, µm", ylabel="", yticks=[])
    figure.savefig(options.picture, dpi=110)
    with Image.open(options.picture) as picture:  # 128 colours take a third of the bytes
        picture.convert("RGB").quantize(128).save(options.picture, optimize=True)
    print(f"\npicture: {options.picture}")


if __name__ == "__main__":
    main()
