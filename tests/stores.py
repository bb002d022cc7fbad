"""Zarr stores that count, are slow, or kill; where worker processes can import them."""

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any

from zarr.storage import WrapperStore

_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


class CountingStore(WrapperStore[Any]):
    """Appends the key of each chunk read to a file, from whatever process reads it."""

    def __init__(self, store: Any, log: Path) -> None:
        super().__init__(store)
        self.log = log

    def _with_store(self, store: Any) -> "CountingStore":
        return CountingStore(store, self.log)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if key.rsplit("/", 1)[-1] not in _METADATA:
            # One O_APPEND write of a short line: whole, whichever processes write beside.
            handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(handle, f"{key}\n".encode())
            os.close(handle)
        return await self._store.get(key, prototype, byte_range)

    def reads(self) -> Counter[str]:
        """How often each chunk was read so far."""
        return Counter(self.log.read_text().splitlines() if self.log.exists() else [])

    def reset(self) -> None:
        self.log.unlink(missing_ok=True)


class SlowStore(WrapperStore[Any]):
    """Takes a while for each chunk, so that a pass can be interrupted."""

    def __init__(self, store: Any, seconds: float) -> None:
        super().__init__(store)
        self.seconds = seconds

    def _with_store(self, store: Any) -> "SlowStore":
        return SlowStore(store, self.seconds)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if key.rsplit("/", 1)[-1] not in _METADATA:
            await asyncio.sleep(self.seconds)
        return await self._store.get(key, prototype, byte_range)


class PoisonStore(WrapperStore[Any]):
    """One of its chunks is the death of the process that reads it, unless that one made the store.

    Each of these deaths is a line in a file. deaths : after so many of them it is a chunk as any.
    """

    def __init__(self, store: Any, key: str, log: Path, deaths: int, maker: int = 0) -> None:
        super().__init__(store)
        self.key, self.log, self.deaths, self.maker = key, log, deaths, maker or os.getpid()

    def _with_store(self, store: Any) -> "PoisonStore":
        return PoisonStore(store, self.key, self.log, self.deaths, self.maker)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if key == self.key and os.getpid() != self.maker and self.died() < self.deaths:
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()}\n")
            os._exit(1)
        return await self._store.get(key, prototype, byte_range)

    def died(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


class FailingStore(WrapperStore[Any]):
    """Does not write while a file says so: it holds an error's number, and how often."""

    def __init__(self, store: Any, order: Path) -> None:
        super().__init__(store)
        self.order = order

    def _with_store(self, store: Any) -> "FailingStore":
        return FailingStore(store, self.order)

    async def set(self, key: str, value: Any) -> None:
        if self.order.exists():
            code, times = map(int, self.order.read_text().split())
            if times:
                self.order.write_text(f"{code} {times - 1}")
                raise OSError(code, os.strerror(code))
        await self._store.set(key, value)
