"""A sparse copy of V in zarr, from the files that matrices of counts come in; streaming."""

import logging
import os
import tempfile
from collections.abc import Iterator
from itertools import chain
from typing import Any, cast

import numpy as np
import zarr
from dask.utils import format_bytes
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.sync import sync  # zarr's own event loop

from dask_nmf.files import open_source
from dask_nmf.geometry import BASE_BYTES
from dask_nmf.io import absolute, check_apart
from dask_nmf.limits import default_memory
from dask_nmf.options import parse_memory
from dask_nmf.output import check_space
from dask_nmf.sorting import Entries, in_order, merged
from dask_nmf.sources import Piece, Source
from dask_nmf.types import Array

_KEY = "dask_nmf_convert"  # marks a copy that is not finished; what AnnData asks for comes last
_CHUNK = 2**19  # numbers: 2 or 4 MiB decoded
_CODECS: list[Any] = [BloscCodec(cname="lz4", shuffle="shuffle"), Crc32cCodec()]
_FIXED = BASE_BYTES + 2**26  # and the libraries that read, and three chunks being filled
_PER_ENTRY = 128  # bytes of an entry while it is parsed or sorted
_MOST = 2**20, 2**22  # entries of a piece, and sorted at once: more is not faster
_LEAST = 2**17  # entries at once: with fewer it would take ages

logger = logging.getLogger("dask_nmf")


class _Inexact(Exception):
    """An integer that float32 does not hold."""


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    memory: int | str | None = None,
    overwrite: bool = False,
    layer: str | None = None,
) -> zarr.Group:
    """Copy a matrix from a file to a CSR group in zarr, as AnnData lays it out.

    Runs in this process, in pieces. A killed call leaves a group that the same call replaces.

    Parameters
    ----------
    source : path
        A file, (m, n), non-negative:

        * .mtx, .mtx.gz: MatrixMarket coordinates, real, integer or pattern, general or symmetric.
        * .npz: as scipy.sparse.save_npz writes csr, csc or coo, or with the arrays data, indices,
          indptr and shape.
        * .h5ad: X or a layer of AnnData, CSR, CSC or dense (needs h5py).
        * .parquet: a column per column of V; or three, row, col (column) and value (data), from 0,
          where the largest row and column say the shape (needs pyarrow).
    out : path or URL
        Where the group goes: arrays data, indices and indptr, zarr format 3.
    memory : int or str, optional
        Limit in bytes, or such as "2GiB", for this process. None: 60 % of what the container or
        the machine allows.
    overwrite : bool
        Replace another CSR group at `out`; what is anything else is never replaced.
    layer : str, optional
        Of an .h5ad file: this layer rather than X.

    Returns
    -------
    zarr.Group
        The copy. Columns ascend in each row, duplicates are summed, zeros are left out. Data is
        float32 where the source is, or holds integers up to 2**24, else float64.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, the file is damaged, an index is out of range, or an entry
        is negative, NaN or infinite. Nothing is left at `out`.
    FileNotFoundError, FileExistsError
        If there is no `source`, or anything at `out`.
    ImportError
        If the library that reads the source is not installed.
    OSError
        If `out` cannot be written, or its disk is too small.

    Notes
    -----
    Cost: one read of the source (two of integers above 2**24). Entries that are not in the order
    of rows are sorted by way of unnamed temporary files beside `out`, 12 or 16 bytes each. The
    row pointers of CSR and CSC files, and a single row, are held in memory.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/V.npz", data=[3, 1], indices=[1, 0], indptr=[0, 1, 2], shape=[2, 2])
    ...     group = convert(f"{folder}/V.npz", f"{folder}/V.zarr")
    ...     group["data"][:], group.attrs["encoding-type"]
    (array([3., 1.], dtype=float32), 'csr_matrix')
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source must be the path of a file, got {type(source).__name__}")
    path, out = absolute(source), absolute(out)
    check_apart(out, f"file://{path}")
    limit = default_memory() if memory is None else parse_memory(memory)
    _find(out, overwrite)
    found = open_source(path, layer)
    at_once = (limit - _FIXED - found.resident) // _PER_ENTRY
    if at_once < _LEAST:
        need = _FIXED + found.resident + _LEAST * _PER_ENTRY
        raise ValueError(
            f"memory={format_bytes(limit)} is too small to convert {path}: raise memory= to "
            f"{format_bytes(need)} or more"
        )
    logger.info("convert %s: %d x %d %s", path, *found.shape, found.dtype)
    if found.dtype.kind != "f":
        try:
            return _convert(path, found, out, overwrite, at_once, np.dtype(np.float32))
        except _Inexact:
            logger.info("convert %s: again in float64, for its integers", path)
    single = found.dtype.kind == "f" and found.dtype.itemsize <= 4
    dtype: Any = np.dtype(np.float32 if single else np.float64)
    return _convert(path, found, out, overwrite, at_once, dtype)


def _convert(
    path: str, found: Source, out: str, overwrite: bool, at_once: int, dtype: np.dtype[Any]
) -> zarr.Group:
    """Read, sort, write. The first run is there, and most errors are behind, when out is made."""
    held = np.dtype(np.float32 if found.dtype == np.float32 else np.float64)
    pieces = found.pieces(min(at_once, _MOST[0]))
    entries = (_checked(path, found.shape, piece, held) for piece in pieces)
    runs: Iterator[Entries]
    if found.ordered:
        runs = (merged(*piece) for piece in entries if len(piece[0]))
    else:
        folder = tempfile.gettempdir() if "://" in out else os.path.dirname(out)
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"out: cannot write to {folder}: permission denied")
        check_space(folder, found.entries * (8 + held.itemsize), "sorting needs")
        span = 0, found.shape[0] * found.shape[1]
        runs = in_order(entries, span, found.entries, min(at_once, _MOST[1]), folder)
    first = [run for run in (next(runs, None),) if run is not None]
    group = _begin(out, overwrite)
    try:
        _write(group, chain(first, runs), found.shape, dtype, exact=found.dtype.kind != "f")
        told: Any = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
        group.attrs.put({**told, "shape": list(found.shape)})
    except BaseException:
        sync(group.store_path.delete_dir())
        raise
    return group


def _checked(path: str, shape: tuple[int, int], piece: Piece, dtype: np.dtype[Any]) -> Entries:
    """Keys and values of entries that are inside, finite and positive; zeros are dropped."""
    inside = []
    for name, size, given in zip(("row", "column"), shape, piece[:2], strict=True):
        index = given
        if given.dtype != np.int64:
            with np.errstate(invalid="ignore"):
                index = given.astype(np.int64)
        bad = (index < 0) | (index >= size) | (index != given)
        if bad.any():
            at = int(bad.argmax())
            raise ValueError(
                f"source: {name} {given[at]} of an entry of {path} lies outside of the "
                f"{shape[0]} x {shape[1]} matrix (counted from 0): correct the file"
            )
        inside.append(index)
    (rows, columns), values = inside, piece[2]
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        at = int(bad.argmax())
        raise ValueError(
            f"source must be finite and non-negative, but row {rows[at]}, column {columns[at]} of "
            f"{path} (counted from 0) holds {values[at]}: mask, clip or drop such entries"
        )
    keys, values = rows * shape[1] + columns, values.astype(dtype, copy=False)
    kept = values != 0
    return (keys, values) if kept.all() else (keys[kept], values[kept])


# ----------------------------------------------------------------------------- what is written
def _write(
    group: zarr.Group,
    runs: Iterator[Entries],
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    exact: bool,
) -> None:
    (m, n), row, total = shape, 0, 0
    data = _Column(group, "data", dtype)
    indices = _Column(group, "indices", np.dtype(np.int32 if n <= 2**31 else np.int64))
    indptr = _Column(group, "indptr", np.dtype(np.int64))
    for keys, values in runs:
        written = values.astype(dtype, copy=False)
        if exact and dtype == np.float32 and (written != values).any():
            raise _Inexact
        if not np.isfinite(written).all():
            at = divmod(int(keys[~np.isfinite(written)][0]), n)
            raise ValueError(
                f"source: the entries of row {at[0]}, column {at[1]} (counted from 0) add up to "
                f"more than {dtype} holds: scale them, or store them as float64"
            )
        end = int(keys[-1]) // n + 1
        for top in range(row, end, _CHUNK):
            rows = np.arange(top, min(top + _CHUNK, end))
            indptr.add(np.searchsorted(keys, rows * n) + total)
        row, total = end, total + len(keys)
        indices.add(keys % n)
        data.add(written)
    for top in range(row, m + 1, _CHUNK):
        indptr.add(np.full(min(_CHUNK, m + 1 - top), total))
    for column in (data, indices, indptr):
        column.flush()


class _Column:
    """A 1-D array that grows by whole chunks."""

    def __init__(self, group: zarr.Group, name: str, dtype: np.dtype[Any]) -> None:
        self.array = group.create_array(
            name,
            shape=(0,),
            chunks=(_CHUNK,),
            dtype=dtype,
            compressors=_CODECS,
            config={"write_empty_chunks": True},  # an absent chunk is damage: never zeros
            overwrite=True,
        )
        self.chunk, self.filled = np.empty(_CHUNK, dtype), 0

    def add(self, values: Array) -> None:
        while len(values):
            taken = values[: _CHUNK - self.filled]
            self.chunk[self.filled : self.filled + len(taken)] = taken
            self.filled += len(taken)
            values = values[len(taken) :]
            if self.filled == _CHUNK:
                self.flush()

    def flush(self) -> None:
        self.array.append(self.chunk[: self.filled])
        self.filled = 0


# ------------------------------------------------------------------------------- what is there
def _find(out: str, overwrite: bool) -> Any:
    """The group at `out` that may be replaced, None if there is nothing."""
    try:
        found: Any = zarr.open(out, mode="r+")
    except FileNotFoundError:
        if not os.path.exists(out) or (os.path.isdir(out) and not os.listdir(out)):
            return None
        found = None
    except FileExistsError:  # a file: zarr tries to make a folder there
        found = None
    except NotADirectoryError as error:
        raise NotADirectoryError(f"out: cannot write to {out}: {error}") from error
    attributes = found.attrs.asdict() if isinstance(found, zarr.Group) else {}
    finished = attributes.get("encoding-type") == "csr_matrix"
    if _KEY in attributes or (finished and overwrite):
        return found
    raise FileExistsError(
        f"out: {out} holds "
        + ("a CSR group: pass overwrite=True, or" if finished else "something else:")
        + " choose another path"
    )


def _begin(out: str, overwrite: bool) -> zarr.Group:
    """A group that says that it is not finished."""
    group, state = _find(out, overwrite), {_KEY: {"state": "unfinished"}}
    try:
        if group is None:
            return zarr.create_group(out, zarr_format=3, attributes=state)
        group.attrs.put(state)
    except OSError as error:
        raise type(error)(f"out: cannot write to {out}: {error}") from error
    return cast(zarr.Group, group)


def describe(group: zarr.Group) -> str:
    """What a copy is, in a line."""
    (m, n), nnz = cast(list[int], group.attrs["shape"]), cast(Any, group["data"]).shape[0]
    arrays: list[Any] = [group[name] for name in ("data", "indices", "indptr")]
    size, stored = (
        sum(sizes) for sizes in zip(*((a.nbytes, a.nbytes_stored()) for a in arrays), strict=True)
    )
    return (
        f"{group.store_path}: {m:,} x {n:,} {arrays[0].dtype}, {nnz:,} entries "
        f"({nnz / (m * n):.3%}), {format_bytes(size)}, {format_bytes(stored)} stored"
    )
