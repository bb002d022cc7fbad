"""A V of any size that takes no room: its store gives the same chunk for every key."""

import asyncio
import tempfile
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore, WrapperStore


class Slow(WrapperStore[LocalStore]):
    """A store in which every chunk is the same one, and takes so many seconds."""

    def __init__(self, store: LocalStore, seconds: float) -> None:
        super().__init__(store)
        self._seconds = seconds

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        if key.startswith("c/"):
            key = "c/0/0"
            await asyncio.sleep(self._seconds)
        return await super().get(key, *args, **kwargs)


def simulated(blocks: int, rows: int, columns: int, seconds: float) -> zarr.Array[Any]:
    folder = tempfile.mkdtemp()
    shape, chunks = (blocks * rows, columns), (rows, columns)
    V = zarr.create_array(folder, shape=shape, chunks=chunks, dtype="f4", compressors=None)
    V[:rows] = np.random.default_rng(0).random((rows, columns))
    return zarr.open_array(Slow(LocalStore(folder, read_only=True), seconds), mode="r")
