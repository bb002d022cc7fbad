"""Blocks of a zarr array, from its store's bytes straight into one aligned array.

Measured on zarr 3.1 with two threads, 1.6 GB in the page cache: `array[rows]` 1.3 s, by way of an
event loop, a thread pool and two copies; this reader 0.3 s from lz4, and no copy at all from
uncompressed files, which it maps. Arrays that it cannot decode are read by zarr itself.
"""

import asyncio
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import get_codec
from numcodecs.abc import Codec
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.buffer.cpu import NDBuffer
from zarr.core.sync import sync  # zarr's own event loop: remote file systems are bound to it
from zarr.storage import LocalStore, StorePath, WrapperStore

from dask_nmf.types import Array

Box = tuple[slice, slice]

_MAPPED_BYTES = 2**20  # from here on a block gets pages of its own, given back when it is dropped
_ABSENT = 2**64 - 1  # in the index of a shard
_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


@dataclass(frozen=True)
class Layout:
    """How the chunks of an array are encoded.

    Attributes
    ----------
    chunk : (int, int)
        Shape of what lies under one key: a chunk, or a shard of inner chunks.
    inner : (int, int)
        Shape of the inner chunks; that of the chunk where there are no shards.
    stored : dtype
        With the byte order of the store.
    codecs : tuple
        What undoes the compression, in the order of decoding.
    shards : None, "start" or "end"
        Where the index of a shard lies.
    """

    chunk: tuple[int, int]
    inner: tuple[int, int]
    stored: np.dtype[Any]
    codecs: tuple[Codec, ...]
    shards: str | None = None


@dataclass(frozen=True)
class Reader:
    """A 2-D zarr array whose boxes are read when sliced: contiguous, aligned, in `dtype`."""

    array: Any
    dtype: np.dtype[Any]
    strict: bool = True
    """Whether an absent chunk is an error; else it holds the fill value."""

    ndim = 2

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @cached_property
    def layout(self) -> Layout | None:
        """None where only zarr can decode the array."""
        return find_layout(self.array)

    def __getitem__(self, index: Any) -> Array:
        rows, columns = (
            slice(*part.indices(size)[:2]) for part, size in zip(index, self.shape, strict=True)
        )
        if self.layout is None:
            return self._read_by_zarr((rows, columns))
        return self._read((rows, columns), self.layout)

    def _read(self, box: Box, layout: Layout) -> Array:
        numbers = [
            (i, j)
            for i in _overlapping(box[0], layout.chunk[0])
            for j in _overlapping(box[1], layout.chunk[1])
        ]
        block: Array | None = None
        for number, payload in _payloads(self.array, numbers):
            key = self.array.metadata.encode_chunk_key(number)
            if payload is None and self.strict:
                raise ValueError(absent(key, self.array.store))
            part = _box(number, layout.chunk)
            try:
                if payload is not None and len(numbers) == 1 and _is_plain(layout, self.dtype):
                    mapped = _view(payload, layout)[_shifted(box, part)]
                    if mapped.flags.c_contiguous and mapped.flags.aligned:
                        return mapped
                if block is None:
                    block = empty(_shape(box), self.dtype)
                if payload is None:
                    _put(block, box, part, np.array(self.array.fill_value))
                else:
                    self._decode(block, box, part, payload, layout)
            except (ValueError, RuntimeError, EOFError) as error:
                raise ValueError(
                    f"chunk {key!r} of {self.array.store_path} is damaged: {error}"
                ) from error
        assert block is not None
        return block

    def _decode(self, block: Array, box: Box, part: Box, payload: Any, layout: Layout) -> None:
        """Put the part of `box` that lies in this chunk (or shard) into the block."""
        if layout.shards is None:
            _decode_into(block, box, part, payload, layout)
            return
        index = _shard_index(payload, layout)
        within = _shifted(_common(box, part), part)
        for i in _overlapping(within[0], layout.inner[0]):
            for j in _overlapping(within[1], layout.inner[1]):
                offset, size = (int(number) for number in index[i, j])
                inner = _box((i, j), layout.inner, part)
                if offset == _ABSENT:
                    _put(block, box, inner, np.array(self.array.fill_value))
                else:
                    _decode_into(block, box, inner, payload[offset : offset + size], layout)

    def _read_by_zarr(self, box: Box) -> Array:
        array = self.array
        if self.strict:
            path = StorePath(Strict(array.store_path.store), array.store_path.path)
            array = zarr.Array(zarr.AsyncArray(metadata=array.metadata, store_path=path))
        read: Any = np.empty(_shape(box), array.dtype)
        array.get_basic_selection(box, out=NDBuffer(read))
        return np.require(read, dtype=self.dtype, requirements=["C", "A"])


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An uninitialized array; a large one has pages of its own, outside malloc's heaps.

    malloc keeps what large blocks leave behind, once per thread; these pages go back at once. Huge
    pages take a fifth of the time to be cleared.
    """
    nbytes = prod(shape) * dtype.itemsize
    if nbytes < _MAPPED_BYTES:
        return np.empty(shape, dtype)
    if not hasattr(mmap, "MAP_ANONYMOUS"):  # Windows
        return np.frombuffer(mmap.mmap(-1, nbytes), dtype).reshape(shape)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)


# ------------------------------------------------------------------------------ what is known
def find_layout(array: zarr.Array[Any]) -> Layout | None:
    """The layout of a 2-D array, or None where only zarr can decode it."""
    metadata: Any = array.metadata
    rows, columns = array.shards or array.chunks
    chunk = (rows, columns)
    if metadata.zarr_format == 2:
        if metadata.filters or metadata.order != "C":
            return None
        return Layout(
            chunk, chunk, array.dtype, (metadata.compressor,) if metadata.compressor else ()
        )
    codecs = metadata.to_dict()["codecs"]
    if codecs[0]["name"] != "sharding_indexed":
        return _of_codecs(array, chunk, chunk, codecs)
    config = codecs[0]["configuration"]
    index = [codec["name"] for codec in config["index_codecs"]]
    inner = tuple(config["chunk_shape"])
    if len(codecs) > 1 or index != ["bytes", "crc32c"]:
        return None
    return _of_codecs(array, chunk, inner, config["codecs"], str(config["index_location"]))


def _of_codecs(
    array: Any, chunk: Any, inner: Any, codecs: Any, shards: str | None = None
) -> Layout | None:
    as_bytes, *compressors = codecs
    names = [codec["name"] for codec in compressors]
    known = {"blosc", "zstd", "gzip", "crc32c"}
    if as_bytes["name"] != "bytes" or not known.issuperset(names):
        return None
    order = {"little": "<", "big": ">"}[as_bytes.get("configuration", {}).get("endian", "little")]
    decoders = tuple(get_codec({"id": name}) for name in reversed(names))
    return Layout(chunk, inner, array.dtype.newbyteorder(order), decoders, shards)


def is_mapped(array: zarr.Array[Any]) -> bool:
    """Whether any rows of a chunk can be had without decoding all of it."""
    layout = find_layout(array)
    return layout is not None and not layout.codecs and isinstance(array.store, LocalStore)


def stored_share(array: zarr.Array[Any], samples: int = 64) -> tuple[float, float] | None:
    """Stored over decoded bytes, mean and maximum over some chunks; None where it is not known.

    Only sizes are asked for: a store that would have to read the chunks for them is not.
    """
    if type(array.store).getsize is Store.getsize:
        return None
    rows, columns = array.shards or array.chunks
    grid = [-(-size // step) for size, step in zip(array.shape, (rows, columns), strict=True)]
    total = prod(grid)
    numbers = [i * total // min(samples, total) for i in range(min(samples, total))]
    keys = [array.metadata.encode_chunk_key(divmod(i, grid[1])) for i in numbers]

    async def size(key: str) -> int:
        try:
            return await array.store.getsize(f"{array.path}/{key}".lstrip("/"))
        except FileNotFoundError:
            return 0

    async def sizes() -> list[int]:
        return await asyncio.gather(*(size(key) for key in keys))

    found = np.array(sync(sizes())) / (rows * columns * array.dtype.itemsize)
    return float(found.mean()), float(found.max())


def absent(key: str, store: Any) -> str:
    return (
        f"chunk {key!r} of V is not in {store}: it would read as zeros. Restore it, or pass "
        "missing='zero' if V's writer left out chunks of zeros"
    )


class Strict(WrapperStore[Any]):
    """A store in which an absent chunk is an error, for arrays that zarr reads."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        value = await self._store.get(key, prototype, byte_range)
        if value is None and key.rsplit("/", 1)[-1] not in _METADATA:
            raise ValueError(absent(key, self._store))
        return value


# -------------------------------------------------------------------------------- the bytes
def _payloads(array: Any, numbers: list[tuple[int, int]]) -> Iterator[tuple[Any, Any]]:
    """The stored bytes of each chunk, None for an absent one; files are mapped one by one."""
    store, path = array.store_path.store, array.store_path.path
    keys = [array.metadata.encode_chunk_key(number) for number in numbers]
    if isinstance(store, LocalStore):
        for number, key in zip(numbers, keys, strict=True):
            yield number, _map_file(store.root / path / key)
        return

    async def get_all() -> list[Any]:
        prototype = default_buffer_prototype()
        return await asyncio.gather(*((array.store_path / key).get(prototype) for key in keys))

    for number, value in zip(numbers, sync(get_all()), strict=True):
        yield number, None if value is None else memoryview(value.as_numpy_array())


def _map_file(path: Path) -> memoryview | None:
    """The file in place. zarr replaces files and never rewrites them, so what is mapped stays."""
    try:
        with path.open("rb", buffering=0) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        return None
    except ValueError:  # an empty file cannot be mapped
        return memoryview(b"")
    if hasattr(mmap, "MADV_SEQUENTIAL"):
        mapped.madvise(mmap.MADV_SEQUENTIAL)
    return memoryview(mapped)


def _shard_index(payload: Any, layout: Layout) -> Array:
    """(offset, size) in bytes of each inner chunk."""
    grid = [outer // inner for outer, inner in zip(layout.chunk, layout.inner, strict=True)]
    size = 16 * prod(grid) + 4
    if len(payload) < size:
        raise ValueError(f"it holds {len(payload):,} bytes, less than the index of a shard")
    index = payload[-size:] if layout.shards == "end" else payload[:size]
    checked = get_codec({"id": "crc32c"}).decode(index)
    return np.frombuffer(checked, "<u8").reshape(*grid, 2)


# -------------------------------------------------------------------------------- decoding
def _is_plain(layout: Layout, dtype: np.dtype[Any]) -> bool:
    return not layout.codecs and layout.shards is None and layout.stored == dtype


def _decode_into(block: Array, box: Box, part: Box, payload: Any, layout: Layout) -> None:
    """Decode one chunk that covers `part`, and put its share of `box` into the block."""
    *first, last = layout.codecs or (None,)
    for codec in first:
        payload = codec.decode(payload)
    if last is None:
        _put(block, box, part, _view(payload, layout))
        return
    target = block[_shifted(_common(box, part), box)]
    direct = (
        target.flags.c_contiguous
        and target.shape == layout.inner
        and layout.stored == block.dtype
        and last.codec_id == "blosc"
        and int.from_bytes(payload[4:8], "little") == target.nbytes  # from blosc's header
    )
    if direct:
        last.decode(payload, out=target)
    else:
        _put(block, box, part, _view(last.decode(payload), layout))


def _view(payload: Any, layout: Layout) -> Array:
    values = np.frombuffer(payload, np.uint8)
    wanted = prod(layout.inner) * layout.stored.itemsize
    if values.nbytes != wanted:
        raise ValueError(f"it holds {values.nbytes:,} bytes, not {wanted:,}")
    return values.view(layout.stored).reshape(layout.inner)


def _put(block: Array, box: Box, part: Box, values: Array) -> None:
    common = _common(box, part)
    if values.ndim:
        values = values[_shifted(common, part)]
    block[_shifted(common, box)] = values


# ------------------------------------------------------------------------------------ boxes
def _overlapping(wanted: slice, size: int) -> range:
    return range(wanted.start // size, -(-wanted.stop // size))


def _box(number: tuple[int, int], shape: tuple[int, int], origin: Box | None = None) -> Box:
    starts = [i * size for i, size in zip(number, shape, strict=True)]
    if origin is not None:
        starts = [start + part.start for start, part in zip(starts, origin, strict=True)]
    rows, columns = (slice(a, a + size) for a, size in zip(starts, shape, strict=True))
    return rows, columns


def _shape(box: Box) -> tuple[int, int]:
    return box[0].stop - box[0].start, box[1].stop - box[1].start


def _common(a: Box, b: Box) -> Box:
    rows, columns = (
        slice(max(x.start, y.start), min(x.stop, y.stop)) for x, y in zip(a, b, strict=True)
    )
    return rows, columns


def _shifted(box: Box, origin: Box) -> Box:
    """The box counted from the corner of another; never beyond it."""
    common = _common(box, origin)
    rows, columns = (
        slice(part.start - corner.start, part.stop - corner.start)
        for part, corner in zip(common, origin, strict=True)
    )
    return rows, columns
