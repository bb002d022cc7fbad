"""A matrix in a file, as pieces of (rows, columns, values): what `convert` reads."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_nmf.types import Array

Piece = tuple[Array, Array, Array]
"""Rows, columns and values of some entries, as they stand in the file: not yet checked."""

Take = Callable[[int, int], tuple[Array, Array]]
"""Indices and data from one place to another one, asked for in ascending order."""


@dataclass(frozen=True)
class Source:
    """A matrix in a file.

    Attributes
    ----------
    dtype : numpy dtype
        Of its values, in the file.
    entries : int
        As many as there are, or a few more.
    ordered : bool
        Whether each piece holds whole rows, and later rows than the one before.
    pieces : callable
        Reads the file once, in pieces of about so many entries.
    resident : int
        Bytes that stay in memory all the while.
    note : str
        Added where an index is out of range.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    entries: int
    ordered: bool
    pieces: Callable[[int], Iterator[Piece]]
    resident: int = 0
    note: str = ""


def compressed(
    path: str,
    shape: Any,
    by_columns: bool,
    indptr: Array,
    dtype: np.dtype[Any],
    counts: tuple[int, int],
    opened: Callable[[], AbstractContextManager[Take]],
) -> Source:
    """CSR or CSC. counts : of the indices and the data."""
    m, n = (int(size) for size in shape)
    major, total = (n if by_columns else m), counts[1]
    whole = indptr.dtype.kind in "iu" and indptr.shape == (major + 1,) and counts[0] == total
    if not whole or indptr[0] or indptr[-1] != total or (indptr[1:] < indptr[:-1]).any():
        raise ValueError(
            f"source: indptr of {path!r} does not fit the rest: {len(indptr)} numbers for {major} "
            f"{'columns' if by_columns else 'rows'}, {counts[0]} indices and {total} values: "
            "write the file again"
        )

    def pieces(at_once: int) -> Iterator[Piece]:
        begin = 0
        with opened() as take:
            while begin < total:
                line = int(np.searchsorted(indptr, begin, "right")) - 1
                end = min(begin + at_once, total)
                if not by_columns:  # whole rows, at least one
                    last = int(np.searchsorted(indptr, end, "right")) - 1
                    end = int(indptr[max(last, line + 1)])
                last = int(np.searchsorted(indptr, end))
                bounds = np.clip(indptr[line : last + 1].astype(np.int64), begin, end)
                majors = np.repeat(np.arange(line, last), np.diff(bounds))
                minors, values = take(begin, end)
                yield (minors, majors, values) if by_columns else (majors, minors, values)
                begin = end

    return Source((m, n), dtype, total, not by_columns, pieces, indptr.nbytes)


def dense(
    path: str,
    shape: Any,
    dtype: np.dtype[Any],
    chunk: int,
    opened: Callable[[], AbstractContextManager[Any]],
) -> Source:
    if len(shape) != 2:
        raise ValueError(f"source: the matrix of {path!r} must be 2-D, got shape {shape}")
    m, n = shape

    def pieces(at_once: int) -> Iterator[Piece]:
        rows = max(1, at_once // n)
        rows = max(rows - rows % chunk, min(rows, chunk))
        with opened() as X:
            for top in range(0, m, rows):
                slab = X[top : top + rows]
                i, j = np.nonzero(slab)
                yield i + top, j, slab[i, j]

    return Source((m, n), dtype, m * n, True, pieces)
