"""DataArrays as V: the same numbers as their plain matrix gives, and maps with coordinates."""

import json
import os
import pickle
from itertools import product
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray
import zarr

import dask_nmf
from dask_nmf import cli
from dask_nmf.blocks import Grid
from dask_nmf.io import open_weighted
from tests.conftest import Array, low_rank
from tests.stores import CountingStore

SIZES = {"band": 11, "y": 7, "x": 9}
CHUNKS = {"band": 4, "y": 3, "x": 5}
FEW: dict[str, Any] = {"rank": 3, "max_passes": 6, "tol": 0}


def cube(**coords: Any) -> Any:
    """(band, y, x), of rank 3 and some noise, with coordinates of several kinds."""
    values = low_rank(63, 11, 3).reshape(7, 9, 11).transpose(2, 0, 1)
    latitudes = np.add.outer(np.arange(7.0), np.arange(9.0))
    told = {
        "band": np.linspace(400.0, 900.0, 11),
        "y": pd.date_range("2026-01-01", periods=7),
        "x": list("abcdefghi"),
        "lat": (("y", "x"), latitudes, {"units": "degrees"}),
        "crs": ((), 0, {"wkt": "LOCAL"}),
        **coords,
    }
    return xarray.DataArray(values, dims=tuple(SIZES), coords=told, name="radiance")


def matrix(values: Array, chunks: dict[str, int] | None = None) -> tuple[Array, list[Any]]:
    """The rows of a (band, y, x) array, block by block, by hand; and where each is."""
    sizes = chunks or SIZES
    where = [
        (i, j)
        for y, x in product(range(0, 7, sizes["y"]), range(0, 9, sizes["x"]))
        for i, j in product(range(y, min(7, y + sizes["y"])), range(x, min(9, x + sizes["x"])))
    ]
    return np.array([values[:, i, j] for i, j in where]), where


def coords(x: Any) -> Any:
    return xarray.Dataset(coords=x.coords)


def assert_maps(found: Any, W: Array, where: list[Any]) -> None:
    """Each row of W is where its row of V was."""
    maps = found.W.values
    for row, (i, j) in zip(W, where, strict=True):
        np.testing.assert_array_equal(maps[i, j], row)


@pytest.mark.parametrize("chunks", [None, CHUNKS, {"band": 11, "y": 7, "x": 2}])
def test_a_cube_is_its_matrix(chunks: dict[str, int] | None) -> None:
    V = cube() if chunks is None else cube().chunk(chunks)
    result = dask_nmf.factorize(V, feature_dim="band", **FEW)
    rows, where = matrix(V.values, chunks)
    expected = dask_nmf.factorize(rows, **FEW)
    found = result.to_xarray()
    assert isinstance(found.W.data, da.Array)
    np.testing.assert_allclose(found.H, expected.H, rtol=1e-12)
    np.testing.assert_allclose(result.W.compute(), expected.W.compute(), rtol=1e-12)
    assert_maps(found, result.W.compute(), where)
    assert found.W.dims == ("y", "x", "component")
    assert found.H.dims == ("component", "band")
    assert coords(found).identical(coords(V))
    product_ = (found.W @ found.H).transpose("band", "y", "x")
    assert float(np.linalg.norm(product_ - V) / np.linalg.norm(V)) == pytest.approx(result.error)


def test_any_number_of_dimensions() -> None:
    values = low_rank(120, 8, 2).reshape(2, 3, 4, 5, 8)
    V = xarray.DataArray(values, dims=("t", "z", "y", "x", "channel"))
    found = dask_nmf.factorize(V.chunk(z=2, x=3), 2, feature_dim="channel").to_xarray()
    assert found.W.shape == (2, 3, 4, 5, 2)
    np.testing.assert_allclose((found.W @ found.H).values, values, atol=0.12)  # the noise is 0.1
    flat = V[0, 0, 0]  # of two dimensions the last is the columns
    np.testing.assert_array_equal(
        dask_nmf.factorize(flat, **FEW).H, dask_nmf.factorize(flat.values, **FEW).H
    )


def _tasks(V: Any, **options: Any) -> int:
    """What dask runs for the blocks of a pass."""
    found = open_weighted(V, "error", None, **options)
    blocks = found.blocks(Grid(found.source.chunks[0], (found.shape[1],)))
    return len(dask.optimize(blocks)[0].__dask_graph__())


@pytest.mark.parametrize("size", [12, 48])
def test_folding_adds_no_task(size: int) -> None:
    values = da.random.random((6, size, size), chunks=(3, 4, 4))
    rows = da.random.random((size**2, 6), chunks=(16, 3))
    V = xarray.DataArray(values, dims=tuple(SIZES))
    assert _tasks(V, feature_dim="band") == _tasks(rows) <= 3 * values.npartitions


def test_each_chunk_is_read_once_in_a_pass(tmp_path: Path) -> None:
    V = cube().drop_vars("x").chunk(CHUNKS)
    V.to_zarr(tmp_path / "cube.zarr", zarr_format=3, consolidated=False)
    store = CountingStore(zarr.storage.LocalStore(tmp_path / "cube.zarr"), tmp_path / "log")
    V = xarray.open_zarr(store, consolidated=False).radiance
    store.reset()
    result = dask_nmf.factorize(V, feature_dim="band", **FEW)
    reads = {key: n for key, n in store.reads().items() if key.startswith("radiance/c/")}
    assert len(reads) == 3 * 3 * 2
    assert set(reads.values()) == {result.history[-1].passes}


@pytest.mark.parametrize("chunks", [None, CHUNKS])
def test_gaps(chunks: dict[str, int] | None) -> None:
    """NaN, and a mask without bands, hide what plain weights hide."""
    V = cube()
    seen = xarray.DataArray(np.random.default_rng(0).random((9, 7)) < 0.8, dims=("x", "y"))
    seen = seen.assign_coords(x=V.x)
    V, whole = (V, V) if chunks is None else (V.chunk(chunks), V)
    rows, where = matrix(whole.values, chunks)
    M, _ = matrix(np.broadcast_to(seen.values.T, (11, 7, 9)), chunks)
    expected = dask_nmf.factorize(rows, weights=M, **FEW)
    masked = dask_nmf.factorize(V, weights=seen, feature_dim="band", **FEW)
    gaps = dask_nmf.factorize(V.where(seen), missing="nan", feature_dim="band", **FEW)
    for result in (masked, gaps):
        np.testing.assert_allclose(result.H, expected.H, rtol=1e-9)
        np.testing.assert_allclose(result.W.compute(), expected.W.compute(), rtol=1e-9, atol=1e-12)
        assert_maps(result.to_xarray(), result.W.compute(), where)
        assert not result.to_xarray().W.where(~seen, 0).any()
    with pytest.raises(ValueError, match="row .* holds nan"):
        dask_nmf.factorize(V.where(seen), feature_dim="band", **FEW)


def test_written_and_opened_again(tmp_path: Path) -> None:
    V = cube().chunk(CHUNKS)
    call: dict[str, Any] = {"feature_dim": "band", "out": tmp_path / "out.zarr", **FEW}
    made = dask_nmf.factorize(V, **call)
    again = dask_nmf.factorize(V, **call)
    assert again.resumed_from == 6
    opened = dask_nmf.open_result(tmp_path / "out.zarr")
    for result in (again, opened, pickle.loads(pickle.dumps(made))):
        assert result.to_xarray().identical(made.to_xarray())
        assert result.top_features(2).equals(made.top_features(2))
    with pytest.raises(FileExistsError, match=r"rows y x x in 3 x 2 .* \(now y x x in 1 x 1 "):
        dask_nmf.factorize(cube(), **call)
    # They are coordinates for xarray's own reader, too; replaced by those of the next result.
    options: dict[str, Any] = {"group": "labels", "consolidated": False}
    plain = xarray.open_zarr(tmp_path / "out.zarr", **options)
    assert coords(plain.set_coords(list(plain))).identical(coords(V))
    bare = dask_nmf.factorize(matrix(V.values)[0], out=tmp_path / "out.zarr", overwrite=True, **FEW)
    assert "labels" not in zarr.open_group(tmp_path / "out.zarr", mode="r")
    assert bare.to_xarray().W.dims == ("row", "component")


def test_many_runs(tmp_path: Path) -> None:
    V = cube().chunk(CHUNKS)
    call: dict[str, Any] = {"restarts": 2, "max_passes": 5, "tol": 0, "feature_dim": "band"}
    found = dask_nmf.scan(V, 3, out=tmp_path / "out.zarr", **call)
    best = dask_nmf.factorize(V, 3, **call)
    assert best.error == found.best(3).error
    assert best.to_xarray().identical(dask_nmf.open_scan(tmp_path / "out.zarr").best(3).to_xarray())
    assert found.consensus(3).W.shape == (63, 3)
    assert dask_nmf.plan(V, 3, feature_dim="band").shape == (63, 11)


def test_transform_gives_maps() -> None:
    V = cube().chunk(CHUNKS)
    H = dask_nmf.factorize(V, feature_dim="band", **FEW).to_xarray().H
    found = dask_nmf.transform(V, H, feature_dim="band")
    assert isinstance(found.data, da.Array)
    expected = dask_nmf.transform(matrix(V.values)[0], H).compute().reshape(7, 9, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert found.dims == ("y", "x", "component")
    assert set(found.coords) == {"y", "x", "lat", "crs"}


def test_a_multiindex(tmp_path: Path) -> None:
    """Kept as it is; in a store its levels are, as xarray itself would need."""
    V = cube().stack(pixel=("y", "x")).transpose("pixel", "band")
    result = dask_nmf.factorize(V, out=tmp_path / "out.zarr", **FEW)
    maps = result.to_xarray().unstack("pixel")
    assert maps.W.transpose("y", "x", "component").equals(
        dask_nmf.factorize(cube(), feature_dim="band", **FEW).to_xarray().W
    )
    opened = dask_nmf.open_result(tmp_path / "out.zarr").to_xarray()
    assert opened.set_index(pixel=("y", "x")).unstack("pixel").W.identical(maps.W)


@pytest.mark.parametrize("shards", [None, (11, 8, 8)])
def test_a_path_and_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shards: Any
) -> None:
    """Blocks are the chunks that are stored, or whole shards, whatever xarray takes."""
    path = tmp_path / "cube.zarr"
    V = cube(x=np.arange(9.0))
    encoding = {"radiance": {"chunks": (11, 4, 4), "shards": shards}}
    V.to_zarr(path, zarr_format=3, consolidated=False, encoding=encoding)
    V.notnull().rename("seen").to_zarr(path, mode="a", zarr_format=3, consolidated=False)
    step = 8 if shards else 4
    expected = dask_nmf.factorize(V.chunk(band=11, y=step, x=step), feature_dim="band", **FEW)
    fit = ["fit", f"{path}/radiance", str(tmp_path / "out.zarr"), "--rank", "3", "--quiet"]
    options = ["--feature-dim", "band", "--max-passes", "6", "--tol", "0"]
    assert cli.main([*fit, *options]) == cli.DONE
    assert json.loads(capsys.readouterr().out)["V"] == f"file://{path}/radiance"
    found = dask_nmf.open_result(tmp_path / "out.zarr").to_xarray()
    assert found.identical(expected.to_xarray())
    assert cli.main(["plan", *fit[1:2], *fit[3:5], *options[:2], "--json"]) == cli.DONE
    assert json.loads(capsys.readouterr().out)["shape"] == [63, 11]
    lazy = xarray.open_zarr(path, chunks=None, consolidated=False).radiance
    assert dask_nmf.factorize(lazy, feature_dim="band", **FEW).to_xarray().identical(found)
    seen = dask_nmf.factorize(f"{path}/radiance", weights=f"{path}/seen", feature_dim="band", **FEW)
    assert seen.to_xarray().W.shape == (7, 9, 3)


def test_top_features(monkeypatch: pytest.MonkeyPatch) -> None:
    H = np.array([[0.0, 3, 1, 3], [5, 0, 0, 0]])
    result = dask_nmf.factorize(
        np.eye(2) @ H, 2, init=(np.eye(2), H), solver="mu", max_passes=3, tol=0
    )
    expected = [(0, 1), (0, 3), (0, 2), (1, 0)]  # ties in the columns' order; no zeros
    found = result.top_features()
    assert [tuple(row) for row in found[["component", "feature"]].to_numpy()] == expected
    names = ["a", "b", "c", "d"]
    assert list(result.top_features(1, names).feature) == ["b", "a"]
    with pytest.raises(ValueError, match=r"names must be 4, one per column, got shape \(3,\)"):
        result.top_features(1, names[:3])
    with pytest.raises(ValueError, match="n must be at least 1"):
        result.top_features(0)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    assert [row["feature"] for row in result.top_features(1, names)] == ["b", "a"]


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"V": cube()}, ValueError, r"feature_dim must be one of .*'band', 'y', 'x'.*got None"),
    ({"V": cube(), "feature_dim": "z"}, ValueError, "got 'z'"),
    ({"V": cube()[0, 0], "feature_dim": "x"}, ValueError, "at least 2 dimensions"),
    ({"V": cube().to_dataset(), "feature_dim": "band"}, TypeError, r"such as V\['radiance'\]"),
    ({"V": cube().rename(x="W"), "feature_dim": "band"}, ValueError, "other names than W, H"),
    ({"V": cube().values[0], "feature_dim": "x"}, TypeError, "feature_dim is for an xarray"),
    ({"V": cube(), "feature_dim": "x", "layer": "y"}, ValueError, "pass one of them"),
    ({"V": cube(), "layer": "y"}, TypeError, "layer is for an AnnData"),
    ({"V": "nothing.zarr/V", "feature_dim": "x"}, FileNotFoundError, "V: there is no zarr group"),
    (
        {"V": cube(), "feature_dim": "band", "weights": np.ones((11, 7, 9))},
        TypeError,
        "weights must be a DataArray",
    ),
    (
        {"V": cube(), "feature_dim": "band", "weights": cube().isel(y=slice(3))},
        ValueError,
        "weights must have the coordinates and sizes of V",
    ),
    (
        {"V": cube(), "feature_dim": "band", "weights": cube().expand_dims("t")},
        ValueError,
        "weights must have dims of V.*got t too",
    ),
    (
        {"V": cube(odd=("y", [object()] * 7)), "feature_dim": "band", "out": "out.zarr"},
        ValueError,
        "coordinates that zarr cannot hold.*drop_vars",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), BAD)
def test_bad_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: dict[str, Any],
    error: type[Exception],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=text):
        dask_nmf.factorize(**call, **FEW)
    assert os.listdir(tmp_path) == []
