"""How the chunks of a zarr array are encoded, as far as our reader knows; no chunk is read.

A 1-D array counts as one column.
"""

import asyncio
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import zarr
from numcodecs import get_codec
from numcodecs.abc import Codec
from zarr.abc.store import Store
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.core.sync import sync  # zarr's own event loop: remote file systems are bound to it
from zarr.storage import LocalStore

from dask_nmf.retrying import insist


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


def as_pair(sizes: Any) -> tuple[int, int]:
    """The sizes of a 2-D array; of a 1-D one, as a column."""
    rows, columns = (*sizes, 1)[:2]
    return rows, columns


def find_layout(array: zarr.Array[Any]) -> Layout | None:
    """The layout of an array, or None where zarr has to read it.

    That is for codecs that are not known here, and where the user has set another codec pipeline
    in zarr's configuration, which is then used (but for chunks that need no decoding).
    """
    layout = _layout(array)
    chosen = type(array._async_array.codec_pipeline) is not BatchedCodecPipeline
    plain = layout is not None and not layout.codecs and not layout.shards
    return None if chosen and not plain else layout


def _layout(array: zarr.Array[Any]) -> Layout | None:
    metadata: Any = array.metadata
    chunk = as_pair(array.shards or array.chunks)
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
    inner = as_pair(config["chunk_shape"])
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
    chunk = array.shards or array.chunks
    grid = [-(-size // step) for size, step in zip(array.shape, chunk, strict=True)]
    total = prod(grid)
    numbers = [i * total // min(samples, total) for i in range(min(samples, total))]
    places = np.transpose(np.unravel_index(numbers, grid)).tolist()
    keys = [array.metadata.encode_chunk_key(tuple(place)) for place in places]

    async def size(key: str) -> int:
        try:
            return await array.store.getsize(f"{array.path}/{key}".lstrip("/"))
        except FileNotFoundError:
            return 0

    async def sizes() -> list[int]:
        return await asyncio.gather(*(size(key) for key in keys))

    stored = insist(lambda: sync(sizes()), f"asking for sizes in {array.store_path}")
    found = np.array(stored) / (prod(chunk) * array.dtype.itemsize)
    return float(found.mean()), float(found.max())
