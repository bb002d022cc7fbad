"""Results into AnnData: `annotate`, in place, for objects and zarr stores."""

import os
import warnings
from typing import Any

import numpy as np
import zarr

from dask_nmf.annotated import axis_index, axis_names, is_store
from dask_nmf.blocks import even
from dask_nmf.io import absolute, uri_of
from dask_nmf.labels import column_names, coordinate, library, of_library
from dask_nmf.result import Result
from dask_nmf.retrying import insist
from dask_nmf.types import Array

_CHUNK_BYTES = 2**24


def annotate(adata: Any, result: Result, *, key_added: str | None = None) -> None:
    """Write a result into an AnnData object, or its zarr store, in place.

    Parameters
    ----------
    adata : AnnData, or path, URL or zarr group of its store
        With the cells (rows) that were factored, and their genes (columns) or more.
    result : Result
        Of V (cells, genes) at rank k.
    key_added : str, optional
        Under this name in each of the three, as in scanpy; None is as below.

    Notes
    -----
    Written are

    * ``obsm["X_nmf"]`` (cells, k): W.
    * ``varm["NMF"]`` (genes, k): H.T, zero for genes that were not factored.
    * ``uns["nmf"]``: "params", "error", "status", "converged", "passes" and "errors", one per
      sweep; plain data.

    Cost: no read of V. W is held in memory for an object; into a store it goes in blocks, in
    anndata's encoding. X and whatever else is in the store is left as it is.

    Raises
    ------
    TypeError, ValueError
        If it is no AnnData, or of other cells or genes; nothing is written then.
    FileNotFoundError
        If there is no store at that path.
    ImportError
        If anndata is not installed, for a store.

    Examples
    --------
    >>> import anndata, numpy as np
    >>> from dask_nmf import factorize
    >>> cells = anndata.AnnData(np.random.default_rng(0).random((30, 8)))
    >>> annotate(cells, factorize(cells, rank=2))
    >>> cells.obsm["X_nmf"].shape, cells.varm["NMF"].shape
    ((30, 2), (8, 2))
    """
    if not isinstance(result, Result):
        raise TypeError(f"result must be a dask_nmf.Result, got {type(result).__name__}")
    names = (key_added,) * 3 if key_added else ("X_nmf", "NMF", "nmf")
    if of_library(adata, "anndata") and hasattr(adata, "obs_names"):
        target = {axis: getattr(adata, f"{axis}_names").to_numpy() for axis in ("obs", "var")}
        varm = _varm(result, target["obs"], len(target["obs"]), target["var"])
        adata.obsm[names[0]] = np.asarray(result.W)
        adata.varm[names[1]], adata.uns[names[2]] = varm, told(result)
        return
    if not isinstance(adata, (str, os.PathLike, zarr.Group)):
        raise TypeError(
            "adata must be an AnnData object, or the path, URL or zarr group of its store, got "
            f"{type(adata).__name__}"
        )
    _annotate_store(_opened(adata), result, names)


def told(result: Result) -> dict[str, Any]:
    """What was asked for and what came of it, as AnnData stores it."""
    params = {name: value for name, value in result.parameters.items() if value is not None}
    return {
        "params": params | {"shape": np.array(params["shape"])},
        "error": result.error,
        "errors": np.array([record.error for record in result.history]),
        "status": result.status.name.lower(),
        "converged": result.status.converged,
        "passes": result.history[-1].passes,
    }


def _varm(result: Result, cells: Array | None, count: int, genes: Array) -> Array:
    """H.T in the order of the genes; checks that it is of these, and of these cells."""
    m, n = result.W.shape[0], result.H.shape[1]
    own = coordinate(result.labels, "obs")
    if count != m or not (own is None or cells is None or np.array_equal(own, cells)):
        raise ValueError(
            f"adata must have the cells that were factored: {m:,} rows of W, got {count:,} cells"
            + (" of other names, or in another order" if count == m else "")
        )
    H_t = np.asarray(result.H).T
    mine = column_names(result.labels)
    if len(genes) == n and (mine is None or np.array_equal(mine, genes)):
        return np.ascontiguousarray(H_t)
    order = {gene: i for i, gene in enumerate(genes)}
    if (
        mine is None
        or len(order) < len(genes)
        or not order.keys() >= set(mine)
        or len(set(mine)) < n
    ):
        raise ValueError(
            f"adata must have the genes that were factored: {n:,} columns of H, got {len(genes):,} "
            "genes" + (", not all of them by their (unique) names" if mine is not None else "")
        )
    found = np.zeros((len(genes), len(result.H)), H_t.dtype)
    found[[order[gene] for gene in mine]] = H_t
    return found


# ---------------------------------------------------------------------------------- in a store
def _opened(place: Any) -> zarr.Group:
    place = place.store_path if isinstance(place, zarr.Group) else absolute(place)
    try:  # what is written next would not be in consolidated metadata
        found = insist(
            lambda: zarr.open_group(place, mode="r+", use_consolidated=False), f"opening {place}"
        )
    except FileNotFoundError:
        raise FileNotFoundError(f"adata: there is no zarr group at {place}") from None
    if not is_store(found):
        raise ValueError(
            f"adata: the zarr group at {uri_of(found.store_path)} does not hold an AnnData object "
            "(by its attribute 'encoding-type'): name the store that AnnData.write_zarr has written"
        )
    return found


def _annotate_store(root: zarr.Group, result: Result, names: tuple[str, str, str]) -> None:
    write = library("anndata", "writing into its stores").io.write_elem
    known = coordinate(result.labels, "obs") is not None
    cells = axis_names(root, "obs") if known else None
    varm = _varm(result, cells, axis_index(root, "obs").shape[0], axis_names(root, "var"))
    size = result.W.dtype.itemsize * result.W.shape[1]
    rows = min(result.W.shape[0], max(1, _CHUNK_BYTES // size))
    # One task per chunk of the array: no two write the same one.
    W = result.W.rechunk({0: even(result.W.shape[0], rows), 1: -1})
    with warnings.catch_warnings():  # what anndata says of its next default, and zarr of strings
        warnings.simplefilter("ignore")
        for name in ("obsm", "varm", "uns"):
            if name not in root:
                write(root, name, {})
        uns: Any = root["uns"]
        if names[2] in uns:  # comes last: it says that the others are there
            del uns[names[2]]
        write(root["obsm"], names[0], W, dataset_kwargs={"chunks": (rows, W.shape[1])})
        write(root["varm"], names[1], varm)
        write(uns, names[2], told(result))
        consolidated = zarr.open_group(root.store_path, mode="r").metadata.consolidated_metadata
        if consolidated is not None:
            zarr.consolidate_metadata(root.store, path=root.path)
