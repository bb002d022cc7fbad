"""Blocks of a zarr array, from its store's bytes straight into one aligned array.

zarr 3.1 goes by way of an event loop, a thread pool and two copies; this reader takes half its time
from lz4, and copies nothing from uncompressed files, which it maps (table in DESIGN.md). Arrays
that it cannot decode are read by zarr itself.
"""

import asyncio
import mmap
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from gzip import BadGzipFile
from itertools import product
from math import prod
from typing import Any

import cloudpickle
import numpy as np
import zarr
from numcodecs import get_codec
from zarr.buffer import default_buffer_prototype
from zarr.buffer.cpu import NDBuffer
from zarr.core.sync import sync  # zarr's own event loop: remote file systems are bound to it
from zarr.storage import LocalStore, StorePath, WrapperStore

from dask_nmf.layout import Layout, as_pair, find_layout
from dask_nmf.retrying import insist
from dask_nmf.types import Array

Span = tuple[int, int]

_OWN_PAGES = 2**20  # from here on a block gets pages of its own, given back when it is dropped
_MAPPED_BYTES = 2**22  # smaller files are read: that is faster than to map them
_ABSENT = 2**64 - 1  # in the index of a shard
_SECOND_LOOK = 0.2  # seconds
_DAMAGED = (ValueError, RuntimeError, EOFError, BadGzipFile, zlib.error)  # raised by decoders
_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


@dataclass(frozen=True)
class Reader:
    """A zarr array whose boxes are read when sliced: contiguous, aligned, in `dtype`.

    A 1-D array is read as one column.
    """

    array: Any
    dtype: np.dtype[Any]
    strict: bool = True
    """Whether an absent chunk is an error; else it holds the fill value."""

    ndim = 2

    def __reduce__(self) -> Any:
        return _unpacked, (self._packed,)

    @cached_property
    def _packed(self) -> bytes:
        """What it is, pickled once: a scheduler sends it with each block, in each pass."""
        packed: bytes = cloudpickle.dumps((self.array, self.dtype, self.strict))
        return packed

    @property
    def shape(self) -> tuple[int, ...]:
        return as_pair(self.array.shape)

    @cached_property
    def layout(self) -> Layout | None:
        """None where only zarr can decode the array."""
        return find_layout(self.array)

    def __getitem__(self, index: Any) -> Array:
        rows, columns = (
            part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)
        )
        if self.layout is None:
            return self._read_by_zarr(rows, columns)
        return self._read(rows, columns, self.layout)

    def _read(self, rows: Span, columns: Span, layout: Layout) -> Array:
        height, width = layout.chunk
        numbers = [(i, j) for i in _over(rows, height) for j in _over(columns, width)]
        keys = [self._key(number) for number in numbers]
        fetch, plain = self._fetcher(keys), _is_plain(layout, self.dtype)
        block = None if plain and len(keys) == 1 else _Block(rows, columns, self.dtype)
        for (i, j), key in zip(numbers, keys, strict=True):
            top, left = i * height, j * width
            into = block.hole(top, left, layout.chunk) if plain and block else None
            payload = fetch(key, into)
            if payload is None and self.strict:  # a network's file system may be late by a moment
                time.sleep(_SECOND_LOOK)
                payload = self._fetcher([key])(key, into)
                if payload is None:
                    raise ValueError(absent(key, self.array.store_path))
            try:
                if payload is not None and block is None:
                    chunk = _view(payload, layout)[rows[0] - top : rows[1] - top]
                    box = chunk[:, columns[0] - left : columns[1] - left]
                    if box.flags.c_contiguous and box.flags.aligned:
                        return box
                block = block or _Block(rows, columns, self.dtype)
                if payload is None:
                    block.fill(top, left, layout.chunk, self.array.fill_value)
                elif layout.shards is not None:
                    self._decode_shard(block, top, left, payload, layout)
                elif payload is not into:
                    block.decode(top, left, payload, layout)
            except _DAMAGED as error:
                raise ValueError(
                    f"chunk {key!r} of {self.array.store_path} is damaged: {error}; restore it, or "
                    "make the array anew"
                ) from error
        assert block is not None
        return block.values

    def _key(self, number: tuple[int, int]) -> str:
        """Of the chunk with these numbers."""
        key: str = self.array.metadata.encode_chunk_key(number[: self.array.ndim])
        return key

    def _decode_shard(
        self, block: "_Block", top: int, left: int, payload: Any, layout: Layout
    ) -> None:
        """Put those inner chunks of a shard into the block that overlap it."""
        (height, width), (high, wide) = layout.chunk, layout.inner
        index = _shard_index(payload, layout).tolist()
        rows = max(block.top - top, 0), min(block.bottom - top, height)
        columns = max(block.left - left, 0), min(block.right - left, width)
        for i in _over(rows, high):
            for j in _over(columns, wide):
                offset, size = index[i][j]
                corner = top + i * high, left + j * wide
                if offset == _ABSENT:
                    block.fill(*corner, layout.inner, self.array.fill_value)
                else:
                    block.decode(*corner, payload[offset : offset + size], layout)

    def _fetcher(self, keys: list[str]) -> Callable[[str, Array | None], Any]:
        """What gives the stored bytes of one of the chunks, None for an absent one.

        Files are read when asked for, uncompressed ones straight into an array that fits; from
        any other store all chunks are asked for at once.
        """
        store, path = self.array.store_path.store, self.array.store_path.path
        if isinstance(store, LocalStore):
            return lambda key, into: _contents(os.path.join(store.root, path, key), into)

        async def get_all() -> list[Any]:
            prototype = default_buffer_prototype()
            places = (self.array.store_path / key for key in keys)
            return await asyncio.gather(*(place.get(prototype) for place in places))

        read = insist(lambda: sync(get_all()), f"reading {self.array.store_path}")
        found = dict(zip(keys, read, strict=True))
        return lambda key, _: None if (x := found[key]) is None else memoryview(x.as_numpy_array())

    def _read_by_zarr(self, rows: Span, columns: Span) -> Array:
        """By zarr, or by the codec pipeline that the user has chosen for it."""
        array, store = self.array, self.array.store_path.store
        if isinstance(store, LocalStore):  # pipelines may go around the store
            height, width = as_pair(array.shards or array.chunks)
            for number in product(_over(rows, height), _over(columns, width)):
                key = self._key(number)
                self._look_at(key, os.path.join(store.root, array.path, key))
        else:
            path = StorePath(_Strict(store, self.strict), array.store_path.path)
            array = zarr.Array(zarr.AsyncArray(metadata=array.metadata, store_path=path))
        read: Any = empty((rows[1] - rows[0], columns[1] - columns[0]), array.dtype)
        try:
            selected = (slice(*rows), slice(*columns))[: array.ndim]
            array.get_basic_selection(
                selected, out=NDBuffer(read if array.ndim > 1 else read[:, 0])
            )
        except Absent:
            raise
        except _DAMAGED as error:
            raise ValueError(
                f"a chunk of {self.array.store_path} in rows {rows[0]:,} to {rows[1]:,}, columns "
                f"{columns[0]:,} to {columns[1]:,} is damaged: {error}; restore it, or make the "
                "array anew"
            ) from error
        return np.require(read, dtype=self.dtype, requirements=["C", "A"])

    def _look_at(self, key: str, path: str) -> None:
        """Raise where zarr would see zeros: at no file, and at an empty one, which is damage."""
        try:
            size = os.path.getsize(path)
        except FileNotFoundError:
            if self.strict:
                raise ValueError(absent(key, self.array.store_path)) from None
            return
        if not size:
            raise ValueError(_empty(key, self.array.store_path))


class _Block:
    """A block that is being filled from the chunks that overlap it."""

    def __init__(self, rows: Span, columns: Span, dtype: np.dtype[Any]) -> None:
        (self.top, self.bottom), (self.left, self.right) = rows, columns
        self.values = empty((self.bottom - self.top, self.right - self.left), dtype)

    def _part(self, top: int, left: int, shape: Span) -> tuple[Array, tuple[int, int, int, int]]:
        """What a chunk at that corner covers of the block, and of itself."""
        a, b = max(top, self.top), min(top + shape[0], self.bottom)
        c, d = max(left, self.left), min(left + shape[1], self.right)
        part = self.values[a - self.top : b - self.top, c - self.left : d - self.left]
        return part, (a - top, b - top, c - left, d - left)

    def hole(self, top: int, left: int, shape: Span) -> Array | None:
        """Where a whole chunk goes, if that is in one piece."""
        part, _ = self._part(top, left, shape)
        return part if part.shape == shape and part.flags.c_contiguous else None

    def fill(self, top: int, left: int, shape: Span, value: Any) -> None:
        self._part(top, left, shape)[0][...] = value

    def decode(self, top: int, left: int, payload: Any, layout: Layout) -> None:
        part, (a, b, c, d) = self._part(top, left, layout.inner)
        for codec in layout.codecs[:-1]:
            payload = codec.decode(payload)
        if layout.codecs:
            last = layout.codecs[-1]
            if (
                last.codec_id == "blosc"
                and part.shape == layout.inner
                and layout.stored == part.dtype
                and part.flags.c_contiguous
                and int.from_bytes(payload[4:8], "little") == part.nbytes  # by blosc's header
            ):
                last.decode(payload, out=part)
                return
            payload = last.decode(payload)
        part[...] = _view(payload, layout)[a:b, c:d]


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An uninitialized array; a large one has pages of its own, outside malloc's heaps.

    malloc keeps what large blocks leave behind, once per thread; these pages go back at once. Huge
    pages take a fifth of the time to be cleared.
    """
    nbytes = prod(shape) * dtype.itemsize
    if nbytes < _OWN_PAGES:
        return np.empty(shape, dtype)
    if not hasattr(mmap, "MAP_ANONYMOUS"):  # Windows
        return np.frombuffer(mmap.mmap(-1, nbytes), dtype).reshape(shape)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)


def absent(key: str, store: Any) -> str:
    return (
        f"chunk {key!r} is not in {store}: it would read as zeros. Restore it, or pass "
        "missing='zero' if V's writer left out chunks of zeros"
    )


def _empty(key: str, store: Any) -> str:
    return f"chunk {key!r} of {store} is damaged: it is empty; restore it, or make the array anew"


class Absent(ValueError):
    """A chunk is not there, or empty."""


class _Strict(WrapperStore[Any]):
    """A store in which what zarr takes for zeros is an error: empty chunks, and absent ones."""

    def __init__(self, store: Any, strict: bool) -> None:
        super().__init__(store)
        self.strict = strict

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        value = await self._store.get(key, prototype, byte_range)
        if key.rsplit("/", 1)[-1] in _METADATA:
            return value
        if value is None and self.strict:
            raise Absent(absent(key, self._store))
        if value is not None and not len(value):
            raise Absent(_empty(key, self._store))
        return value


# -------------------------------------------------------------------------------- the bytes
def _contents(path: str, into: Array | None = None) -> Any:
    """A file's bytes, None if there is no file; a large file is mapped.

    They come back in `into` if that has their size. zarr replaces files and never rewrites them,
    so what is mapped stays as it was.
    """
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        return None
    try:
        size = os.fstat(file).st_size
        if into is not None and size == into.nbytes and hasattr(os, "preadv"):
            return into if os.preadv(file, [into.data], 0) == size else b""
        if size < _MAPPED_BYTES:
            return os.read(file, size)
        mapped = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(file)
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


def _view(payload: Any, layout: Layout) -> Array:
    values = np.frombuffer(payload, np.uint8)
    wanted = prod(layout.inner) * layout.stored.itemsize
    if values.nbytes != wanted:
        raise ValueError(f"it holds {values.nbytes:,} bytes, not {wanted:,}")
    return values.view(layout.stored).reshape(layout.inner)


@lru_cache(maxsize=16)
def _unpacked(packed: bytes) -> Reader:
    """The one of this process: to read the array's metadata again takes longer than a task."""
    return Reader(*cloudpickle.loads(packed))


def _over(span: Span, size: int) -> range:
    """The numbers of the chunks of that size which overlap the span."""
    return range(span[0] // size, -(-span[1] // size))
