"""Cubes of xarray: a scene of pixels and bands, with a mask: python cubes.py [--picture cubes.png]

`feature_dim` says which dimension is V's columns; each place in all others is a row. W comes back
as maps with the coordinates of the cube. Needs xarray: pip install "dask_nmf[xarray]"; with
matplotlib there is a picture, too. indian_pines.py and minerals.py are about a real scene.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

import dask_nmf

MATERIALS = 3


def scene(y: int = 48, x: int = 60, bands: int = 40) -> xr.DataArray:
    """Three materials, each alone in a third of the scene; one pixel in a hundred is a gap."""
    random = np.random.default_rng(0)
    wavelength = np.linspace(400, 1_000, bands)
    peaks = np.array([500, 700, 900])
    spectra = 0.05 + np.exp(-(((wavelength - peaks[:, None]) / 80) ** 2))
    where = np.repeat(np.eye(MATERIALS), x // MATERIALS, axis=0)[None] * np.ones((y, 1, 1))
    light = random.uniform(0.5, 1.5, (y, x, 1))
    values = light * where @ spectra + 0.02 * random.random((y, x, bands))
    values[random.random((y, x)) < 0.01] = np.nan
    coords = {"wavelength": wavelength, "x": 30.0 * np.arange(x), "y": 30.0 * np.arange(y)}
    return xr.DataArray(values, coords, ("y", "x", "wavelength")).chunk(y=24, x=30)


def main(folder: Path, picture: Path | None) -> None:
    V = scene()
    out = folder / "factors.zarr"
    land = V.y > 150  # no lake: of pixels without weight W is 0
    result = dask_nmf.factorize(
        V,
        MATERIALS,
        feature_dim="wavelength",
        weights=land,
        missing="nan",
        out=out,
        tol=1e-3,
    )
    maps = dask_nmf.open_result(out).to_xarray()  # lazy: W (y, x, component), H
    print(maps.W.dims, maps.H.dims, f"error {result.error:.3f}")
    for k in range(MATERIALS):
        peak = float(maps.H.wavelength[maps.H[k].argmax("wavelength")])
        west = float(maps.W.isel(component=k).mean("y").idxmax("x"))
        print(f"component {k}: peak at {peak:.0f} nm, brightest {west:.0f} m east")
    print(f"light in the lake: {float(maps.W.where(~land).sum()):g}")
    if picture is not None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 3), layout="constrained")
        for k, ax in enumerate(figure.subplots(1, MATERIALS)):
            maps.W.isel(component=k).plot(ax=ax)
        figure.savefig(picture)
        print(f"picture: {picture}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Cubes of xarray.")
    parser.add_argument("--picture", type=Path)
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary), parser.parse_args().picture)
