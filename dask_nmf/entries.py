"""The check of V's entries wherever they are read: finite and non-negative."""

from typing import Any

import numpy as np

from dask_nmf.types import Array


def first_bad(values: Array) -> tuple[int, ...] | None:
    """Where the first entry is that is NaN, infinite or negative; None if there is none.

    Read as unsigned integers these are larger than all other numbers: one look will do.
    """
    words = values.view(f"u{values.dtype.itemsize}")
    if not words.size or words.max() < np.array(np.inf, values.dtype).view(words.dtype):
        return None
    bad = ~(np.isfinite(values) & (values >= 0))
    if not bad.any():  # negative zeros
        return None
    return tuple(int(i[0]) for i in np.nonzero(bad))


def unfit(row: int, column: int, value: Any, array: Any, *place: int) -> ValueError:
    """The error for such an entry of V; array : its zarr array, where the entry is at `place`."""
    chunk = ""
    if array is not None:
        sizes = array.shards or array.chunks
        key = array.metadata.encode_chunk_key(
            tuple(i // size for i, size in zip(place, sizes, strict=True))
        )
        chunk = f" (chunk {key!r} of {array.store_path})"
    return ValueError(
        f"V must be finite and non-negative, but row {row}, column {column} holds "
        f"{value}{chunk}: mask, clip or drop such entries before factoring"
    )
