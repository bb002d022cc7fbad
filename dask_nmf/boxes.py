"""Boxes of V that are read when sliced, and the check that all entries are fit for it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import issparse

from dask_nmf.devices import cast, is_fit, is_on_device, on_host
from dask_nmf.types import AnyArray, Array


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


def unfit(
    row: int, column: int, value: Any, array: Any, *place: int, name: str = "V"
) -> ValueError:
    """The error for such an entry of V; array : its zarr array, where the entry is at `place`."""
    chunk = ""
    if array is not None:
        sizes = array.shards or array.chunks
        key = array.metadata.encode_chunk_key(
            tuple(i // size for i, size in zip(place, sizes, strict=True))
        )
        chunk = f" (chunk {key!r} of {array.store_path})"
    return ValueError(
        f"{name} must be finite and non-negative, but row {row}, column {column} holds "
        f"{value}{chunk}: mask, clip or drop such entries before factoring"
    )


@dataclass(frozen=True)
class Boxes:
    """Boxes of a numpy array when sliced: contiguous, aligned, in dtype."""

    source: Array
    dtype: np.dtype[Any]
    ndim = 2

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def __getitem__(self, index: Any) -> Array:
        block: Array = as_block(self.source[index], self.dtype)
        return block


@dataclass(frozen=True)
class Transposed:
    """The transpose of boxes; not copied, so in Fortran's order."""

    boxes: Any
    ndim = 2

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.boxes.shape[::-1])

    @property
    def dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = self.boxes.dtype
        return found

    def __getitem__(self, index: Any) -> Array:
        block: Array = self.boxes[index[::-1]]
        return block.T


@dataclass(frozen=True)
class Checked:
    """Boxes whose entries are finite and non-negative: anything else is an error."""

    boxes: Any
    name: str = "V"
    ndim = 2

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.boxes.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = self.boxes.dtype
        return found

    def __getitem__(self, index: Any) -> Array:
        block: Array = self.boxes[index]
        corner = (index[0].start or 0, index[1].start or 0)
        check_entries(block, corner, getattr(self.boxes, "array", None), self.name)
        return block


def check_entries(
    block: AnyArray, corner: tuple[int, int], array: Any = None, name: str = "V"
) -> None:
    """Raise at the first entry of a block of V that is NaN, infinite or negative."""
    if is_on_device(block):
        if is_fit(block):
            return
        block = on_host(block)
    if (bad := first_bad(block)) is not None:
        place = corner[0] + bad[0], corner[1] + bad[1]
        raise unfit(*place, block[bad], array, *place, name=name)


def as_dense(x: Any) -> Array:
    """A block, or a part of one, with its zeros."""
    return np.asarray(x.toarray() if issparse(x) else x)


def as_block(x: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
    """x in that dtype: contiguous and aligned, or on its device."""
    if is_on_device(x):
        return cast(x, dtype)
    return np.require(x, dtype=dtype, requirements=["C", "A"])
