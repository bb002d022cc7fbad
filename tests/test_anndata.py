"""AnnData as V and for the results: as its plain matrix, and as anndata itself reads it."""

import logging
import warnings
from pathlib import Path
from typing import Any

import anndata
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import zarr

import dask_nmf
from dask_nmf import annotated, cli
from tests.conftest import low_rank

M, N = 60, 14
FEW: dict[str, Any] = {"rank": 3, "max_passes": 5, "tol": 0}
DENSE = np.where(np.random.default_rng(0).random((M, N)) < 0.4, low_rank(M, N, 3), 0)


def cells(X: Any = None) -> Any:
    """60 cells and 14 genes, with layers, as scanpy would have them."""
    counts = scipy.sparse.csr_matrix(DENSE) if X is None else X
    obs = pd.DataFrame({"n": np.arange(M)}, index=[f"cell{i}" for i in range(M)])
    var = pd.DataFrame(index=[f"gene{j}" for j in range(N)])
    layers = {"twice": scipy.sparse.csr_matrix(2 * DENSE), "dense": 3 * DENSE}
    return anndata.AnnData(counts, obs=obs, var=var, layers=layers)


def _write(adata: Any, path: Path, zarr_format: int) -> Path:
    with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=zarr_format):
        warnings.simplefilter("ignore")  # its own, about its formats
        adata.write_zarr(path)
    return path


@pytest.fixture(params=[2, 3])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return _write(cells(), tmp_path / "cells.zarr", request.param)


def assert_like(result: Any, V: Any) -> None:
    """What the plain matrix gives, by one name for each gene."""
    expected = dask_nmf.factorize(V, **FEW)
    np.testing.assert_allclose(result.H, expected.H, rtol=1e-12)
    np.testing.assert_allclose(result.W.compute(), expected.W.compute(), rtol=1e-12)
    largest = [f"gene{j}" for j in np.argmax(expected.H, axis=1)]
    assert list(result.top_features(1).feature) == largest


@pytest.mark.parametrize("kind", ["csr", "csr_array", "dense", "dask", "sparse dask"])
def test_in_memory(kind: str) -> None:
    sparse = scipy.sparse.csr_matrix(DENSE)
    blocks = da.from_array(DENSE, chunks=(25, N))
    X = {
        "csr": sparse,
        "csr_array": scipy.sparse.csr_array(DENSE),
        "dense": DENSE,
        "dask": blocks,
        "sparse dask": blocks.map_blocks(scipy.sparse.csr_matrix),
    }[kind]
    adata = cells(X)
    assert_like(dask_nmf.factorize(adata, **FEW), X)
    assert_like(dask_nmf.factorize(adata, layer="dense", **FEW), 3 * DENSE)


def test_names_in_maps() -> None:
    found = dask_nmf.factorize(cells(), **FEW).to_xarray()
    assert found.W.dims == ("obs", "component")
    assert found.W.sel(obs="cell7").equals(found.W[7])
    assert found.H.sel(var="gene5").equals(found.H[:, 5])


@pytest.mark.parametrize("layer", [None, "twice", "dense"])
def test_a_store(store: Path, layer: str | None) -> None:
    """Read as the sparse groups and arrays that they are."""
    plain = str(store / "X" if layer is None else store / "layers" / layer)
    for V in (store, str(store), zarr.open_group(store, mode="r")):
        result = dask_nmf.factorize(V, layer=layer, **FEW)
        assert_like(result, plain)
        assert result.parameters["V"] == f"file://{plain}"
    seen: Any = dask_nmf.plan(store, 3, layer=layer).shape
    assert seen == (M, N)
    with pytest.raises(TypeError, match="weights must be a dense array, got a sparse one"):
        dask_nmf.factorize(DENSE, weights=store, **FEW)
    lazy = anndata.io.sparse_dataset(zarr.open_group(store / "X", mode="r"))
    assert_like(dask_nmf.factorize(cells(lazy), **FEW), str(store / "X"))


@pytest.mark.parametrize("X", [scipy.sparse.csr_matrix(DENSE), DENSE], ids=["sparse", "dense"])
def test_backed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, X: Any) -> None:
    """An .h5ad file is read in blocks of rows."""
    cells(X).write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    monkeypatch.setattr(annotated, "_BLOCK_BYTES", 2000)
    V, _ = annotated.open_anndata(backed, None)
    assert V.numblocks[0] > 1
    assert_like(dask_nmf.factorize(backed, **FEW), X)
    with pytest.raises(ValueError, match="view of an AnnData on disk.*to_memory"):
        dask_nmf.factorize(backed[:, :5], **FEW)
    backed.file.close()


def test_in_place() -> None:
    adata = cells()
    result = dask_nmf.factorize(adata, layer="twice", **FEW)
    dask_nmf.annotate(adata, result)
    dask_nmf.annotate(adata, result, key_added="k3")
    for names in (("X_nmf", "NMF", "nmf"), ("k3", "k3", "k3")):
        np.testing.assert_array_equal(adata.obsm[names[0]], result.W.compute())
        np.testing.assert_array_equal(adata.varm[names[1]], result.H.T)
        found = adata.uns[names[2]]
        assert found["params"]["rank"] == 3
        assert (found["error"], found["status"]) == (result.error, "max_passes")
        assert list(found["errors"]) == [record.error for record in result.history]


def test_both_files(tmp_path: Path, store: Path) -> None:
    """What anndata reads is what was there, and the results; X is not written again."""
    result = dask_nmf.factorize(store, **FEW)
    before = {path: path.stat().st_mtime_ns for path in (store / "X").rglob("*")}
    dask_nmf.annotate(store, result)
    dask_nmf.annotate(store, result)  # replaces
    assert before == {path: path.stat().st_mtime_ns for path in (store / "X").rglob("*")}
    adata = cells()
    dask_nmf.annotate(adata, result)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    for found in (anndata.read_zarr(store), anndata.read_h5ad(tmp_path / "cells.h5ad")):
        np.testing.assert_array_equal(found.X.toarray(), DENSE)
        np.testing.assert_array_equal(found.obsm["X_nmf"], result.W.compute())
        np.testing.assert_array_equal(found.varm["NMF"], result.H.T)
        assert found.uns["nmf"]["error"] == result.error
        assert found.uns["nmf"]["params"]["solver"] == result.parameters["solver"]
        assert sorted(found.layers) == ["dense", "twice"]
        assert found.obs.equals(adata.obs)


def test_a_large_W_goes_in_blocks(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask_nmf.annotating._CHUNK_BYTES", 500)
    result = dask_nmf.factorize(store, block_rows=7, **FEW)
    dask_nmf.annotate(zarr.open_group(store), result)
    stored: Any = zarr.open_group(store, mode="r")["obsm/X_nmf"]
    assert stored.chunks == (20, 3)
    np.testing.assert_array_equal(stored[:], result.W.compute())


def test_some_of_the_genes(tmp_path: Path) -> None:
    """As scanpy's PCA of highly variable genes: the others are zero. By name, not by place."""
    adata, some = cells(), ["gene9", "gene2", "gene4", "gene11"]
    result = dask_nmf.factorize(adata[:, some].copy(), **FEW)
    store = _write(adata, tmp_path / "cells.zarr", 3)
    dask_nmf.annotate(adata, result)
    dask_nmf.annotate(store, result)
    for found in (adata, anndata.read_zarr(store)):
        frame = pd.DataFrame(found.varm["NMF"], index=found.var_names)
        np.testing.assert_array_equal(frame.loc[some], result.H.T)
        assert not frame.drop(index=some).to_numpy().any()


def test_the_command(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = store.parent / "out.zarr"
    fit = ["fit", str(store), str(out), "--rank", "3", "--layer", "twice", "--quiet"]
    try:
        assert cli.main([*fit, "--max-passes", "5", "--tol", "0"]) == cli.DONE
    finally:
        logging.getLogger("dask_nmf").setLevel(logging.NOTSET)
    capsys.readouterr()
    expected = dask_nmf.factorize(cells(), layer="twice", **FEW)
    found = dask_nmf.open_result(out)
    np.testing.assert_allclose(found.H, expected.H, rtol=1e-12)
    dask_nmf.annotate(store, found)
    np.testing.assert_array_equal(anndata.read_zarr(store).obsm["X_nmf"], found.W.compute())


def test_bad_input(store: Path, tmp_path: Path) -> None:
    adata = cells()
    for V in (adata, store):
        with pytest.raises(ValueError, match="no layer 'log'; layer must be one of dense, twice"):
            dask_nmf.factorize(V, layer="log", **FEW)
    with pytest.raises(ValueError, match="this AnnData has no X; layer must be one of dense"):
        dask_nmf.factorize(anndata.AnnData(layers={"dense": DENSE}), **FEW)
    with pytest.raises(TypeError, match="layer is for an AnnData object.*got ndarray"):
        dask_nmf.factorize(DENSE, layer="log", **FEW)
    scipy_csc = cells(scipy.sparse.csc_matrix(DENSE))
    scipy_csc.write_h5ad(tmp_path / "csc.h5ad")
    backed = anndata.read_h5ad(tmp_path / "csc.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"not be a CSC matrix in an \.h5ad file"):
        dask_nmf.factorize(backed, **FEW)
    backed.file.close()


def test_bad_targets(store: Path, tmp_path: Path) -> None:
    adata, result = cells(), dask_nmf.factorize(cells(), **FEW)
    wrong: list[tuple[Any, str]] = [
        (adata[:50].copy(), "60 rows of W, got 50 cells"),
        (adata[::-1].copy(), "60 cells of other names, or in another order"),
        (adata[:, :7].copy(), "14 columns of H, got 7 genes, not all of them"),
        (_write(adata[::-1].copy(), tmp_path / "turned.zarr", 3), "in another order"),
        (store / "obs", "does not hold an AnnData object"),
    ]
    for target, text in wrong:
        with pytest.raises(ValueError, match=text):
            dask_nmf.annotate(target, result)
    assert not wrong[0][0].obsm
    assert not list(zarr.open_group(tmp_path / "turned.zarr", mode="r")["obsm"])  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no zarr group at"):
        dask_nmf.annotate(tmp_path / "nothing.zarr", result)
    with pytest.raises(TypeError, match="adata must be an AnnData object.*got ndarray"):
        dask_nmf.annotate(DENSE, result)
    with pytest.raises(TypeError, match=r"must be a dask_nmf\.Result, got ndarray"):
        dask_nmf.annotate(adata, DENSE)  # type: ignore[arg-type]
