"""Which sparse matrices V may be: how they are opened and checked, and those of dask arrays."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import dask.array as da
import numpy as np
import scipy.sparse
import zarr
from dask.highlevelgraph import HighLevelGraph

from dask_nmf.csr import CSR, Slab, read_part
from dask_nmf.devices import dtype_of
from dask_nmf.reader import Reader
from dask_nmf.retrying import insist
from dask_nmf.types import AnyArray, Array, DaskArray

ENCODINGS = ("csr_matrix", "csc_matrix")
VERSION = "0.1.0"

ASSUMED_DENSITY = 0.1
"""Of a dask array of sparse blocks, whose entries nobody has counted."""


def is_sparse(x: Any) -> bool:
    """Whether it is a sparse matrix of scipy, or an array of the package `sparse`."""
    return scipy.sparse.issparse(x) or hasattr(x, "to_scipy_sparse")


def as_told(group: zarr.Group) -> bool:
    """Whether the group says that it is a sparse matrix."""
    return group.attrs.get("encoding-type") in ENCODINGS


# ------------------------------------------------------------------------------- opening it
def from_scipy(V: Any) -> CSR:
    """A matrix in memory, CSC as the transpose; other formats are converted."""
    of_transpose = V.format == "csc"
    rows = (V.T if of_transpose else V).tocsr()
    ends = rows.indptr.astype(np.int64)
    data, indices = rows.data[: ends[-1]], rows.indices[: ends[-1]]  # there may be room for more
    _check_ends(f"this {type(V).__name__}", rows.shape, data, indices, ends)
    return CSR(data, indices, ends, rows.shape, of_transpose)


def open_group(group: zarr.Group, where: str, strict: bool) -> CSR:
    """The matrix in a zarr group as anndata writes it; reads metadata and `indptr`.

    Raises
    ------
    TypeError, ValueError
        If an array or attribute is missing, or they do not fit each other.
    """
    attrs = dict(group.attrs)
    of_transpose = attrs["encoding-type"] == "csc_matrix"
    if attrs.get("encoding-version") != VERSION:
        raise ValueError(
            f"V: {where} must have the attribute 'encoding-version' {VERSION!r}, got "
            f"{attrs.get('encoding-version')!r}: write it anew, with anndata for instance"
        )
    shape = attrs.get("shape")
    sizes = list(shape) if isinstance(shape, (list, tuple)) else []
    if len(sizes) != 2 or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(
            f"V: {where} must have the attribute 'shape', two sizes, got {shape!r}: set it to "
            "[rows, columns]"
        )
    arrays = [_array(group, name, where) for name in ("data", "indices", "indptr")]
    data, indices, indptr = arrays
    for array, name in ((indices, "indices"), (indptr, "indptr")):
        if array.dtype.kind not in "iu":
            raise TypeError(
                f"V: {name} of {where} must hold integers, got dtype {array.dtype}: write the "
                "matrix anew"
            )
    rows, columns = sizes[::-1] if of_transpose else sizes
    _check_length(where, rows, indptr.shape[0])
    ends = Reader(indptr, indptr.dtype.newbyteorder("="), strict)
    pointers = read_part(ends, 0, rows + 1)
    _check_ends(where, (rows, columns), data, indices, pointers)
    pointers = pointers.astype(np.int64)
    return CSR(data, indices, pointers, (rows, columns), of_transpose, strict, group)


def _array(group: zarr.Group, name: str, where: str) -> zarr.Array[Any]:
    found = insist(lambda: group.get(name), f"V: opening {name} of {where}")
    if not isinstance(found, zarr.Array):
        kind = "a group" if isinstance(found, zarr.Group) else "no such array"
        raise ValueError(
            f"V: {where} must hold the arrays data, indices and indptr, but {name} is {kind} "
            "there: write the matrix anew"
        )
    if len(found.shape) != 1:
        raise ValueError(
            f"V: {name} of {where} must be 1-D, got shape {found.shape}: write the matrix anew"
        )
    return found


def _check_length(where: str, rows: int, length: int) -> None:
    if length != rows + 1:
        raise ValueError(
            f"V: indptr of {where} must have {rows + 1:,} entries for its shape, got {length:,}: "
            "correct the shape, or write the matrix anew"
        )


def _check_ends(where: str, shape: tuple[int, int], data: Any, indices: Any, indptr: Array) -> None:
    """Refuse pointers that do not say where the rows are."""
    _check_length(where, shape[0], len(indptr))
    sizes = {"data": data.shape[0], "indices": indices.shape[0]}
    if (zero := int(indptr[0])) != 0:
        raise ValueError(f"V: indptr of {where} must begin with 0, got {zero}: write it anew")
    falls = indptr[1:] < indptr[:-1]
    if falls.any():
        row = int(np.argmax(falls))
        raise ValueError(
            f"V: indptr of {where} must not fall, but goes from {indptr[row]} to "
            f"{indptr[row + 1]} at {row + 1}: write it anew"
        )
    for name, size in sizes.items():
        if size != indptr[-1]:
            raise ValueError(
                f"V: {name} of {where} must have {indptr[-1]:,} entries, as indptr ends with, got "
                f"{size:,}: the matrix was not written to its end; write it anew"
            )


# ------------------------------------------------------------------------------- dask arrays
def regrouped(V: DaskArray, heights: tuple[int, ...], dtype: np.dtype[Any], checked: bool) -> Any:
    """Row blocks of those heights, of a dask array with sparse blocks of any size.

    dask's own rechunk does not know how to join them.
    """
    name, edges = f"nmf-sparse-{uuid4().hex}", np.cumsum([0, *V.chunks[0]])
    tasks: dict[Any, Any] = {}
    stop = 0
    for i, height in enumerate(heights):
        start, stop = stop, stop + height
        first = int(np.searchsorted(edges, start, "right")) - 1
        last = int(np.searchsorted(edges, stop, "left"))
        keys = [[(V.name, r, c) for c in range(V.numblocks[1])] for r in range(first, last)]
        about = Joined(
            V.chunks[0][first:last], V.chunks[1], first, int(edges[first]), (start, stop), V.dtype
        )
        tasks[name, i, 0] = (_joined, keys, about, dtype, checked)
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[V])
    chunks = heights, (V.shape[1],)
    return da.Array(graph, name, chunks, meta=np.empty((0, 0), dtype))


@dataclass(frozen=True)
class Joined:
    """What the dask blocks should be of which a block is made, and which of their rows it has.

    heights, widths : of the blocks. block, row : the numbers of their first block and row.
    """

    heights: tuple[int, ...]
    widths: tuple[int, ...]
    block: int
    row: int
    span: tuple[int, int]
    dtype: np.dtype[Any]


def _joined(
    blocks: list[list[AnyArray]], about: Joined, dtype: np.dtype[Any], checked: bool
) -> Any:
    start, stop = about.span
    rows = [
        [
            _as_csr(x, (height, width), about.dtype, (about.block + i, j))
            for j, (x, width) in enumerate(zip(row, about.widths, strict=True))
        ]
        for i, (row, height) in enumerate(zip(blocks, about.heights, strict=True))
    ]
    joined = (
        rows[0][0]
        if len(rows) == len(rows[0]) == 1
        else scipy.sparse.block_array(rows, format="csr")
    )
    part = joined[start - about.row : stop - about.row]
    return Slab(part.data, part.indices, part.indptr, part.shape[1], start, dtype, checked).read()


def unlike(x: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    """How a dask block is not what its array says; empty if it is."""
    if x.shape != shape:
        return f"has shape {x.shape}, not {shape}"
    found = dtype_of(x)
    if not (np.can_cast(found, dtype) or found.kind == dtype.kind == "f"):
        return f"holds {found}, not {dtype}"
    return ""


def not_as_told(at: tuple[int, ...], wrong: str) -> TypeError:
    return TypeError(
        f"V's dask block {at} {wrong}: the function that makes it has to give what the dask array "
        "says"
    )


def _as_csr(x: Any, shape: tuple[int, int], dtype: np.dtype[Any], at: tuple[int, int]) -> Any:
    """A block of a dask array as a csr_array, if it is what the array says that it is."""
    wrong = ""
    if not is_sparse(x):
        wrong = f"is a {type(x).__name__}, not sparse like the others"
    if wrong := wrong or unlike(x, shape, dtype):
        raise not_as_told(at, wrong)
    return scipy.sparse.csr_array(x if scipy.sparse.issparse(x) else x.to_scipy_sparse())
