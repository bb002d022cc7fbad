"""The row blocks of V and their bytes: pure arithmetic on shapes, no arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from dask.utils import format_bytes

TARGET_BYTES = 64 * 2**20
"""Size of a block when nothing else decides: some 0.1 s of reading, far above a task's 1 ms."""

MAX_BLOCKS = 10_000
"""Tasks cost dask's scheduler up to 1 ms each: more blocks than this make it the bottleneck."""

BASE_BYTES = 165 * 2**20
"""A Python process with numpy, dask, distributed and zarr loaded, and what its heap keeps."""

FACTOR_COPIES = 5
"""float64 (rows, k) arrays alive in a half-step: V @ H.T, F, both transposed, the result."""


@dataclass(frozen=True)
class Geometry:
    """What the memory of a pass depends on. Sizes in rows, columns and bytes per number.

    `heights` are the row chunks, which are not cut: one number for a regular grid, else all of
    them. `stored` is the bytes per number of a decoded chunk that is copied into its block, 0
    where blocks need no copy. `target` is the wanted size of a block.
    """

    m: int
    n: int
    rank: int
    itemsize: int
    stored: int
    heights: int | Sequence[int]
    threads: int
    processes: int
    target: int = TARGET_BYTES

    @property
    def tallest(self) -> int:
        return self.heights if isinstance(self.heights, int) else max(self.heights)

    def peak_bytes(self, rows: int) -> int:
        """Projected peak of one process with blocks of `rows` rows.

        threads x (block + decoded chunk + factors of the block + one set of partial products)
        + the old and the new W + sums in the reduction tree, H's and their copies + the process.
        """
        products = self.rank * self.n
        block = rows * self.n * (self.itemsize + self.stored)
        factors = FACTOR_COPIES * rows * self.rank * 8
        task = block + factors + products * (self.itemsize + 8)
        return (
            BASE_BYTES
            + self.threads * task
            + 2 * ceil(self.m / self.processes) * self.rank * self.itemsize
            + 12 * products * 8
        )


def row_blocks(
    geometry: Geometry, memory: int | None = None, block_rows: int | None = None
) -> tuple[int, ...]:
    """The heights of the row blocks: whole chunks, joined up to the target or to `memory`.

    Raises
    ------
    ValueError
        If `block_rows` cuts chunks, or if blocks of single chunks exceed `memory`.
    """
    tallest = geometry.tallest
    if block_rows is not None:
        if block_rows % tallest:
            raise ValueError(
                f"block_rows must be a multiple of V's {tallest:,} rows per chunk, so that no "
                f"chunk is read twice; got {block_rows:,}"
            )
        rows = block_rows
    else:
        row_bytes = geometry.n * geometry.itemsize
        rows = max(geometry.target // row_bytes, ceil(geometry.m / MAX_BLOCKS))
        if memory is not None:
            rows = min(rows, _rows_within(geometry, memory))
        rows = max(rows // tallest, 1) * tallest
    rows = min(rows, geometry.m)
    if memory is not None and geometry.peak_bytes(rows) > memory:
        raise ValueError(_refusal(geometry, memory, rows))
    if isinstance(geometry.heights, int):
        return even(geometry.m, rows)
    return _join(geometry.heights, rows)


def _rows_within(geometry: Geometry, memory: int) -> int:
    """The tallest block with which a process stays within memory; may be 0."""
    fixed = geometry.peak_bytes(0)
    return max(0, memory - fixed) // (geometry.peak_bytes(1) - fixed)


def _refusal(geometry: Geometry, memory: int, rows: int) -> str:
    fits = _rows_within(geometry, memory)
    needs = geometry.peak_bytes(rows)
    text = (
        f"memory={format_bytes(memory)} is too small: blocks of {rows:,} rows on "
        f"{geometry.threads} threads need {format_bytes(needs)} per process "
        f"({format_bytes(geometry.peak_bytes(0))} of it whatever the blocks). "
        f"Raise memory= to {format_bytes(needs)}, use fewer threads "
        "(dask.config.set(num_workers=1))"
    )
    if fits:
        return text + f", or rechunk V to at most {fits:,} rows per chunk"
    return text + ", or a smaller rank"


def _join(heights: Sequence[int], target: int) -> tuple[int, ...]:
    """Consecutive chunks joined while they stay within the target height."""
    joined: list[int] = []
    current = 0
    for height in heights:
        if current and current + height > target:
            joined.append(current)
            current = 0
        current += height
    joined.append(current)
    return tuple(joined)


def even(total: int, height: int) -> tuple[int, ...]:
    """`total` rows cut into chunks of `height`, the last one shorter."""
    whole, rest = divmod(total, height)
    return (height,) * whole + ((rest,) if rest else ())
