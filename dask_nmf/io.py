"""What V may be, and how its row blocks are read: zarr, path, URL, dask array, numpy array."""

import os
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import dask.array as da
import numpy as np
import zarr
from scipy.sparse import issparse
from zarr.storage import FsspecStore, MemoryStore, StorePath, WrapperStore

from dask_nmf.blocks import Grid
from dask_nmf.layout import stored_share
from dask_nmf.reader import Reader
from dask_nmf.retrying import insist
from dask_nmf.stream import from_boxes
from dask_nmf.types import AnyArray, Array, DaskArray, working_dtype

Missing = Literal["error", "zero", "nan"]


@dataclass(frozen=True)
class Matrix:
    """V (m, n) behind one door; its transpose behind another of the same kind.

    Attributes
    ----------
    source : zarr.Array, dask array or numpy array
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
    weights : Matrix, optional
        Of each entry; where that is 0 the entry is not looked at.
    nan : bool
        Whether NaN is an entry that is missing.
    name : str
        Of the argument, for people.
    """

    source: Any
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    uri: str
    strict: bool = True
    transposed: bool = False
    kept: Any = None
    checked: bool = True
    weights: "Matrix | None" = None
    nan: bool = False
    name: str = "V"

    @property
    def missing(self) -> Missing:
        """The option that it was opened with."""
        return "nan" if self.nan else "error" if self.strict else "zero"

    @property
    def partial(self) -> bool:
        """Whether its entries have weights."""
        return self.nan or self.weights is not None

    @property
    def sparse(self) -> bool:
        return False

    @property
    def unchecked(self) -> "Matrix":
        """The same, whatever its entries."""
        return replace(self, checked=False)

    @property
    def T(self) -> "Matrix":
        weights = None if self.weights is None else self.weights.T
        found = replace(self, shape=self.shape[::-1], transposed=not self.transposed)
        return replace(found, weights=weights)

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def kept_bytes(self) -> int:
        """Of the source that later passes need not read."""
        return 0 if self.kept is None else self.kept.size * self.dtype.itemsize

    @property
    def in_memory(self) -> bool:
        return isinstance(self.source, np.ndarray)

    @property
    def stored(self) -> bool:
        """Whether it lies in a zarr array, rather than in memory or behind a dask graph."""
        return isinstance(self.source, zarr.Array)

    @cached_property
    def stored_share(self) -> tuple[float, float] | None:
        """Stored over decoded bytes, mean and maximum over some chunks, where that is known."""
        return stored_share(self.source) if self.stored else None

    def blocks(self, grid: Grid, dtype: np.dtype[Any] | None = None) -> DaskArray:
        """A dask array of these blocks; unique keys, so always re-read. None: the working dtype."""
        dtype = dtype or working_dtype(self.dtype)
        if isinstance(self.source, da.Array):
            told = {"dtype": self.source.dtype, "meta": np.empty((0, 0), self.source.dtype)}
            V = self.source.map_blocks(_as_told, self.source.dtype, **told)
            V = (V.T if self.transposed else V).rechunk(grid.chunks)
            meta = np.empty((0, 0), dtype)
            if not self.checked:
                return V.map_blocks(_as_block, dtype, dtype=dtype, meta=meta)
            told = {"dtype": dtype, "meta": meta}
            return V.map_blocks(_as_checked_block, self.transposed, self.name, **told)
        boxes: Any = Boxes(self.source, dtype)
        if isinstance(self.source, zarr.Array):
            boxes = Reader(self.source, dtype, self.strict)
        if self.checked:
            boxes = Checked(boxes, self.name)
        V = from_boxes(Transposed(boxes) if self.transposed else boxes, grid.chunks)
        if self.kept is None:
            return V
        if self.kept.shape == V.shape:
            return self.kept
        return da.concatenate([self.kept, V.blocks[self.kept.numblocks[0] :]])

    def observed(self, grid: Grid) -> tuple[DaskArray, DaskArray | None]:
        """V's blocks, and those of its weights where entries have any: 0 is not there."""
        if not self.partial:
            return self.blocks(grid), None
        V = self.unchecked.blocks(grid)
        M = None if self.weights is None else self.weights.blocks(grid)
        told = {"meta": np.empty((0, 0), V.dtype), "dtype": V.dtype}
        if self.nan:
            M = V.map_blocks(_there, *(() if M is None else (M,)), token="nmf-there", **told)
        return V.map_blocks(_checked_where, M, self.transposed, token="nmf-check", **told), M

    def keep(self, grid: Grid, blocks: int) -> "Matrix":
        """Read the first row blocks now, and keep them in the workers' memory."""
        if not blocks:
            return self
        return replace(
            self,
            kept=(self.unchecked if self.partial else self).blocks(grid).blocks[:blocks].persist(),
        )

    def held_by_workers(self, grid: Grid) -> "Matrix":
        """A numpy V sent to the workers of a cluster once, instead of whole with every task."""
        if self.weights is not None:
            weights = self.weights.held_by_workers(grid)
            return replace(replace(self, weights=None).held_by_workers(grid), weights=weights)
        if not self.in_memory:
            return self
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


@dataclass(frozen=True)
class Boxes:
    """Boxes of a numpy array when sliced: contiguous, aligned, in dtype."""

    source: Array
    dtype: np.dtype[Any]
    ndim = 2

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def __getitem__(self, index: Any) -> Array:
        return _as_block(self.source[index], self.dtype)


@dataclass(frozen=True)
class Transposed:
    """The transpose of boxes; not copied, so in Fortran's order."""

    boxes: Any
    ndim = 2

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.boxes.shape[::-1])

    @property
    def dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = self.boxes.dtype
        return found

    def __getitem__(self, index: Any) -> Array:
        block: Array = self.boxes[index[::-1]]
        return block.T


@dataclass(frozen=True)
class Checked:
    """Boxes whose entries are finite and non-negative: anything else is an error."""

    boxes: Any
    name: str = "V"
    ndim = 2

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.boxes.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = self.boxes.dtype
        return found

    def __getitem__(self, index: Any) -> Array:
        block: Array = self.boxes[index]
        corner = (index[0].start or 0, index[1].start or 0)
        _check_entries(block, corner, getattr(self.boxes, "array", None), self.name)
        return block


def _check_entries(
    block: Array, corner: tuple[int, int], array: Any = None, name: str = "V"
) -> None:
    """Raise at the first entry of a block of V that is NaN, infinite or negative.

    Read as unsigned integers these are larger than all other numbers: one look will do.
    """
    words = block.view(f"u{block.dtype.itemsize}")
    if not words.size or words.max() < np.array(np.inf, block.dtype).view(words.dtype):
        return
    bad = ~(np.isfinite(block) & (block >= 0))
    if not bad.any():  # negative zeros
        return
    inside = tuple(int(i[0]) for i in np.nonzero(bad))
    place = corner[0] + inside[0], corner[1] + inside[1]
    chunk = ""
    if array is not None:
        sizes = array.shards or array.chunks
        key = array.metadata.encode_chunk_key(
            tuple(i // size for i, size in zip(place, sizes, strict=True))
        )
        chunk = f" (chunk {key!r} of {array.store_path})"
    raise ValueError(
        f"{name} must be finite and non-negative, but row {place[0]}, column {place[1]} holds "
        f"{block[inside]}{chunk}: mask, clip or drop such entries before factoring"
    )


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


def _as_checked_block(x: AnyArray, transposed: bool, name: str, block_info: Any = None) -> Array:
    block = _as_block(x, working_dtype(x.dtype))
    if block_info:
        rows, columns = (start for start, _ in block_info[0]["array-location"])
        whole = (block.T, (columns, rows)) if transposed else (block, (rows, columns))
        _check_entries(*whole, name=name)
    return block


def _there(V_b: Any, M_b: Array | None = None) -> Array:
    """The weights: 0 where V is NaN."""
    there = ~np.isnan(V_b)
    return np.asarray(there if M_b is None else np.where(there, M_b, 0), V_b.dtype)


def _checked_where(V_b: Any, M_b: Array, transposed: bool, block_info: Any = None) -> Any:
    """V_b, if what has a weight there is finite and non-negative."""
    if block_info:
        seen = np.where(M_b > 0, V_b.toarray() if issparse(V_b) else V_b, 0)
        rows, columns = (start for start, _ in block_info[0]["array-location"])
        whole = (seen.T, (columns, rows)) if transposed else (seen, (rows, columns))
        _check_entries(np.ascontiguousarray(whole[0]), whole[1])
    return V_b


def _as_block(x: AnyArray, dtype: np.dtype[Any]) -> Array:
    return np.require(x, dtype=dtype, requirements=["C", "A"])


# ------------------------------------------------------------------------------- opening V
def open_weighted(V: Any, missing: Missing, weights: Any) -> Matrix:
    """V with the weights of its entries; a masked array brings its own.

    Raises
    ------
    TypeError, ValueError
        As `open_matrix`; or if the weights are not of V's shape.
    """
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
    if found.shape != matrix.shape:
        raise ValueError(f"weights must have V's shape {matrix.shape}, got {found.shape}")
    return replace(matrix, weights=found)


def open_matrix(V: Any, missing: Missing = "error", name: str = "V") -> Matrix:
    """V as a Matrix; reads metadata only.

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        If V is nothing of the kind, not 2-D, empty, or not of real numbers.
    """
    if not isinstance(missing, str) or missing not in ("error", "zero", "nan"):
        raise ValueError(f"missing must be 'error', 'zero' or 'nan', got {missing!r}")
    if isinstance(V, (str, os.PathLike)):
        V = _open_path(absolute(V), name)
    if not isinstance(V, (zarr.Array, da.Array, np.ndarray)):
        raise TypeError(
            f"{name} must be a zarr array, a path or URL of one, a dask array or a numpy array, "
            f"got {type(V).__module__}.{type(V).__name__}"
            + (": name one of its arrays" if isinstance(V, zarr.Group) else "")
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


def _open_path(path: str, name: str = "V") -> zarr.Array[Any]:
    try:
        found = insist(lambda: zarr.open(path, mode="r"), f"{name}: opening {path!r}")
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: there is no zarr array at {path!r}") from None
    except (ImportError, ValueError, LookupError, TypeError, AttributeError) as error:
        told = str(error) if isinstance(error, (ImportError, ValueError)) else repr(error)
        raise ValueError(f"{name}: cannot open {path!r}: {told}") from error
    if isinstance(found, zarr.Group):
        with warnings.catch_warnings():  # about whatever else lies there
            warnings.filterwarnings("ignore", "Object at ", category=UserWarning)
            names = sorted(found.array_keys())
        raise ValueError(
            f"{name}: {path!r} is a zarr group, not an array; name one of its arrays: "
            + (", ".join(f"{path.rstrip('/')}/{name}" for name in names) or "it has none")
        )
    return found


def _check_form(V: Any, name: str = "V") -> None:
    if len(V.shape) != 2:
        raise ValueError(
            f"{name} must be 2-D (rows x columns), got shape {V.shape}: reshape it, for instance "
            "an image cube (y, x, band) to (y * x, band)"
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
    if not isinstance(V._meta, np.ndarray):
        kind = f"{type(V._meta).__module__}.{type(V._meta).__name__}"
        raise TypeError(
            f"V's dask blocks must be dense numpy arrays, got {kind}: convert them with "
            "V.map_blocks(lambda b: b.toarray())"
        )
    return Matrix(V, V.shape, V.dtype, f"dask array {V.name}")


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
