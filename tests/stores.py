"""A zarr store that counts; in a file of its own, so that worker processes can import it."""

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
