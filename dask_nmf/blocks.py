"""The blocks of V and their bytes: pure arithmetic on shapes, no arrays.

A block is made of whole rows of V where they fit, of whole columns (rows of V.T) where that is
cheaper, and is a tile of both where neither fits; then a sweep costs two reads instead of one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil, isqrt, log2

from dask.utils import format_bytes

from dask_nmf.geometry import FAN_IN, Geometry

MAX_BLOCKS = 2_000
"""More where memory asks for it only: of some 5 tasks each, a pass has 10,000, and a task costs
dask's scheduler up to 1 ms."""

_LEAST_HEIGHT = 8  # rows per component: a block should weigh more than its share of W.T @ V
_TRANSPOSE_GAIN = 1.25  # it costs a pass more at the start: not worth it for less


@dataclass(frozen=True)
class Grid:
    """The blocks of V, or of V.T if transposed: heights by widths."""

    heights: tuple[int, ...]
    widths: tuple[int, ...]
    transposed: bool = False

    @property
    def chunks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.heights, self.widths

    @property
    def reads_per_sweep(self) -> int:
        return 1 if len(self.widths) == 1 else 2

    @property
    def blocks(self) -> int:
        return len(self.heights) * len(self.widths)

    @property
    def tasks(self) -> int:
        """About so many dask tasks in a sweep: 4 per block, 1 per node of the two trees."""
        return 4 * self.blocks + 2 * _nodes(len(self.heights)) * len(self.widths)

    def tasks_in_bundles(self, size: int) -> int:
        """The same with `size` rows of blocks in one task: that, and two sums from it."""
        sums = ceil(len(self.heights) / size)
        return sums + 2 * (sums + _nodes(sums)) * len(self.widths)


def choose_grid(
    geometry: Geometry, memory: int | None = None, block_rows: int | None = None
) -> Grid:
    """The blocks that cost least within `memory`.

    Raises
    ------
    ValueError
        If `block_rows` cuts what is decoded in one piece, or if nothing fits `memory`.
    """
    if block_rows is not None:
        rows = _given(geometry, block_rows)
        if memory is not None and geometry.peak_bytes(rows) > memory:
            raise ValueError(_refusal(geometry, memory, rows))
        return Grid(even(geometry.m, rows), (geometry.n,))
    if geometry.entries is not None:  # only rows of what is stored can be read
        side = geometry.T if geometry.by_columns else geometry
        if rows := block_height(side, memory):
            return Grid(even(side.m, rows), (side.n,), geometry.by_columns)
        raise ValueError(_refusal(geometry, memory or 0))
    sides = (geometry, geometry.T)
    by_row, by_column = (block_height(side, memory) for side in sides)
    if by_row and by_column and sides[0].cost(by_row) <= _TRANSPOSE_GAIN * sides[1].cost(by_column):
        by_column = 0
    if by_column:
        return Grid(even(geometry.n, by_column), (geometry.m,), transposed=True)
    if by_row:
        return Grid(even(geometry.m, by_row), (geometry.n,))
    assert memory is not None
    rows, columns = _tile(geometry, memory)
    return Grid(even(geometry.m, rows), even(geometry.n, columns))


def block_height(geometry: Geometry, memory: int | None) -> int:
    """Rows of a block of whole rows: near the target, whole chunks if they fit; 0: nothing does."""
    whole = geometry.m * geometry.n * geometry.itemsize
    if geometry.entries is not None:
        whole = geometry.nnz * (geometry.itemsize + geometry.index)
    wanted = max(
        geometry.target * geometry.m // max(1, whole),
        ceil(geometry.m / MAX_BLOCKS),
        _LEAST_HEIGHT * geometry.rank,
    )

    def fits(rows: int) -> bool:
        return memory is None or geometry.peak_bytes(min(rows, geometry.m)) <= memory

    return _whole(geometry.m, geometry.chunk[0], geometry.piece[0], wanted, fits)


def _whole(size: int, chunk: int, piece: int, wanted: int, fits: Callable[[int], bool]) -> int:
    """The largest length up to `wanted` of whole chunks, else of whole pieces; 0 if none fits."""
    for unit in _units(chunk, piece):
        if unit <= wanted or unit == piece:
            times = max(1, wanted // unit)
            while times > 0:
                if fits(times * unit):
                    return min(times * unit, size)
                times -= max(1, times // 64)
    return 0


def _units(chunk: int, piece: int) -> Iterator[int]:
    """A chunk, its halves, thirds and so on that are whole pieces, and a piece."""
    yield chunk
    for parts in range(2, 65):
        if chunk % parts == 0 and chunk // parts % piece == 0:
            yield chunk // parts
    yield piece


def _tile(geometry: Geometry, memory: int) -> tuple[int, int]:
    """Rows and columns of a block where neither whole rows nor whole columns fit."""
    (high, wide), (least, narrow) = geometry.chunk, geometry.piece
    for unit in _units(high, least):
        times = max(1, isqrt(geometry.target // geometry.itemsize) // unit)
        while times > 0:
            rows = min(times * unit, geometry.m)
            wanted = max(1, geometry.target // (rows * geometry.itemsize))

            def fits(columns: int, rows: int = rows) -> bool:
                return geometry.peak_bytes(rows, min(columns, geometry.n)) <= memory

            if columns := _whole(geometry.n, wide, narrow, wanted, fits):
                return rows, columns
            times //= 2
    raise ValueError(_refusal(geometry, memory))


def _given(geometry: Geometry, block_rows: int) -> int:
    if geometry.by_columns:
        raise ValueError(
            "block_rows must be None for a V in CSC form, which is streamed by its columns, got "
            f"{block_rows:,}: write V in CSR form, or leave block_rows out"
        )
    piece = geometry.piece[0]
    if block_rows % piece and block_rows < geometry.m:
        raise ValueError(
            f"block_rows must be a multiple of the {piece:,} rows of V that are decoded at once, "
            f"so that no chunk is read twice; got {block_rows:,}"
        )
    return min(block_rows, geometry.m)


def _least_height(geometry: Geometry) -> int:
    """Rows of the block that needs least: very low ones need a large graph."""
    doubled = (geometry.piece[0] * 2**i for i in range(ceil(log2(geometry.m)) + 1))
    heights: list[int] = [min(rows, geometry.m) for rows in doubled]
    return min(heights, key=geometry.peak_bytes)


def _refusal(geometry: Geometry, memory: int, block_rows: int | None = None) -> str:
    """What the smallest blocks need, and what would make them fit."""
    (rows, columns), (m, n) = map(_least_height, (geometry, geometry.T)), (geometry.m, geometry.n)
    if block_rows is not None:
        options = [(geometry.parts(block_rows, n), (block_rows, n))]
    else:
        options = [
            (geometry.parts(rows, n), (rows, n)),
            (geometry.T.parts(columns, m), (m, columns)),
            (geometry.parts(*geometry.piece), geometry.piece),
        ]
        if geometry.entries is not None:
            options = options[1:2] if geometry.by_columns else options[:1]
    parts, block = min(options, key=lambda option: sum(option[0].values()))
    needs = format_bytes(sum(parts.values()))
    listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
    text = (
        f"memory={format_bytes(memory)} is too small: blocks of {block[0]:,} x {block[1]:,} with "
        f"{geometry.threads} thread(s) need {needs} per process ({listed}). Raise memory= to it"
    )
    if memory <= parts["process"]:
        return text + ": a process alone, without any data, takes most of it"
    if geometry.threads > 1:
        text += ", use fewer threads (dask.config.set(num_workers=1))"
    if parts["W"] > 0.1 * memory:
        text += ", take init='random'" if geometry.W_on_disk else ", keep W on disk with out="
    rows = block_height(replace(geometry, piece=(1, 1), chunk=(1, n)), memory)
    if rows and geometry.entries is None:
        return text + f", or rechunk V to at most {rows:,} rows per chunk (dask-nmf rechunk)"
    return text + ", or take a smaller rank"


def _nodes(leaves: int) -> int:
    """Nodes of a tree of sums."""
    nodes = 0
    while True:
        leaves = ceil(leaves / FAN_IN)
        nodes += leaves
        if leaves == 1:
            return nodes


def even(total: int, height: int) -> tuple[int, ...]:
    """`total` rows cut into chunks of `height`, the last one shorter."""
    whole, rest = divmod(total, height)
    return (height,) * whole + ((rest,) if rest else ())
