"""Preloaded by workers and clients of a recipe under test, so that its passes can be disturbed."""

import os
import time
from typing import Any

from distributed import Client

from dask_nmf import fitting
from dask_nmf.reader import Reader


def dask_setup(node: Any) -> None:
    """Each pass reads all blocks of V; to read one takes a while, and is a line in a file."""
    if isinstance(node, Client):
        vars(fitting)["_SPARE"] = 0
    else:
        Reader.__getitem__ = _slowly(Reader.__getitem__)  # type: ignore[method-assign]


def _slowly(read: Any) -> Any:
    def slowly(self: Reader, index: Any) -> Any:
        if str(self.array.store).endswith("V.zarr"):
            with open(os.environ["READS"], "a") as file:
                file.write(f"{index[0].start}\n")
            time.sleep(0.05)
        return read(self, index)

    return slowly
