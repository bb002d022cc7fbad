"""A copy of V in other chunks, block by block; a killed call goes on where it stopped."""

import logging
import os
from dataclasses import dataclass, replace
from math import ceil, lcm, prod
from typing import Any, Literal, cast

import dask
import numpy as np
import zarr
from dask.base import tokenize
from dask.utils import format_bytes
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.sync import sync  # zarr's own event loop

from dask_nmf.blocks import Grid, even
from dask_nmf.fitting import limit_of
from dask_nmf.geometry import BASE_BYTES, Geometry
from dask_nmf.io import absolute, check_apart, check_reachable, open_matrix
from dask_nmf.matrix import Matrix, Missing
from dask_nmf.options import parse_memory
from dask_nmf.output import check_space
from dask_nmf.scheduler import active_scheduler
from dask_nmf.survey import geometry
from dask_nmf.types import Array

Codec = Literal["lz4", "zstd", "none"]
Pair = tuple[int, int]

_KEY = "dask_nmf_rechunk"  # the attribute that marks a copy as ours; "finished" is written last
_STAGE = ".stage"  # what a copy in two steps goes through lies beside it
_TARGET = 2**24  # decoded bytes of a chunk: joined to blocks by every plan, and split by none
_CODECS: dict[str, list[Any]] = {
    "lz4": [BloscCodec(cname="lz4", shuffle="shuffle"), Crc32cCodec()],
    "zstd": [ZstdCodec(checksum=True)],
    "none": [Crc32cCodec()],
}

logger = logging.getLogger("dask_nmf")


@dataclass(frozen=True)
class Step:
    """A copy whose tasks each read a box of the source and write whole chunks of the target."""

    box: Pair
    chunks: Pair
    reads: float
    peak_bytes: int

    @property
    def told(self) -> str:
        return "to {:,} x {:,} in boxes of {:,} x {:,}, ".format(*self.chunks, *self.box) + (
            f"{self.reads:.2f} reads, {format_bytes(self.peak_bytes)} per process"
        )


def rechunk(
    V: Any,
    out: str | os.PathLike[str],
    *,
    chunks: Pair | None = None,
    memory: int | str | None = None,
    missing: Missing = "error",
    codec: Codec = "lz4",
) -> zarr.Array[Any]:
    """Copy V to a zarr array in chunks that `factorize` reads fast.

    Runs on the active dask scheduler. A killed call goes on where it stopped when it is made
    again; a finished copy is returned without a read of V.

    Parameters
    ----------
    V : zarr array, path or URL of one, dask array or numpy array; (m, n)
    out : path or URL
        Where the copy goes: a zarr v3 array with V's dtype, attributes and dimension names.
    chunks : (rows, columns), optional
        None: whole rows, about 16 MiB decoded; whole columns where a row is larger than that.
    memory : int or str, optional
        Limit in bytes, or such as "2GiB", for each worker process, as for `factorize`.
    missing : "error" or "zero"
        What a chunk that V's store does not hold means.
    codec : "lz4", "zstd" or "none"
        A checksum follows in any case, and chunks of zeros are stored.

    Returns
    -------
    zarr.Array
        The copy.

    Raises
    ------
    TypeError, ValueError
        Before anything is written, if an argument is out of range, `out` and V do not lie apart,
        or `memory` is too small. In mid-copy, if a chunk of V is missing.
    FileExistsError
        If `out` holds anything but a copy that was begun with the same arguments.
    OSError
        If `out` cannot be written, or its disk has not even a tenth of V's decoded bytes free
        (all of them with codec "none").

    Notes
    -----
    Cost: one read of V where boxes of whole chunks of both fit in memory; else V is copied twice,
    by way of an array beside `out` that is deleted at the end.

    Examples
    --------
    >>> import tempfile
    >>> V = np.arange(12.0).reshape(4, 3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     copy = rechunk(V, f"{folder}/copy.zarr", chunks=(2, 3))
    ...     copy.chunks, bool((copy[:] == V).all())
    ((2, 3), True)
    """
    matrix, out = open_matrix(V, missing), absolute(out)
    if matrix.sparse:
        raise TypeError(
            "V must be dense to be rechunked, got a sparse matrix: its rows are read in any chunks"
        )
    if not isinstance(codec, str) or codec not in _CODECS:
        raise ValueError(f"codec must be one of {sorted(_CODECS)}, got {codec!r}")
    scheduler = active_scheduler()
    check_reachable("V", getattr(matrix.source, "store", None), scheduler.remote)
    limit = limit_of(None if memory is None else parse_memory(memory), scheduler)
    known = geometry(matrix, 1, scheduler)
    size = _suited(known) if chunks is None else _checked(chunks, matrix.shape)
    check_apart(out, matrix.uri)
    recipe = {"V": _name(matrix), "shape": list(matrix.shape), "dtype": str(matrix.dtype)}
    recipe |= {"chunks": list(size), "codec": codec, "missing": missing}
    copy: Any = _find(out, recipe)
    if copy is not None and copy.attrs[_KEY]["state"] == "finished":
        return cast(zarr.Array[Any], copy)
    steps = _steps(known, size, limit)
    check_space(out, matrix.nbytes // (1 if codec == "none" else 10), "the copy needs")
    logger.info("rechunk %s: %s", matrix.uri, ", then ".join(step.told for step in steps))
    middle = {**recipe, "chunks": list(steps[0].chunks), "codec": "lz4", "stage_of": out}
    stage = _find(out + _STAGE, middle) if len(steps) == 2 else None
    copy = copy or _create(out, recipe, matrix.source)
    if len(_stored(copy)) < copy.nchunks:
        if len(steps) == 2:
            stage = stage or _create(out + _STAGE, middle, None)
            _transfer(matrix, stage, steps[0])
            matrix = open_matrix(stage)
        _transfer(matrix, copy, steps[-1])
    _delete_stage(out)
    copy.update_attributes({_KEY: {**recipe, "state": "finished"}})
    return cast(zarr.Array[Any], copy)


# ---------------------------------------------------------------------------- which boxes
def _suited(known: Geometry) -> Pair:
    """Whole rows of about 16 MiB that go into what is decoded at once, or it into them."""
    if known.n * known.stored > _TARGET and known.m < known.n:
        columns, rows = _suited(known.T)
        return rows, columns
    rows, piece = max(1, _TARGET // (known.n * known.stored)), known.piece[0]
    if piece <= rows:
        rows -= rows % piece
    elif piece < known.m:
        rows = _part(piece, rows)
    return min(rows, known.m), known.n


def _part(whole: int, wanted: int) -> int:
    """The largest divisor of `whole` that is not above `wanted`."""
    return next(size for size in range(min(whole, wanted), 0, -1) if whole % size == 0)


def _steps(known: Geometry, chunks: Pair, limit: int | None) -> list[Step]:
    """One copy, or two where boxes of whole chunks of both do not fit in memory."""
    direct = _step(known, chunks)
    if limit is None or direct.peak_bytes <= limit:
        return [direct]
    shape = (known.m, known.n)
    middle: Any = tuple(
        wanted if piece >= size else _part(piece, wanted)
        for size, piece, wanted in zip(shape, known.piece, chunks, strict=True)
    )
    staged = replace(known, chunk=middle, piece=middle, payload=1.0, decoded=1.0)
    steps = [_step(known, middle), _step(staged, chunks)]
    largest = max(steps, key=lambda step: step.peak_bytes)
    if largest.peak_bytes > limit:
        raise ValueError(
            f"memory={format_bytes(limit)} is too small to rechunk V: {known.threads} thread(s) "
            f"with boxes of {largest.box[0]:,} x {largest.box[1]:,} need "
            f"{format_bytes(largest.peak_bytes)} per process. Raise memory= to it, use fewer "
            "threads, or take smaller chunks"
        )
    return steps


def _step(known: Geometry, chunks: Pair) -> Step:
    sides = zip((known.m, known.n), chunks, known.piece, strict=True)
    box: Any = tuple(_shared(*side) for side in sides)
    reads = 1.0
    for size, edge, piece in zip((known.m, known.n), box, known.piece, strict=True):
        reads *= 1.0 if edge >= size or edge % piece == 0 else 1 + piece / edge
    held = prod(box) * (2 + known.extra) + known.payload * min(prod(box), prod(known.chunk))
    held += known.decoded * min(prod(box), prod(known.piece)) + 2 * prod(chunks)
    peak = BASE_BYTES + known.resident + known.threads * ceil(held * known.stored)
    return Step(box, chunks, reads, peak)


def _shared(size: int, chunk: int, piece: int) -> int:
    """The edge of a box: whole chunks of the target, and whole pieces of the source if it can."""
    both = lcm(chunk, piece)
    if both > 4 * max(chunk, piece):
        both = ceil(4 * max(chunk, piece) / chunk) * chunk
    return min(both, size)


def _checked(chunks: Any, shape: Pair) -> Pair:
    sizes = tuple(chunks) if isinstance(chunks, (tuple, list)) else ()
    whole = [isinstance(x, (int, np.integer)) and not isinstance(x, bool) for x in sizes]
    if len(sizes) != 2 or not all(whole) or min(sizes) < 1:
        raise ValueError(f"chunks must be (rows, columns), both at least 1, got {chunks!r}")
    return min(int(sizes[0]), shape[0]), min(int(sizes[1]), shape[1])


# ------------------------------------------------------------------------------- the copy
def _transfer(matrix: Matrix, target: Any, step: Step) -> None:
    """Copy the boxes of which chunks are not there yet: one task reads, the next one writes."""
    (m, n), (high, wide) = matrix.shape, step.box
    V = matrix.unchecked.blocks(Grid(even(m, high), even(n, wide)), matrix.dtype)
    there, (rows, columns) = _stored(target), step.chunks
    blocks, tasks = V.to_delayed(), []
    for i, j in np.ndindex(V.numblocks):
        corner = i * high, j * wide
        inside = (
            (row, column)
            for row in range(corner[0] // rows, ceil(min(corner[0] + high, m) / rows))
            for column in range(corner[1] // columns, ceil(min(corner[1] + wide, n) / columns))
        )
        if not there.issuperset(inside):
            tasks.append(dask.delayed(_write)(blocks[i, j], target, corner))
    dask.compute(*tasks)


def _write(block: Array, target: Any, corner: Pair) -> None:
    """Whole chunks of the target, so that no two tasks write one."""
    (top, left), (height, width) = corner, block.shape
    target[top : top + height, left : left + width] = block


def _stored(array: Any) -> set[Pair]:
    """The chunks that exist; each is whole, for a store makes it appear in one go."""
    place = array.store_path
    prefix = f"{place.path}/" if place.path else ""

    async def names() -> set[str]:
        return {name.removeprefix(prefix) async for name in place.store.list_prefix(prefix)}

    found = sync(names())
    grid = (ceil(size / step) for size, step in zip(array.shape, array.chunks, strict=True))
    return {at for at in np.ndindex(*grid) if array.metadata.encode_chunk_key(at) in found}


# ---------------------------------------------------------------------------- what is there
def _name(matrix: Matrix) -> str:
    """Where V lies; an array in memory by its content, so that no two are mixed in one copy."""
    return f"numpy array {tokenize(matrix.source)}" if matrix.in_memory else matrix.uri


def _delete_stage(out: str) -> None:
    """Delete the stage of this copy, and nothing else that may lie there."""
    try:
        found: Any = zarr.open_array(out + _STAGE, mode="r+")
    except (FileNotFoundError, ValueError):
        return
    if found.attrs.get(_KEY, {}).get("stage_of") == out:
        sync(found.store_path.delete_dir())


def _find(path: str, recipe: dict[str, Any]) -> Any:
    """The copy at `path` that was begun with this recipe; None if there is nothing."""
    try:
        found = zarr.open(path, mode="r+")
    except FileNotFoundError:
        if os.path.exists(path) and (os.path.isfile(path) or os.listdir(path)):
            raise FileExistsError(f"out: {path} holds something else: choose another") from None
        return None
    except FileExistsError:  # a file: zarr tries to make a folder there
        raise FileExistsError(f"out: {path} holds something else: choose another") from None
    except NotADirectoryError as error:
        raise NotADirectoryError(f"out: cannot write to {path}: {error}") from error
    saved: Any = found.attrs.get(_KEY) if isinstance(found, zarr.Array) else None
    if saved is None:
        raise FileExistsError(
            f"out: {path} holds something that rechunk did not write: choose another path"
        )
    differ = [f"{k} {saved.get(k)}, now {recipe[k]}" for k in recipe if saved.get(k) != recipe[k]]
    if differ:
        raise FileExistsError(
            f"out: {path} holds a copy made by another call ({'; '.join(differ)}): repeat that "
            "call, choose another path, or delete it"
        )
    return _storing_zeros(found)


def _create(path: str, recipe: dict[str, Any], like: Any) -> Any:
    """A new array; what it is going to hold is in its attributes from the first moment."""
    attributes, names = {}, None
    if isinstance(like, zarr.Array):
        attributes = like.attrs.asdict()
        names = getattr(like.metadata, "dimension_names", None)
    try:
        made = zarr.create_array(
            path,
            shape=recipe["shape"],
            dtype=recipe["dtype"],
            chunks=recipe["chunks"],
            compressors=_CODECS[recipe["codec"]],
            attributes={**attributes, _KEY: {**recipe, "state": "unfinished"}},
            dimension_names=names,
        )
    except OSError as error:
        raise type(error)(f"out: cannot write to {path}: {error}") from error
    return _storing_zeros(made)


def _storing_zeros(array: Any) -> Any:
    """An absent chunk is damage, or not made yet: never zeros."""
    config: Any = {"write_empty_chunks": True}
    return zarr.Array(zarr.AsyncArray(array.metadata, array.store_path, config=config))


def describe(array: zarr.Array[Any]) -> str:
    """What a copy is, in a line."""
    return (
        f"{array.store_path}: {array.shape[0]:,} x {array.shape[1]:,} {array.dtype} in "
        f"{array.nchunks:,} chunks of {array.chunks[0]:,} x {array.chunks[1]:,}, "
        f"{format_bytes(array.nbytes)}, {format_bytes(array.nbytes_stored())} stored"
    )
