"""Objects in a zarr store that are written once: create-only, checksummed, valid zarr nodes.

A document is a zarr group whose attributes hold the text, and its digest. A bundle is a zarr array
of bytes, those of a numpy .npz, with a checksum. So whatever opens the store as zarr may go on.
"""

import hashlib
import io
import json
import logging
from contextlib import suppress
from functools import cached_property, partial
from typing import Any
from zipfile import BadZipFile

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.codecs import Crc32cCodec
from zarr.core.sync import sync  # zarr's own event loop: remote file systems are bound to it
from zarr.storage import FsspecStore, StorePath, WrapperStore

from dask_nmf.errors import Damaged
from dask_nmf.layout import Layout, find_layout
from dask_nmf.reader import Reader
from dask_nmf.retrying import insist
from dask_nmf.types import Array

_NODE = "zarr.json"

logger = logging.getLogger("dask_nmf")


SPOILT = (
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    EOFError,
    FileNotFoundError,
    BadZipFile,
)
"""What zarr and numpy raise at metadata or bytes that are damaged or gone."""


# ------------------------------------------------------------------------------- documents
def create(place: StorePath, content: dict[str, Any]) -> bool:
    """Make the document there, unless one exists; whether this call made it.

    The content must be unlike any other call's: after an answer that was lost on the way, reading
    back is what tells whose it is.
    """
    body = _document(content)
    path = place / _NODE
    with suppress(FileExistsError):  # perhaps by this call: clients ask again for a lost answer
        insist(lambda: sync(_create_only(path.store, path.path, body)), f"creating {place}")
    return bool(_bytes(path) == body)


async def _create_only(store: Store, key: str, body: bytes) -> None:
    """Conditional on that there is nothing; not every store says that there was something."""
    while isinstance(store, WrapperStore):
        store = store._store
    if isinstance(store, FsspecStore):  # which has not implemented it: s3fs sends If-None-Match
        try:
            await store.fs._pipe_file(f"{store.path}/{key}".lstrip("/"), body, mode="create")
        except OSError as error:
            if "PreconditionFailed" in str(getattr(error.__cause__, "response", "")):
                raise FileExistsError(key) from error  # not all servers say which condition
            raise
        return
    await store.set_if_not_exists(key, default_buffer_prototype().buffer.from_bytes(body))


def read(place: StorePath) -> dict[str, Any] | None:
    """The document there; None if there is none.

    Raises
    ------
    Damaged
        If its digest is wrong.
    """
    body = _bytes(place / _NODE)
    if body is None:
        return None
    try:
        content = json.loads(body)["attributes"]
        digest = content.pop("digest")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise Damaged(f"{place} is damaged: {error!r}") from None
    if not isinstance(content, dict) or digest != digest_of(content):
        raise Damaged(f"{place} is damaged: its digest is wrong")
    return content


def _document(content: dict[str, Any]) -> bytes:
    attributes = {**content, "digest": digest_of(content)}
    node = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(node, indent=1).encode()


def digest_of(content: Any) -> str:
    """SHA-256 of plain JSON types, in whatever order their keys come."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _bytes(path: StorePath) -> bytes | None:
    found = insist(lambda: sync(path.get(default_buffer_prototype())), f"reading {path}")
    return None if found is None else bytes(found.to_bytes())


# --------------------------------------------------------------------------------- bundles
def put(group: Any, name: str, arrays: dict[str, Any]) -> str:
    """Store arrays and numbers under a name; the digest of their bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    body = np.frombuffer(buffer.getbuffer(), np.uint8)[np.newaxis]
    Writer(new_array(group, name, body.shape, body.dtype, None))[0:1, 0 : body.size] = body
    return hashlib.sha256(body.data).hexdigest()


def get(group: Any, name: str, digest: str | None = None) -> dict[str, Array]:
    """Those arrays.

    Raises
    ------
    Damaged
        If they are not there, or not what was stored.
    """
    try:
        body = Reader(open_array(group, name), _U1)[:, :]
        if digest is not None and hashlib.sha256(body.data).hexdigest() != digest:
            raise ValueError("its digest is wrong")
        with np.load(io.BytesIO(body.tobytes()), allow_pickle=False) as arrays:
            return dict(arrays)
    except Damaged:
        raise
    except SPOILT as error:
        raise Damaged(f"{group.store_path}/{name} is damaged or gone: {error}") from error


def open_array(group: Any, name: str) -> Any:
    """The array of that name.

    Raises
    ------
    Damaged
        If it is not there, or its metadata cannot be read.
    """
    place = group.store_path / name
    try:
        array = insist(lambda: zarr.open_array(place, mode="r"), f"opening {place}")
        if 0 in array.chunks:
            raise ValueError("its chunks are empty")
        return array
    except SPOILT as error:
        raise Damaged(f"{place} is damaged or gone: {error!r}") from error


def open_group(parent: Any, name: str) -> Any:
    """The group of that name, which holds no more than its members; made if it is not there."""
    place = parent.store_path / name
    try:
        return insist(lambda: parent.require_group(name), f"opening {place}")
    except SPOILT as error:
        logger.warning("%s is damaged: %r; made anew", place, error)
    node = default_buffer_prototype().buffer.from_bytes(_EMPTY)
    insist(lambda: sync((place / _NODE).set(node)), f"writing {place}")
    return zarr.open_group(place, mode="r+")


_EMPTY = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}).encode()
_U1 = np.dtype(np.uint8)


def new_array(group: Any, name: str, shape: Any, dtype: Any, dims: Any, chunks: Any = None) -> Any:
    """An array with a checksum in each chunk, all of which are stored."""
    make = partial(
        group.create_array,
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks or shape,
        dimension_names=dims,
        compressors=[Crc32cCodec()],  # factors hardly compress; a flipped bit must be noticed
        config={"write_empty_chunks": True},  # an absent chunk is damage, not zeros
        overwrite=True,
    )
    return insist(make, f"creating {group.store_path}/{name}")


class Writer:
    """Writes an array of `new_array`, one whole chunk at a time, with nothing in between.

    By zarr a chunk of 640 kB takes 1.4 ms, most of it on the way between threads; this is 0.3 ms.
    """

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    @cached_property
    def layout(self) -> Layout | None:
        """None where the user has set another codec pipeline."""
        return find_layout(self.array)

    def __setitem__(self, index: tuple[slice, ...], values: Array) -> None:
        write = partial(self._write, index, values)
        insist(write, f"writing to {self.array.store_path}")

    def _write(self, index: tuple[slice, ...], values: Array) -> None:
        if self.layout is None:
            self.array[index] = values
            return
        shape = self.array.chunks
        if values.shape != shape:  # at an edge
            beyond = [(0, b - a) for a, b in zip(values.shape, shape, strict=True)]
            values = np.pad(values, beyond)
        body: Any = np.ascontiguousarray(values, self.layout.stored)
        for codec in reversed(self.layout.codecs):
            body = codec.encode(body)
        number = tuple(part.start // size for part, size in zip(index, shape, strict=True))
        place = self.array.store_path / self.array.metadata.encode_chunk_key(number)
        chunk = default_buffer_prototype().buffer.from_bytes(body)
        at_once = getattr(place.store, "set_sync", None)  # disks and memory, from zarr 3.1.6 on
        if at_once is not None:
            at_once(place.path, chunk)
        else:
            sync(place.set(chunk))
