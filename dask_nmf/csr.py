"""A CSR matrix by its three arrays, in a zarr group or in memory, and its rows as blocks of scipy.

A CSC matrix is the CSR matrix of V.T: V is then streamed by its columns. Only rows of what is
stored can be read at their own cost, so there are no tiles here, and no other side.

A block of rows takes its slice of `data` and `indices`, which begins anywhere in a chunk: where
these are compressed, the chunk that two neighbours share is decoded by both. That is one chunk of
each array per block: 3 % for chunks of 1 MiB in blocks of 64 MiB.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
import scipy.sparse
from dask.base import tokenize

from dask_nmf.boxes import first_bad, unfit
from dask_nmf.layout import is_mapped, stored_share
from dask_nmf.reader import Reader
from dask_nmf.types import Array, DaskArray, working_dtype

SLAB_ROWS = 8192  # of float32 products that are summed before they are added in float64


def index_dtype(columns: int) -> np.dtype[Any]:
    """Of a block's indices, which also have to count its entries: hardly ever 2^31."""
    return np.dtype(np.int32 if columns < 2**31 else np.int64)


@dataclass(frozen=True)
class CSR:
    """A CSR matrix, by its three arrays.

    Attributes
    ----------
    data, indices : zarr arrays, or numpy arrays
    indptr : (rows + 1,) array of int64
        Read when the matrix is opened: 8 bytes a row.
    shape : (int, int)
        Of what has these rows: V.T for a CSC matrix.
    of_transpose : bool
        Whether it is V.T.
    strict : bool
        Whether a chunk that the store does not hold is an error.
    place : zarr.Group, optional
        Where it lies.
    """

    data: Any
    indices: Any
    indptr: Array
    shape: tuple[int, int]
    of_transpose: bool = False
    strict: bool = True
    place: Any = None

    @property
    def dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = self.data.dtype
        return found

    @property
    def nnz(self) -> int:
        return int(self.indptr[-1])

    @property
    def stored(self) -> bool:
        return self.place is not None

    @property
    def store(self) -> Any:
        return self.place.store if self.stored else None

    @property
    def path(self) -> str:
        return str(self.place.path)

    @property
    def shared_bytes(self) -> int:
        """Of the chunks, decoded in one piece, that two neighbouring blocks read both."""
        if not self.stored:
            return 0
        arrays = [array for array in (self.data, self.indices) if not is_mapped(array)]
        return sum(array.chunks[0] * array.dtype.itemsize for array in arrays)

    @cached_property
    def mapped(self) -> bool:
        """Whether its blocks are the mapped files themselves."""
        arrays = (self.data, working_dtype(self.dtype)), (self.indices, index_dtype(self.shape[1]))
        return self.stored and all(is_mapped(x) and x.dtype == dtype for x, dtype in arrays)

    @cached_property
    def stored_share(self) -> tuple[float, float] | None:
        """Stored over decoded bytes, mean and maximum over some chunks, where that is known."""
        if not self.stored or not self.nnz:
            return None
        data, indices = (stored_share(array) for array in (self.data, self.indices))
        if data is None or indices is None:
            return None
        sizes = self.dtype.itemsize, self.indices.dtype.itemsize
        mean = float(np.average([data[0], indices[0]], weights=sizes))
        return mean, max(data[1], indices[1])

    def fullest(self, rows: int) -> int:
        """Entries of the fullest block of so many rows."""
        edges = np.append(self.indptr[:-1:rows], self.indptr[-1])
        return int(np.diff(edges).max())

    def token(self) -> str:
        """Of one in memory: a digest of its entries."""
        return str(tokenize(self.data, self.indices, self.indptr, self.shape, self.of_transpose))

    def blocks(self, heights: tuple[int, ...], dtype: np.dtype[Any], checked: bool) -> DaskArray:
        """A dask array of these row blocks; unique keys, so always re-read.

        Each task gets its own slice of `indptr`; of a matrix in memory, of all three.
        """
        data, indices = self.data, self.indices
        if self.stored:
            data = Reader(data, dtype, self.strict)
            indices = Reader(indices, indices.dtype.newbyteorder("="), self.strict)
        slabs: Any = np.empty((len(heights), 1), object)
        stop = 0
        for i, height in enumerate(heights):
            start, stop = stop, stop + height
            ends, parts = self.indptr[start : stop + 1], (data, indices)
            if not self.stored:
                parts = data[ends[0] : ends[-1]], indices[ends[0] : ends[-1]]
                ends = ends - ends[0]
            slabs[i, 0] = Slab(
                *parts, ends, self.shape[1], start, dtype, checked, self.of_transpose
            )
        return da.from_array(slabs, chunks=1, name=False).map_blocks(
            _read,
            chunks=(heights, (self.shape[1],)),
            dtype=dtype,
            meta=np.empty((0, 0), dtype),
            token="nmf-read",
        )


@dataclass(frozen=True)
class Slab:
    """Rows of a CSR matrix, not read yet.

    Attributes
    ----------
    data, indices : readers, or numpy arrays
    indptr : (rows + 1,) array
        Where its rows are in these.
    columns : int
    start : int
        Its first row.
    checked : bool
        Whether an entry that is NaN, infinite or negative is an error.
    of_transpose : bool
        Whether its rows are V's columns.
    """

    data: Any
    indices: Any
    indptr: Array
    columns: int
    start: int
    dtype: np.dtype[Any]
    checked: bool = True
    of_transpose: bool = False

    def read(self) -> Any:
        """A canonical csr_array: sorted indices, no duplicates, explicit zeros as they are."""
        first, last = int(self.indptr[0]), int(self.indptr[-1])
        data, indices = (read_part(x, first, last) for x in (self.data, self.indices))
        data = np.require(data, self.dtype, ["C", "A"])
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.columns:
            self._refuse_index(indices)
        if self.checked and (bad := first_bad(data)) is not None:
            i = bad[0]
            place = self._row(i), int(indices[i])
            row, column = place[::-1] if self.of_transpose else place
            raise unfit(row, column, data[i], getattr(self.data, "array", None), first + i)
        small = index_dtype(max(self.columns, last - first))
        ends = (self.indptr - first).astype(small)
        parts = data, np.require(indices, small, ["C", "A"]), ends
        block = scipy.sparse.csr_array(parts, shape=(len(ends) - 1, self.columns))
        if not block.has_canonical_format:
            block = block.copy()  # what is mapped or the caller's own stays as it is
            block.sum_duplicates()
        return block

    def _row(self, i: int) -> int:
        """That of its i-th entry."""
        return self.start + int(np.searchsorted(self.indptr - self.indptr[0], i, "right")) - 1

    def _refuse_index(self, indices: Array) -> None:
        i = int(np.argmax((indices < 0) | (indices >= self.columns)))
        rows, columns = ("column", "row") if self.of_transpose else ("row", "column")
        array = getattr(self.indices, "array", None)
        where = "" if array is None else f" of {array.store_path}"
        raise ValueError(
            f"V: in {rows} {self._row(i)} the entry {self.indptr[0] + i:,}{where} has {columns} "
            f"index {indices[i]}, which must be from 0 to {self.columns - 1}: the matrix is "
            "damaged, or its shape is wrong; write it anew"
        )


def _read(cell: Array) -> Any:
    slab: Slab = cell.item()
    return slab.read()


def read_part(x: Any, first: int, last: int) -> Array:
    """Those entries of a 1-D array, or of the reader of one."""
    if isinstance(x, np.ndarray):
        return x[first:last]
    if first == last:
        return np.empty(0, x.dtype)
    part: Array = x[first:last, 0:1]
    return part.ravel()


# ------------------------------------------------------------------------------- products
def row_slabs(V_b: Any, nbytes: int) -> Iterator[slice]:
    """The rows of a block, dense or not, in slabs of about so many bytes in float64."""
    entries = V_b.nnz if scipy.sparse.issparse(V_b) else V_b.shape[0] * V_b.shape[1]
    height = V_b.shape[0]
    rows = max(1, nbytes * height // (8 * max(1, entries)))
    for start in range(0, height, rows):
        yield slice(start, min(start + rows, height))


def transposed_product(A: Array, V_b: Any) -> Array:
    """A @ V_b for a dense A (k, b) and a csr_array, in float64.

    scipy adds up all rows one by one, in the dtype of the operands: float32 would lose digits in
    columns with many entries. So float32 products are summed over some rows only, which takes
    little more than half the time of products in float64.
    """
    rows, columns = V_b.shape
    if V_b.dtype == np.float64:
        return np.asarray(A.astype(np.float64, copy=False) @ V_b)
    step = max(SLAB_ROWS, 4 * columns * rows // max(1, V_b.nnz))
    total = np.zeros((columns, A.shape[0]))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        first, last = V_b.indptr[start], V_b.indptr[stop]
        ends = V_b.indptr[start : stop + 1] - first
        part = V_b.data[first:last], V_b.indices[first:last], ends  # views: to slice V_b copies
        slab = scipy.sparse.csc_array(part, shape=(columns, stop - start))  # V_b's rows as columns
        total += slab @ np.ascontiguousarray(A[:, start:stop].T)
    return total.T
