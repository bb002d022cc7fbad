"""What V may be, and how its row blocks are read: zarr, path, URL, dask array, numpy array."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import dask.array as da
import numpy as np
import zarr
from zarr.storage import MemoryStore, StorePath, WrapperStore

from dask_nmf.blocks import TARGET_BYTES
from dask_nmf.types import AnyArray, Array, DaskArray, working_dtype

Missing = Literal["error", "zero"]

_IN_MEMORY_TARGET = 2**24  # no read to amortize: smaller blocks keep all threads busy
_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


@dataclass(frozen=True)
class Matrix:
    """V (m, n) behind one door.

    Attributes
    ----------
    source : zarr.Array, dask array or numpy array
    heights : int or tuple of int
        Rows per stored chunk (or shard), all of them where they differ.
    uri : str
        Where it lies, for people and for comparing with `out`.
    """

    source: Any
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    heights: int | tuple[int, ...]
    uri: str

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def in_memory(self) -> bool:
        return isinstance(self.source, np.ndarray)

    @property
    def target_bytes(self) -> int:
        return _IN_MEMORY_TARGET if self.in_memory else TARGET_BYTES

    @property
    def copied_itemsize(self) -> int:
        """Bytes per number of decoded chunks that exist beside the block they are copied into."""
        return (
            0 if self.in_memory and self.dtype == working_dtype(self.dtype) else self.dtype.itemsize
        )

    def blocks(self, heights: Sequence[int]) -> DaskArray:
        """V as a dask array of row blocks in the working dtype; unique keys, so always re-read."""
        dtype = working_dtype(self.dtype)
        chunks = (tuple(heights), (self.shape[1],))
        if isinstance(self.source, da.Array):
            V = self.source.rechunk(chunks)
            return V.map_blocks(_as_block, dtype, dtype=dtype, meta=np.empty((0, 0), dtype))
        return from_rows(Rows(self.source, dtype), chunks[0])

    def held_by_workers(self, heights: Sequence[int]) -> "Matrix":
        """A numpy V sent to the workers of a cluster once, instead of whole with every task."""
        if not self.in_memory:
            return self
        stops = np.cumsum(heights)
        slices = [
            self.source[stop - rows : stop] for rows, stop in zip(heights, stops, strict=True)
        ]
        parts = [da.from_array(rows, chunks=rows.shape, name=False) for rows in slices]
        return replace(self, source=da.concatenate(parts).persist())


@dataclass(frozen=True)
class Rows:
    """Rows of a zarr or numpy array, read when sliced: contiguous, aligned, in dtype."""

    source: Any
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    @property
    def ndim(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Array:
        return _as_block(self.source[index], self.dtype)


def from_rows(rows: Any, heights: Sequence[int]) -> DaskArray:
    """A dask array whose row blocks are slices of `rows`, read inside the task that needs them."""
    return da.from_array(
        rows,
        chunks=(tuple(heights), (rows.shape[1],)),
        name=False,
        inline_array=True,
        asarray=False,
        fancy=False,
        meta=np.empty((0, 0), rows.dtype),
    )


def _as_block(x: AnyArray, dtype: np.dtype[Any]) -> Array:
    return np.require(x, dtype=dtype, requirements=["C", "A"])


# ------------------------------------------------------------------------------- opening V
def open_matrix(V: Any, missing: Missing = "error") -> Matrix:
    """V as a Matrix; reads metadata only.

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        If V is nothing of the kind, not 2-D, empty, or not of real numbers.
    """
    if missing not in ("error", "zero"):
        raise ValueError(f"missing must be 'error' or 'zero', got {missing!r}")
    if isinstance(V, (str, os.PathLike)):
        V = _open_path(absolute(V))
    if not isinstance(V, (zarr.Array, da.Array, np.ndarray)):
        raise TypeError(
            "V must be a zarr array, a path or URL of one, a dask array or a numpy array, got "
            f"{type(V).__module__}.{type(V).__name__}"
            + (": name one of its arrays" if isinstance(V, zarr.Group) else "")
        )
    _check_form(V)
    if isinstance(V, da.Array):
        return _from_dask(V)
    if isinstance(V, zarr.Array):
        rows = (V.shards or V.chunks)[0]
        uri = str(V.store_path)
        source = _strict(V) if missing == "error" else V
        return Matrix(source, (V.shape[0], V.shape[1]), V.dtype, min(rows, V.shape[0]), uri)
    if isinstance(V, np.ma.MaskedArray):
        raise TypeError("V must not be a masked array: fill it, or wait for masks to be supported")
    return Matrix(np.asarray(V), (V.shape[0], V.shape[1]), V.dtype, 1, "numpy array")


def absolute(path: str | os.PathLike[str]) -> str:
    """The path as workers with another working directory, and later readers, understand it."""
    path = os.fspath(path)
    return path if "://" in path else os.path.abspath(path)


def _open_path(path: str) -> zarr.Array[Any]:
    try:
        found = zarr.open(path, mode="r")
    except FileNotFoundError:
        raise FileNotFoundError(f"V: there is no zarr array at {path!r}") from None
    except (ImportError, ValueError) as error:
        raise ValueError(f"V: cannot open {path!r}: {error}") from error
    if isinstance(found, zarr.Group):
        names = sorted(found.array_keys())
        raise ValueError(
            f"V: {path!r} is a zarr group, not an array; name one of its arrays: "
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
    if not isinstance(V._meta, np.ndarray):
        kind = f"{type(V._meta).__module__}.{type(V._meta).__name__}"
        raise TypeError(
            f"V's dask blocks must be dense numpy arrays, got {kind}: convert them with "
            "V.map_blocks(lambda b: b.toarray())"
        )
    heights = tuple(h for h in V.chunks[0] if h)
    return Matrix(V, V.shape, V.dtype, heights, f"dask array {V.name}")


# --------------------------------------------------------------------- chunks that are not there
class _Strict(WrapperStore[Any]):
    """A store in which an absent chunk is an error, not a chunk of zeros.

    Every read goes through here, in any process, so a chunk that vanishes in mid-run is noticed
    as well, and no extra request is made.
    """

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        value = await self._store.get(key, prototype, byte_range)
        if value is None and key.rsplit("/", 1)[-1] not in _METADATA:
            raise ValueError(
                f"chunk {key!r} of V is not in {self._store}: it would read as zeros. Restore it, "
                "or pass missing='zero' if V's writer left out chunks of zeros"
            )
        return value


def _strict(V: zarr.Array[Any]) -> zarr.Array[Any]:
    store_path = StorePath(_Strict(V.store_path.store), V.store_path.path)
    return zarr.Array(zarr.AsyncArray(metadata=V.metadata, store_path=store_path))


def check_reachable(what: str, store: Any, remote: bool) -> None:
    """Refuse a store in this process's memory when tasks run in other processes."""
    while isinstance(store, WrapperStore):
        store = store._store
    if remote and isinstance(store, MemoryStore):
        raise ValueError(
            f"{what} lies in this process's memory, which the cluster's workers cannot see: "
            "use a path or URL that they can reach"
        )
