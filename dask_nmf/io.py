"""What V may be, and how its row blocks are read: zarr, path, URL, dask, numpy, scipy.sparse."""

import os
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import dask.array as da
import numpy as np
import scipy.sparse
import zarr
from zarr.storage import FsspecStore, MemoryStore, StorePath, WrapperStore

from dask_nmf.blocks import Grid
from dask_nmf.boxes import Boxes, Checked, Transposed, as_block, check_entries
from dask_nmf.csr import CSR, index_dtype
from dask_nmf.layout import is_mapped, stored_share
from dask_nmf.reader import Reader
from dask_nmf.retrying import insist
from dask_nmf.sparse import (
    ASSUMED_DENSITY,
    as_told,
    from_scipy,
    is_sparse,
    open_group,
    regrouped,
)
from dask_nmf.stream import from_boxes
from dask_nmf.types import AnyArray, Array, DaskArray, working_dtype

Missing = Literal["error", "zero"]


@dataclass(frozen=True)
class Matrix:
    """V (m, n) behind one door; its transpose behind another of the same kind.

    Attributes
    ----------
    source : zarr.Array, dask array, numpy array or CSR
    shape : (int, int)
        Of what is streamed: of V.T if transposed.
    uri : str
        Where it lies, for people and for comparing with `out`.
    strict : bool
        Whether a chunk that the store does not hold is an error.
    transposed : bool
        Whether it is the source's transpose.
    kept : dask array, optional
        The first row blocks, which the workers keep decoded.
    checked : bool
        Whether an entry that is NaN, infinite or negative is an error wherever it is read.
    nnz : int, optional
        Entries of a sparse V; of a dask array as if 10 % were there.
    """

    source: Any
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    uri: str
    strict: bool = True
    transposed: bool = False
    kept: Any = None
    checked: bool = True
    nnz: int | None = None

    @property
    def unchecked(self) -> "Matrix":
        """The same, whatever its entries."""
        return replace(self, checked=False)

    @property
    def T(self) -> "Matrix":
        return replace(self, shape=self.shape[::-1], transposed=not self.transposed)

    @property
    def sparse(self) -> bool:
        """Whether its blocks are csr_arrays."""
        return self.nnz is not None

    @property
    def nbytes(self) -> int:
        """Decoded; of a sparse one, as CSR."""
        if self.nnz is not None:
            return self._csr_bytes(self.nnz)
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def _csr_bytes(self, nnz: int) -> int:
        return nnz * (self.dtype.itemsize + index_dtype(self.shape[1]).itemsize)

    @property
    def kept_bytes(self) -> int:
        """Of the source that later passes need not read."""
        if self.kept is None:
            return 0
        if isinstance(self.source, CSR):
            return self._csr_bytes(int(self.source.indptr[self.kept.shape[0]]))
        return int(self.kept.size) * self.dtype.itemsize

    @property
    def in_memory(self) -> bool:
        return not self.stored and isinstance(self.source, (np.ndarray, CSR))

    @property
    def stored(self) -> bool:
        """Whether it lies in a zarr store, rather than in memory or behind a dask graph."""
        return self.source.stored if self._csr else isinstance(self.source, zarr.Array)

    @property
    def _csr(self) -> bool:
        return isinstance(self.source, CSR)

    @property
    def mapped(self) -> bool:
        """Whether the page cache keeps its blocks as they are."""
        return self.stored and (self.source.mapped if self._csr else is_mapped(self.source))

    @cached_property
    def stored_share(self) -> tuple[float, float] | None:
        """Stored over decoded bytes, mean and maximum over some chunks, where that is known."""
        if self._csr:
            share: tuple[float, float] | None = self.source.stored_share
            return share
        return stored_share(self.source) if self.stored else None

    def blocks(self, grid: Grid, dtype: np.dtype[Any] | None = None) -> DaskArray:
        """A dask array of these blocks; unique keys, so always re-read. None: the working dtype."""
        dtype = dtype or working_dtype(self.dtype)
        if self.sparse:
            assert not self.transposed, "only rows of what is stored can be read"
            if isinstance(self.source, da.Array):
                return regrouped(self.source, grid.heights, dtype, self.checked)
            return self._with_kept(self.source.blocks(grid.heights, dtype, self.checked))
        if isinstance(self.source, da.Array):
            told = {"dtype": self.source.dtype, "meta": np.empty((0, 0), self.source.dtype)}
            V = self.source.map_blocks(_as_told, self.source.dtype, **told)
            V = (V.T if self.transposed else V).rechunk(grid.chunks)
            meta = np.empty((0, 0), dtype)
            if not self.checked:
                return V.map_blocks(as_block, dtype, dtype=dtype, meta=meta)
            return V.map_blocks(_as_checked_block, self.transposed, dtype=dtype, meta=meta)
        boxes: Any = Boxes(self.source, dtype)
        if isinstance(self.source, zarr.Array):
            boxes = Reader(self.source, dtype, self.strict)
        if self.checked:
            boxes = Checked(boxes)
        return self._with_kept(
            from_boxes(Transposed(boxes) if self.transposed else boxes, grid.chunks)
        )

    def _with_kept(self, V: DaskArray) -> DaskArray:
        if self.kept is None:
            return V
        if self.kept.shape == V.shape:
            return self.kept
        return da.concatenate([self.kept, V.blocks[self.kept.numblocks[0] :]])

    def keep(self, grid: Grid, blocks: int) -> "Matrix":
        """Read the first row blocks now, and keep them in the workers' memory."""
        if not blocks:
            return self
        return replace(self, kept=self.blocks(grid).blocks[:blocks].persist())

    def held_by_workers(self, grid: Grid) -> "Matrix":
        """A V in memory sent to the workers of a cluster once, instead of with every pass."""
        if not self.in_memory:
            return self
        if self.sparse:
            return replace(self, source=self.blocks(grid).persist(), checked=False)
        V = self.source.T if self.transposed else self.source
        rows, columns = (np.cumsum(sizes)[:-1] for sizes in grid.chunks)
        parts = [
            [
                da.from_array(part, chunks=part.shape, name=False)
                for part in np.split(row, columns, 1)
            ]
            for row in np.split(V, rows)
        ]
        return replace(self, source=da.block(parts).persist(), transposed=False)


def _as_told(x: Any, dtype: np.dtype[Any], block_info: Any = None) -> Array:
    """A block of a dask array as a plain array, if it is what the array says that it is."""
    shape, wrong = block_info[None]["chunk-shape"], ""
    if isinstance(x, np.ma.MaskedArray) or not isinstance(x, np.ndarray):
        wrong = f"is a {type(x).__name__}, not a dense numpy array"
    elif x.shape != shape:
        wrong = f"has shape {x.shape}, not {shape}"
    elif not (np.can_cast(x.dtype, dtype) or x.dtype.kind == dtype.kind == "f"):
        wrong = f"holds {x.dtype}, not {dtype}"
    if wrong:
        raise TypeError(
            f"V's dask block {block_info[0]['chunk-location']} {wrong}: the function that makes "
            "it has to give what the dask array says"
        )
    return np.asarray(x, dtype)  # no subclass: np.matrix multiplies in its own way


def _as_checked_block(x: AnyArray, transposed: bool, block_info: Any = None) -> Array:
    block = as_block(x, working_dtype(x.dtype))
    if block_info:
        rows, columns = (start for start, _ in block_info[0]["array-location"])
        whole = (block.T, (columns, rows)) if transposed else (block, (rows, columns))
        check_entries(*whole)
    return block


# ------------------------------------------------------------------------------- opening V
def open_matrix(V: Any, missing: Missing = "error") -> Matrix:
    """V as a Matrix; reads metadata only, and where the rows of a sparse V are.

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        If V is nothing of the kind, not 2-D, empty, or not of real numbers.
    """
    if not isinstance(missing, str) or missing not in ("error", "zero"):
        raise ValueError(f"missing must be 'error' or 'zero', got {missing!r}")
    if isinstance(V, (str, os.PathLike)):
        V = _open_path(absolute(V))
    if isinstance(V, zarr.Group) and as_told(V):
        uri = uri_of(V.store_path)
        return _from_csr(open_group(V, uri, missing == "error"), uri)
    if scipy.sparse.issparse(V):
        _check_form(V)
        return _from_csr(from_scipy(V), f"scipy {type(V).__name__}")
    if not isinstance(V, (zarr.Array, da.Array, np.ndarray)):
        raise TypeError(
            "V must be a zarr array, a path or URL of one, a dask array, a numpy array, or sparse: "
            "a zarr group with a csr_matrix or csc_matrix as anndata writes it, or a scipy.sparse "
            f"matrix; got {type(V).__module__}.{type(V).__name__}"
            + (": name one of its arrays" if isinstance(V, zarr.Group) else "")
        )
    _check_form(V)
    if isinstance(V, da.Array):
        return _from_dask(V)
    if isinstance(V, zarr.Array):
        shape = (V.shape[0], V.shape[1])
        return Matrix(V, shape, V.dtype, uri_of(V.store_path), strict=missing == "error")
    if isinstance(V, np.ma.MaskedArray):
        raise TypeError("V must not be a masked array: fill it, or wait for masks to be supported")
    return Matrix(np.asarray(V), (V.shape[0], V.shape[1]), V.dtype, "numpy array")


def absolute(path: str | os.PathLike[str]) -> str:
    """The path as workers with another working directory, and later readers, understand it."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"out must be a path or a URL, got {type(path).__name__}")
    path = os.fspath(path).removeprefix("file://")
    if "\0" in path:
        raise ValueError(f"the path of out or V must not hold a NUL, got {path!r}")
    return path if "://" in path else os.path.abspath(path)


def _open_path(path: str) -> zarr.Array[Any] | zarr.Group:
    try:
        found = insist(lambda: zarr.open(path, mode="r"), f"V: opening {path!r}")
    except FileNotFoundError:
        raise FileNotFoundError(f"V: there is no zarr array at {path!r}") from None
    except (ImportError, ValueError, LookupError, TypeError, AttributeError) as error:
        told = str(error) if isinstance(error, (ImportError, ValueError)) else repr(error)
        raise ValueError(f"V: cannot open {path!r}: {told}") from error
    if isinstance(found, zarr.Group) and not as_told(found):
        with warnings.catch_warnings():  # about whatever else lies there
            warnings.filterwarnings("ignore", "Object at ", category=UserWarning)
            groups = (name for name, group in found.groups() if as_told(group))
            names = sorted([*found.array_keys(), *groups])
        raise ValueError(
            f"V: {path!r} is a zarr group, neither an array nor a sparse matrix (by its attribute "
            "'encoding-type'); name one of those in it: "
            + (", ".join(f"{path.rstrip('/')}/{name}" for name in names) or "it has none")
        )
    return found


def _check_form(V: Any) -> None:
    if len(V.shape) != 2:
        raise ValueError(
            f"V must be 2-D (rows x columns), got shape {V.shape}: reshape it, for instance an "
            "image cube (y, x, band) to (y * x, band)"
        )
    if any(np.isnan(size) for size in V.shape):
        raise ValueError(
            f"V has unknown chunk sizes (shape {V.shape}): call V.compute_chunk_sizes() first"
        )
    if 0 in V.shape:
        raise ValueError(f"V must not be empty, got shape {V.shape}")
    if V.dtype.kind not in "fiub":
        raise TypeError(
            f"V must hold real numbers (float, integer or bool), got dtype {V.dtype}"
            + (": take its absolute value or real part" if V.dtype.kind == "c" else "")
        )


def _from_dask(V: DaskArray) -> Matrix:
    if isinstance(V._meta, np.ma.MaskedArray):
        raise TypeError("V's dask blocks must not be masked arrays: fill them with da.ma.filled")
    if is_sparse(V._meta):
        return Matrix(V, V.shape, V.dtype, f"dask array {V.name}", nnz=_assumed(V.shape))
    if not isinstance(V._meta, np.ndarray):
        kind = f"{type(V._meta).__module__}.{type(V._meta).__name__}"
        raise TypeError(
            "V's dask blocks must be numpy arrays, or sparse ones of scipy.sparse or sparse, got "
            f"{kind}: convert them with V.map_blocks"
        )
    return Matrix(V, V.shape, V.dtype, f"dask array {V.name}")


def _assumed(shape: tuple[int, int]) -> int:
    return int(ASSUMED_DENSITY * shape[0] * shape[1])


def _from_csr(source: CSR, uri: str) -> Matrix:
    """The source is V.T where it was a CSC matrix: V is then what is the transpose."""
    found = Matrix(source, source.shape, source.dtype, uri, source.strict, nnz=source.nnz)
    found = found.T if source.of_transpose else found
    _check_form(found)
    return found


def check_apart(out: str, V_uri: str) -> str:
    """The URI of `out`; refuses one inside V, or around it."""
    uri = out if "://" in out else f"file://{out}"
    real, V_real = _without_links(uri), _without_links(V_uri)
    if any(f"{a}/".startswith(f"{b}/") for a, b in ((real, V_real), (V_real, real))):
        raise ValueError(f"out must lie apart from V, got {uri} for V in {V_uri}")
    return uri


def uri_of(place: StorePath) -> str:
    """Where that is, as one would write it to open it, if there is such a way."""
    store = place.store
    while isinstance(store, WrapperStore):
        store = store._store
    if not isinstance(store, FsspecStore):
        return str(place)
    protocol = store.fs.protocol if isinstance(store.fs.protocol, str) else store.fs.protocol[0]
    return f"{protocol}://{store.path}/{place.path}".rstrip("/")


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
