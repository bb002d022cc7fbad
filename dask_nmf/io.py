"""What V may be: how it is opened and checked, from path, URL, zarr, dask, numpy and scipy."""

import os
import warnings
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import scipy.sparse
import zarr
from zarr.storage import FsspecStore, MemoryStore, StorePath, WrapperStore

from dask_nmf.annotated import is_store, open_anndata, open_store
from dask_nmf.csr import CSR
from dask_nmf.devices import is_on_device, namespace
from dask_nmf.labels import Labels, fold, fold_weights, of_library, open_variable
from dask_nmf.matrix import Matrix, Missing
from dask_nmf.retrying import insist, without_passwords
from dask_nmf.sparse import (
    ASSUMED_DENSITY,
    as_told,
    from_scipy,
    is_sparse,
    open_group,
)
from dask_nmf.types import DaskArray


# ------------------------------------------------------------------------------- opening V
def open_weighted(
    V: Any, missing: Missing, weights: Any, layer: str | None = None, feature_dim: Any = None
) -> Matrix:
    """V with the weights of its entries, and labels; a masked array brings its own weights.

    Raises
    ------
    TypeError, ValueError
        As `open_matrix`; or if the weights are not of V's shape, or it has no such layer or
        dimension.
    """
    if isinstance(V, Matrix):  # of several runs
        return V
    uri = absolute(V) if isinstance(V, (str, os.PathLike)) else None
    V, weights, labels = _labelled(V, weights, layer, feature_dim)
    matrix = replace(_open_plain(V, missing, weights), labels=labels)
    if uri is not None and feature_dim is not None:
        return replace(matrix, uri=uri if "://" in uri else f"file://{uri}")
    return matrix


def _labelled(V: Any, weights: Any, layer: Any, feature_dim: Any) -> tuple[Any, Any, Labels | None]:
    """V and its weights as matrices, with labels where V has any."""
    if layer is not None and feature_dim is not None:
        raise ValueError("layer is for AnnData, feature_dim for a DataArray: pass one of them")
    if feature_dim is not None and isinstance(V, (str, os.PathLike)):
        V = open_variable(absolute(V), "V")
        if isinstance(weights, (str, os.PathLike)):
            weights = open_variable(absolute(weights), "weights")
    if layer is None and of_library(V, "xarray"):
        matrix, labels = fold(V, feature_dim)
        return matrix, None if weights is None else fold_weights(V, weights, feature_dim), labels
    if feature_dim is not None:
        raise TypeError(
            "feature_dim is for an xarray.DataArray V, or the path of an array in a store that "
            f"xarray opens, got {type(V).__name__}: leave it out, or give V its dimensions"
        )
    if isinstance(V, (str, os.PathLike)):
        V = _open_path(absolute(V))
    if is_store(V):
        X, labels = open_store(V, layer)
        return X, weights, labels
    if of_library(V, "anndata") and hasattr(V, "obs_names"):
        X, labels = open_anndata(V, layer)
        return X, weights, labels
    if layer is not None:
        raise TypeError(
            f"layer is for an AnnData object, or the path of its zarr store, got "
            f"{type(V).__name__}: leave it out, or pass what it is a layer of"
        )
    return V, weights, None


def _open_plain(V: Any, missing: Missing, weights: Any) -> Matrix:
    if isinstance(V, np.ma.MaskedArray):
        if weights is not None:
            raise ValueError("weights must be None for a masked array V, which has a mask already")
        V, weights = V.data, ~np.ma.getmaskarray(V)
    matrix = open_matrix(V, missing)
    if weights is None:
        return matrix
    if tuple(getattr(weights, "shape", matrix.shape)) != matrix.shape:
        raise ValueError(f"weights must have V's shape {matrix.shape}, got {weights.shape}")
    found = open_matrix(weights, name="weights")
    if found.sparse:
        raise TypeError(
            "weights must be a dense array, got a sparse one: pass weights.toarray(), or a dask or "
            "zarr array"
        )
    if found.shape != matrix.shape:
        raise ValueError(f"weights must have V's shape {matrix.shape}, got {found.shape}")
    return replace(matrix, weights=found)


def open_matrix(V: Any, missing: Missing = "error", name: str = "V") -> Matrix:
    """V as a Matrix; reads metadata only, and where the rows of a sparse V are.

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        If V is nothing of the kind, not 2-D, empty, or not of real numbers.
    """
    if isinstance(V, Matrix):  # of several runs
        return V
    if not isinstance(missing, str) or missing not in ("error", "zero", "nan"):
        raise ValueError(f"missing must be 'error', 'zero' or 'nan', got {missing!r}")
    if isinstance(V, (str, os.PathLike)):
        V = _open_path(absolute(V), name)
    if is_store(V):  # of AnnData
        V, _ = open_store(V, None)
    if isinstance(V, zarr.Group) and as_told(V):
        uri = uri_of(V.store_path)
        return _from_csr(open_group(V, uri, missing != "zero"), uri, missing == "nan")
    if scipy.sparse.issparse(V):
        _check_form(V, name)
        return _from_csr(from_scipy(V), f"scipy {type(V).__name__}", missing == "nan")
    if not isinstance(V, (zarr.Array, da.Array, np.ndarray)):
        raise TypeError(
            f"{name} must be a zarr array, a path or URL of one, a dask array, a numpy array, or "
            "sparse: a zarr group with a csr_matrix or csc_matrix as anndata writes it, or a "
            f"scipy.sparse matrix; got {type(V).__module__}.{type(V).__name__}"
            + (": name one of its arrays" if isinstance(V, zarr.Group) else "")
            + (f": pass {name}.to_numpy()" if hasattr(V, "to_numpy") else "")
        )
    _check_form(V, name)
    if isinstance(V, da.Array):
        return replace(_from_dask(V), nan=missing == "nan", name=name)
    if isinstance(V, zarr.Array):
        shape = (V.shape[0], V.shape[1])
        told: dict[str, Any] = {"strict": missing != "zero", "nan": missing == "nan", "name": name}
        return Matrix(V, shape, V.dtype, uri_of(V.store_path), **told)
    if isinstance(V, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array here: fill it")
    shape = (V.shape[0], V.shape[1])
    return Matrix(np.asarray(V), shape, V.dtype, "numpy array", nan=missing == "nan", name=name)


def absolute(path: str | os.PathLike[str]) -> str:
    """The path as workers with another working directory, and later readers, understand it."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"out must be a path or a URL, got {type(path).__name__}")
    path = os.fspath(path).removeprefix("file://")
    if "\0" in path:
        raise ValueError(f"the path of out or V must not hold a NUL, got {path!r}")
    return path if "://" in path else os.path.abspath(path)


_OTHER_FILES = (
    "dask-nmf convert makes one of .mtx, .npz, .h5ad and .parquet; .npy is opened by "
    "numpy.load(path, mmap_mode='r'), .h5ad also by anndata.read_h5ad(path, backed='r')"
)


def _open_path(path: str, name: str = "V") -> zarr.Array[Any] | zarr.Group:
    told_path = without_passwords(path)
    try:
        found = insist(lambda: zarr.open(path, mode="r"), f"{name}: opening {path!r}")
    except FileNotFoundError:
        there = ""
        if os.path.exists(path):
            there = f", but a {'folder' if os.path.isdir(path) else 'file'}: {_OTHER_FILES}"
        raise FileNotFoundError(f"{name}: there is no zarr array at {told_path!r}{there}") from None
    except (ImportError, ValueError, LookupError, TypeError, AttributeError) as error:
        told = str(error) if isinstance(error, (ImportError, ValueError)) else repr(error)
        told = without_passwords(told)
        raise ValueError(f"{name}: cannot open {told_path!r}: {told}") from error
    if isinstance(found, zarr.Group) and not (as_told(found) or is_store(found)):
        with warnings.catch_warnings():  # about whatever else lies there
            warnings.filterwarnings("ignore", "Object at ", category=UserWarning)
            groups = (name for name, group in found.groups() if as_told(group))
            names = sorted([*found.array_keys(), *groups])
        raise ValueError(
            f"{name}: {told_path!r} is a zarr group, neither an array nor a sparse matrix (by its "
            "attribute 'encoding-type'); name one of those in it: "
            + (", ".join(f"{told_path.rstrip('/')}/{name}" for name in names) or "it has none")
        )
    return found


def _check_form(V: Any, name: str = "V") -> None:
    if len(V.shape) != 2:
        raise ValueError(
            f"{name} must be 2-D (rows x columns), got shape {V.shape}: reshape it, for instance "
            "an image cube (y, x, band) to (y * x, band); or pass feature_dim= with an "
            "xarray.DataArray, or with the path of an array in a store that xarray opens"
        )
    if any(np.isnan(size) for size in V.shape):
        raise ValueError(
            f"{name} has unknown chunk sizes (shape {V.shape}): call V.compute_chunk_sizes() first"
        )
    if 0 in V.shape:
        raise ValueError(f"{name} must not be empty, got shape {V.shape}")
    if V.dtype.kind not in "fiub":
        raise TypeError(
            f"{name} must hold real numbers (float, integer or bool), got dtype {V.dtype}"
            + (": take its absolute value or real part" if V.dtype.kind == "c" else "")
        )


def _from_dask(V: DaskArray) -> Matrix:
    if isinstance(V._meta, np.ma.MaskedArray):
        raise TypeError(
            "V's dask blocks must not be masked arrays: pass da.ma.getdata(V) and "
            "weights=~da.ma.getmaskarray(V)"
        )
    if is_sparse(V._meta):
        return Matrix(V, V.shape, V.dtype, f"dask array {V.name}", nnz=_assumed(V.shape))
    if is_on_device(V._meta):
        namespace(V._meta)  # or it tells what to install
    elif not isinstance(V._meta, np.ndarray):
        kind = f"{type(V._meta).__module__}.{type(V._meta).__name__}"
        raise TypeError(
            "V's dask blocks must be arrays of numpy or cupy, or sparse ones of scipy.sparse or "
            f"sparse, got {kind}: convert them with V.map_blocks"
        )
    return Matrix(V, V.shape, V.dtype, f"dask array {V.name}")


def _assumed(shape: tuple[int, int]) -> int:
    return int(ASSUMED_DENSITY * shape[0] * shape[1])


def _from_csr(source: CSR, uri: str, nan: bool) -> Matrix:
    """The source is V.T where it was a CSC matrix: V is then what is the transpose."""
    found = Matrix(source, source.shape, source.dtype, uri, source.strict, nnz=source.nnz, nan=nan)
    found = found.T if source.of_transpose else found
    _check_form(found)
    return found


def check_apart(out: str, V_uri: str) -> str:
    """The URI of `out`; refuses one inside V, or around it."""
    uri = without_passwords(out) if "://" in out else f"file://{out}"
    real, V_real = _without_links(uri), _without_links(V_uri)
    if any(f"{a}/".startswith(f"{b}/") for a, b in ((real, V_real), (V_real, real))):
        raise ValueError(f"out must lie apart from V, got {uri} for V in {V_uri}")
    return uri


def uri_of(place: StorePath) -> str:
    """Where that is, as one would write it to open it, if there is such a way; no passwords."""
    store = place.store
    while isinstance(store, WrapperStore):
        store = store._store
    if not isinstance(store, FsspecStore):
        return str(place)
    protocol = store.fs.protocol if isinstance(store.fs.protocol, str) else store.fs.protocol[0]
    path = store.path if "://" in store.path else f"{protocol}://{store.path}"  # HTTP's has it
    return without_passwords(f"{path}/{place.path}".rstrip("/"))


def _without_links(uri: str) -> str:
    path = uri.removeprefix("file://")
    return uri if path == uri else f"file://{os.path.realpath(path)}"


def check_reachable(what: str, store: Any, remote: bool) -> None:
    """Refuse a store in this process's memory when tasks run in other processes."""
    while isinstance(store, WrapperStore):
        store = store._store
    if remote and isinstance(store, MemoryStore):
        raise ValueError(
            f"{what} lies in this process's memory, which the cluster's workers cannot see: "
            "use a path or URL that they can reach"
        )
