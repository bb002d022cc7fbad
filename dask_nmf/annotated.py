"""V from AnnData, in memory or in a store: X or a layer, never read whole."""

from typing import Any

import zarr

from dask_nmf.labels import Labels, library, of_library
from dask_nmf.retrying import insist
from dask_nmf.types import Array

_BLOCK_BYTES = 2**25  # of an .h5ad file, in a dask block


def is_store(x: Any) -> bool:
    """Whether it is the zarr group that holds an AnnData object."""
    return isinstance(x, zarr.Group) and x.attrs.get("encoding-type") == "anndata"


def open_store(group: zarr.Group, layer: str | None) -> tuple[Any, Labels]:
    """The array or sparse group of X or the layer, with the names of its columns.

    Raises
    ------
    ValueError
        If there is none.
    """
    where, place = group.store_path, "X" if layer is None else f"layers/{layer}"
    found = insist(lambda: group.get(place), f"V: opening {where}/{place}")
    if found is None:
        layers: Any = group.get("layers")
        told = sorted({*layers.array_keys(), *layers.group_keys()}) if layers is not None else []
        raise _no_such(str(where), layer, told)
    return found, Labels(("obs",), "var", coords={"var": axis_names(group, "var")})


def axis_index(group: zarr.Group, axis: str) -> Any:
    """The array of the names of "obs" or "var" in a store."""
    frame: Any = group[axis]
    found = frame[frame.attrs["_index"]]
    return found if isinstance(found, zarr.Array) else found["values"]  # with a mask beside them


def axis_names(group: zarr.Group, axis: str) -> Array:
    """The names of "obs" or "var" in a store; as anndata writes them."""
    index = axis_index(group, axis)
    names: Array = insist(lambda: index[:], f"reading {index.store_path}").astype(object)
    return names


def open_anndata(adata: Any, layer: str | None) -> tuple[Any, Labels]:
    """X or a layer of an AnnData object, as it is or lazily from its file, and the names.

    Raises
    ------
    ValueError
        If there is none; or if anndata would read it whole.
    """
    if layer is not None and (not isinstance(layer, str) or layer not in adata.layers):
        raise _no_such("this AnnData", layer, sorted(adata.layers))
    if layer is None and adata.isbacked and adata.is_view:
        raise ValueError(
            "V must not be a view of an AnnData on disk, which anndata would read whole: pass "
            "V.to_memory(), or write the view to a zarr store and pass that"
        )
    X = adata.X if layer is None else adata.layers[layer]
    if X is None:
        raise _no_such("this AnnData", layer, sorted(adata.layers))
    names = {"obs": adata.obs_names.to_numpy(), "var": adata.var_names.to_numpy()}
    return _from_disk(X), Labels(("obs",), "var", coords=names)


def _from_disk(X: Any) -> Any:
    """What anndata has on disk, as what is read in blocks; all else as it is."""
    if of_library(X, "anndata") and hasattr(X, "group"):
        if isinstance(X.group, zarr.Group):
            return X.group
        if X.format == "csc":
            raise ValueError(
                "V must not be a CSC matrix in an .h5ad file, whose rows cannot be read: "
                "dask_nmf.convert makes a CSR copy in zarr"
            )
        row_bytes = X.group["data"].nbytes + X.group["indices"].nbytes
        return _lazily(X.group, X.shape, row_bytes // X.shape[0])
    if of_library(X, "h5py"):
        return _lazily(X, X.shape, X.dtype.itemsize * X.shape[1])
    return X


def _lazily(element: Any, shape: tuple[int, int], row_bytes: int) -> Any:
    read = library("anndata", "an .h5ad file").experimental.read_elem_lazy
    rows = min(shape[0], max(1, _BLOCK_BYTES // max(1, row_bytes)))
    return read(element, chunks=(rows, shape[1]))


def _no_such(where: str, layer: str | None, layers: list[str]) -> ValueError:
    wanted = "X" if layer is None else f"layer {layer!r}"
    return ValueError(
        f"V: {where} has no {wanted}; layer must be one of {', '.join(layers) or '(none there)'}"
        + ("" if layer is None else ", or None for X")
    )
