"""Names of V's rows and columns; an n-D V as a matrix, and W as maps again."""

import math
import os
import warnings
from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.base import tokenize
from zarr.codecs import Crc32cCodec

from dask_nmf.types import AnyArray, Array, DaskArray

_OURS = {"W", "H", "component"}  # names in what `to_xarray` gives
GROUP = "labels"


@dataclass(frozen=True)
class Labels:
    """What V's rows and columns are.

    Attributes
    ----------
    dims : tuple of str
        The dimensions whose product the rows are.
    column : str
        The dimension of the columns.
    chunks : tuple of tuple of int
        Of several dims: rows go from block to block of these, and in C order within each.
    coords : mapping, or zarr.Group
        Coordinates by name, as xarray takes them; or where they are stored.
    """

    dims: tuple[str, ...] = ("row",)
    column: str = "column"
    chunks: tuple[tuple[int, ...], ...] = ()
    coords: Any = field(default_factory=dict, repr=False)

    @property
    def order(self) -> str | None:
        """Tells one order of rows from another, where V's chunks decide it."""
        if len(self.dims) == 1:
            return None
        blocks = " x ".join(str(len(sizes)) for sizes in self.chunks)
        return f"{' x '.join(self.dims)} in {blocks} chunks, {tokenize(self.chunks)[:6]}"

    def to_json(self) -> dict[str, Any]:
        """All but the coordinates."""
        return {
            "dims": list(self.dims),
            "column": self.column,
            "chunks": [list(sizes) for sizes in self.chunks],
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any], group: Any) -> "Labels":
        """group : the results, where the coordinates are."""
        chunks = tuple(tuple(sizes) for sizes in saved["chunks"])
        coords = group.get(GROUP) or {}
        return cls(tuple(saved["dims"]), saved["column"], chunks, coords)


def of_library(x: Any, *names: str) -> bool:
    """Whether its type comes from one of these packages, without importing them."""
    return type(x).__module__.partition(".")[0] in names


def library(name: str, what: str) -> Any:
    """A package of an extra, imported when it is needed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f'{what} needs {name}: pip install "dask_nmf[{name}]"') from error


# ------------------------------------------------------------------------------------ folding
def fold(V: Any, feature_dim: Any, name: str = "V") -> tuple[AnyArray, Labels]:
    """A DataArray as a matrix, its rows block by block, and what unfolds W.

    A reshape of the whole would need other blocks, so a shuffle of V (in dask and in xarray's
    `stack`); within blocks it is a task for each, and its chunk is read once.

    Raises
    ------
    TypeError, ValueError
        If V is a Dataset, or has not these dims; or names that `to_xarray` needs.
    """
    if not hasattr(V, "dims") or not hasattr(V, "dtype"):
        raise TypeError(
            f"{name} must be a DataArray, got a {type(V).__name__}: name one of its variables, "
            f"such as {name}[{next(iter(V), 'name')!r}]"
        )
    column = _column(V, feature_dim, name)
    clash = sorted(_OURS & {*map(str, V.dims), *map(str, V.coords)})
    if clash or not all(isinstance(dim, str) for dim in V.dims):
        raise ValueError(
            f"{name} must have dims and coordinates of other names than W, H and component, which "
            f"the factors have, and dims that are strings; got {V.dims}"
            + (f" with {', '.join(clash)}" if clash else "")
            + f": {name}.rename"
        )
    V = _chunked(V).transpose(..., column)
    shape = math.prod(V.shape[:-1]), V.shape[-1]
    if V.chunks is None:
        data, chunks = V.values.reshape(shape), tuple((size,) for size in V.shape[:-1])
    else:
        data, chunks = da.reshape_blockwise(V.data, shape), V.chunks[:-1]
    coords = V.coords.to_dataset().drop_encoding().coords  # of it alone: V is not held by them
    return data, Labels(V.dims[:-1], column, chunks, coords)


def fold_weights(V: Any, weights: Any, feature_dim: Any) -> AnyArray:
    """Weights for a DataArray V, in the order of its rows; dims that they lack are repeated.

    Raises
    ------
    TypeError, ValueError
        If they are no DataArray, or have other dims, sizes or coordinates.
    """
    if not of_library(weights, "xarray") or not hasattr(weights, "dtype"):
        raise TypeError(
            "weights must be a DataArray, as V is one, got "
            f"{type(weights).__name__}: V.copy(data=weights) makes one"
        )
    if unknown := [dim for dim in weights.dims if dim not in V.dims]:
        raise ValueError(f"weights must have dims of V, {V.dims}, got {', '.join(unknown)} too")
    V = _chunked(V)
    try:
        V, weights = import_module("xarray").align(V, weights, join="exact", copy=False)
    except ValueError as error:
        raise ValueError(f"weights must have the coordinates and sizes of V: {error}") from error
    if V.chunks is not None:
        weights = weights.chunk({dim: V.chunksizes[dim] for dim in weights.dims})
    weights = weights.broadcast_like(V).transpose(*V.dims)
    if V.chunks is not None:
        weights = weights.chunk(V.chunksizes)
    return fold(weights.reset_coords(drop=True), feature_dim, "weights")[0]


def _column(V: Any, feature_dim: Any, name: str) -> Any:
    if len(V.dims) < 2:
        raise ValueError(f"{name} must have at least 2 dimensions, got {V.dims}")
    if feature_dim is None and len(V.dims) == 2:
        return V.dims[1]
    if feature_dim not in V.dims:
        raise ValueError(
            f"feature_dim must be one of V's dimensions {V.dims}, the one whose entries are "
            f"columns (bands, channels, genes; all others are samples), got {feature_dim!r}"
        )
    return feature_dim


def _chunked(V: Any) -> Any:
    """What is still in a file, as dask array of its chunks; never read whole.

    xarray takes the inner chunks of shards: many small reads.
    """
    stored = V.encoding.get("preferred_chunks")
    if V.chunks is not None or (stored is None and "source" not in V.encoding):
        return V
    sizes = dict(zip(stored or (), V.encoding.get("shards") or (), strict=False)) or stored or {}
    return V.chunk({dim: sizes.get(dim, "auto") for dim in V.dims})


def open_variable(path: str, name: str) -> Any:
    """The array at that path as a DataArray, with the coordinates of the group around it.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        If there is none.
    """
    xarray = library("xarray", f"feature_dim, for {name} at a path,")
    group, variable = os.path.split(path.rstrip("/"))
    try:
        with warnings.catch_warnings():  # not consolidated
            warnings.simplefilter("ignore", RuntimeWarning)
            found = xarray.open_zarr(group, chunks=None)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: there is no zarr group at {group!r}") from None
    except (KeyError, ValueError) as error:
        raise ValueError(f"{name}: xarray cannot open {group!r}: {error}") from error
    if variable not in found.variables:
        told = ", ".join(f"{group}/{each}" for each in found.data_vars) or "nothing"
        raise FileNotFoundError(f"{name}: there is no {variable!r} at {group!r}, but {told}")
    return found[variable]


# ---------------------------------------------------------------------------------- unfolding
def unfolded(W: DaskArray, labels: Labels) -> DaskArray:
    """W (m, k) as (..., k), lazily: each block of it is the rows of one of V's."""
    if len(labels.dims) == 1:
        return W
    heights = tuple(math.prod(sizes) for sizes in product(*labels.chunks))
    W = W.rechunk({0: heights, 1: -1})
    shape = *(sum(sizes) for sizes in labels.chunks), W.shape[1]
    return da.reshape_blockwise(W, shape, chunks=(*labels.chunks, W.chunks[1]))


def _coords(labels: Labels) -> Any:
    if not isinstance(labels.coords, zarr.Group):
        return labels.coords
    group = labels.coords
    xarray = library("xarray", "reading coordinates")
    options = {"consolidated": False, "chunks": {}}
    return xarray.open_zarr(group.store, group=group.path, **options).coords


def dataset(factors: dict[str, Any], labels: Labels, attributes: dict[str, Any]) -> Any:
    """What has such dims, as a Dataset with V's coordinates."""
    xarray = library("xarray", "to_xarray")
    return xarray.Dataset(factors, coords=_coords(labels), attrs=attributes)


def maps(W: DaskArray, labels: Labels) -> tuple[tuple[str, ...], DaskArray]:
    """W (*dims, component), lazy, as xarray takes it."""
    return (*labels.dims, "component"), unfolded(W, labels)


def coordinate(labels: Labels | None, name: str) -> Array | None:
    """The coordinate of that name, if there is one."""
    found = None if labels is None else _coords(labels).get(name)
    return None if found is None else np.asarray(found)


def column_names(labels: Labels | None) -> Any:
    """What the columns are called, an array; None if that is not known."""
    return None if labels is None else coordinate(labels, labels.column)


def names_of_columns(H: Any) -> Any:
    """Those of H's columns, of a Result, a Dataset or a DataArray, or a DataFrame; or None."""
    if of_library(H, "pandas"):
        return np.asarray(H.columns)
    if isinstance(labels := getattr(H, "labels", None), Labels):
        return column_names(labels)
    H = getattr(H, "H", H)
    if not of_library(H, "xarray") or len(H.dims) != 2 or H.dims[1] not in H.coords:
        return None
    return np.asarray(H.coords[H.dims[1]])


def check_same_columns(of_V: Any, of_H: Any) -> None:
    """Refuse an H of other columns, or of the same in another order.

    Raises
    ------
    ValueError
        If both are known and differ.
    """
    if of_V is None or of_H is None or np.array_equal(of_V, of_H):
        return
    first = next((i for i, (a, b) in enumerate(zip(of_V, of_H, strict=False)) if a != b), 0)
    raise ValueError(
        f"V and H must have the same columns in the same order, but column {first} is "
        f"{of_V[first]} in V and {of_H[first]} in H: bring V into H's order (reindex, or "
        "adata[:, names]), or pass np.asarray(H) where the names do not matter"
    )


# ------------------------------------------------------------------------------------- storing
def check_storable(labels: Labels | None) -> None:
    """Refuse coordinates, before the run, that could not be written after it.

    Raises
    ------
    ValueError
        If xarray does not write their first entries.
    """
    if labels is None or not of_library(labels.coords, "xarray"):
        return
    first = _template(labels)
    first = first.isel({dim: slice(1) for dim in first.sizes})
    try:
        _write(first, zarr.storage.MemoryStore(), "")
    except Exception as error:
        raise ValueError(
            f"V has coordinates that zarr cannot hold: {error}. Leave them out for a run with out, "
            "by V.drop_vars"
        ) from error


def write_coords(labels: Labels, group: Any) -> None:
    """Write the coordinates into the results, as xarray does; those of AnnData stay with it."""
    if of_library(labels.coords, "xarray"):
        _write(_template(labels), group.store, f"{group.path}/{GROUP}".lstrip("/"))


def _template(labels: Labels) -> Any:
    """A Dataset of coordinates only; of a MultiIndex its levels."""
    found = labels.coords.to_dataset()
    multi = import_module("xarray").indexes.PandasMultiIndex
    stacked = {index.dim for index in found.xindexes.values() if isinstance(index, multi)}
    found = found.reset_index(sorted(stacked))
    fixed = {name: x.astype(object) for name, x in found.coords.items() if x.dtype.kind == "U"}
    return found.assign_coords(fixed)  # zarr has no specification of strings of one length


def _write(template: Any, place: Any, path: str) -> None:
    checked = {name: {"compressors": (Crc32cCodec(),)} for name in template.variables}
    with warnings.catch_warnings():  # about strings, of which zarr's specification says nothing
        warnings.simplefilter("ignore")
        template.to_zarr(
            place, group=path or None, mode="w", zarr_format=3, consolidated=False, encoding=checked
        )
