"""What new users typed, and what they are told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import dask_nmf
from tests.conftest import low_rank

V = low_rank(30, 10, 3, noise=0.2)
FEW: dict[str, Any] = {"tol": 0, "max_passes": 4}


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-163, 1e-158])
def test_V_whose_squares_are_lost_is_refused(scale: float) -> None:
    """It was an exact fit, at 1e-200."""
    with pytest.raises(ValueError, match="multiply V by a constant"):
        dask_nmf.factorize(V * scale, 3, **FEW)


def test_zeros_are_no_such_V() -> None:
    assert dask_nmf.factorize(np.zeros((6, 4)), 2, **FEW).error == 0


def test_transform_knows_the_columns() -> None:
    xarray = pytest.importorskip("xarray")
    coords = {"band": 400 + 10 * np.arange(10)}
    cube = xarray.DataArray(V.reshape(5, 6, 10), dims=("y", "x", "band"), coords=coords)
    told: dict[str, Any] = {"feature_dim": "band"}
    result = dask_nmf.factorize(cube, 3, **told, **FEW)
    backwards = cube.isel(band=slice(None, None, -1))
    right = dask_nmf.transform(cube, result.H, **told)
    for H in (result, result.to_xarray(), result.to_xarray().H):
        assert np.array_equal(dask_nmf.transform(cube, H, **told), right)
        with pytest.raises(ValueError, match="column 0 is 490 in V and 400 in H"):
            dask_nmf.transform(backwards, H, **told)
    assert dask_nmf.transform(V, result).shape == (30, 3)  # columns without names


def test_a_scan_is_not_taken_for_something_else(tmp_path: Path) -> None:
    dask_nmf.factorize(V, 2, restarts=2, out=tmp_path / "out.zarr", **FEW)
    with pytest.raises(FileExistsError, match="holds the runs of a scan"):
        dask_nmf.factorize(V, 2, out=tmp_path / "out.zarr", **FEW)


def test_components_that_are_zero_are_told() -> None:
    assert "3 components are zero" in repr(dask_nmf.factorize(V, 3, alpha_W=100.0, **FEW))
    assert "zero" not in repr(dask_nmf.factorize(V, 3, **FEW))


def test_a_rank_above_V() -> None:
    assert "rank 11 is above the 10 columns" in dask_nmf.plan(V, 11).advice[0]
    assert not dask_nmf.plan(V, 10).advice


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "V.h5ad").write_bytes(b"...")
    with pytest.raises(FileNotFoundError, match=r"but a file: dask-nmf convert .*read_h5ad"):
        dask_nmf.factorize(tmp_path / "V.h5ad", 2)
    with pytest.raises(FileNotFoundError, match=r"'[^']*none.zarr'$"):
        dask_nmf.factorize(tmp_path / "none.zarr", 2)
    zarr.create_array(tmp_path / "cube.zarr", data=np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="or pass feature_dim="):
        dask_nmf.factorize(tmp_path / "cube.zarr", 2)


def test_a_frame() -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match=r"pass V.to_numpy\(\)"):
        dask_nmf.factorize(pandas.DataFrame(V), 2)


@pytest.mark.parametrize("beta", [50, -11.0])
def test_powers_beyond_use(beta: float) -> None:
    """It was converged after a sweep, with nothing fitted."""
    with pytest.raises(ValueError, match="beta must be from -10 to 10"):
        dask_nmf.factorize(V, 3, loss=beta)
