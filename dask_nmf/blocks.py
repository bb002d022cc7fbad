"""The blocks of V and their bytes: pure arithmetic on shapes, no arrays.

A block is made of whole rows of V where they fit, of whole columns (rows of V.T) where that is
cheaper, and is a tile of both where neither fits; then a sweep costs two reads instead of one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil, isqrt, log, log2

from dask.utils import format_bytes

TARGET_BYTES = 64 * 2**20
"""Size of a block when nothing else decides: some 0.1 s of reading, far above a task's 1 ms."""

MAX_BLOCKS = 10_000
"""Tasks cost dask's scheduler up to 1 ms each: more blocks than this make it the bottleneck."""

BASE_BYTES = 165 * 2**20
"""A Python process with numpy, dask and zarr loaded, and what its heap keeps."""

WORKER_BYTES = 150 * 2**20
"""The same of a worker of a cluster, which does not build graphs."""

FACTOR_COPIES = 5
"""float64 (rows, k) arrays alive in a half-step: V @ H.T, F, both transposed, the result."""

W_COPIES = 2.5
"""The old W, the new one, and the holes that small blocks leave in malloc's heaps."""

H_COPIES = 6
"""float64 (k, n) arrays on the driver: H, the new one, W.T @ V, and HALS's transposed copies."""

GRAPH_BYTES = 15 * 2**10
"""Of dask's graph of a pass on the driver, per block: measured at 1,000 and at 10,000 blocks."""

WAITING_BLOCKS = 2
"""Blocks that a worker of a cluster holds beside those at work: read ahead, or not yet dropped."""

FAN_IN = 8
"""Sums over blocks are trees of this width over the block index: the same bits on any cluster."""

MODEL_ALL = 2**20
"""m k up to which the model between passes has all rows of V: some 0.1 s for ten steps."""

MODEL_ROWS, MODEL_ROWS_PER_COMPONENT = 8192, 256
"""Of a sample, where it has not all; the more of the two."""

PARALLEL = 4
"""Blocks at work at once, when the cost of a grid is weighed."""

_LEAST_HEIGHT = 8  # rows per component: a block should weigh more than its share of W.T @ V
_TRANSPOSE_GAIN = 1.25  # it costs a pass more at the start: not worth it for less


@dataclass(frozen=True)
class Geometry:
    """What the memory of a pass depends on. Sizes in rows, columns and bytes per number.

    Attributes
    ----------
    m, n, rank : int
    itemsize, stored : int
        Bytes per number in a block and in the store.
    chunk, piece : (int, int)
        Of what lies under one key of the store, and the least of it that can be read at its own
        cost: an inner chunk of a mapped shard, one number where nothing has to be decoded.
    payload, decoded, extra : float
        Bytes held beside a block while it is read: per decoded byte of the chunk that is put into
        it, of the piece, and of the block.
    in_place : bool
        Whether a block within one chunk is the mapped chunk itself: nothing is beside it then.
    threads, processes : int
    resident : int
        Bytes of V that each process holds anyway.
    W_on_disk : bool
        Whether W lies in a store between two passes, or in the workers' memory.
    start_width : int
        Columns of the (m, width) array that the start holds in the workers' memory.
    model : bool
        Whether the driver keeps a sketch of V, and a model of it between passes.
    local : bool
        Whether the driver's own arrays are in the same process.
    target : int
        The wanted bytes of a block.
    entries : callable, optional
        Of a sparse V: entries of the fullest block of so many rows of what is streamed.
    nnz, index, beside : int
        Of a sparse V: all entries; bytes of an index; bytes beside a block while it is read.
    by_columns : bool
        Whether a sparse V is streamed by its columns, the only way for it, or else by its rows.
    """

    m: int
    n: int
    rank: int
    itemsize: int
    stored: int
    chunk: tuple[int, int]
    piece: tuple[int, int]
    threads: int
    processes: int
    payload: float = 0.0
    decoded: float = 0.0
    in_place: bool = False
    extra: float = 0.0
    resident: int = 0
    W_on_disk: bool = False
    start_width: int = 0
    model: bool = False
    local: bool = True
    target: int = TARGET_BYTES
    entries: Callable[[int], int] | None = None
    nnz: int = 0
    index: int = 4
    by_columns: bool = False
    beside: int = 0

    @property
    def T(self) -> "Geometry":
        """That of V.T."""
        chunk, piece = self.chunk[::-1], self.piece[::-1]
        return replace(self, m=self.n, n=self.m, chunk=chunk, piece=piece)

    def parts(self, rows: int, columns: int) -> dict[str, int]:
        """Projected bytes of one process with blocks of that size, by what they are for."""
        k, itemsize = self.rank, self.itemsize
        block, reading = self.block_bytes(rows, columns), self._reading(rows, columns)
        waiting = 0 if self.local else WAITING_BLOCKS
        # Of a sparse V: H.T copied, and the sum of float32 products of some rows (csr.py).
        copies = 0 if self.entries is None else 2 * itemsize
        factors = rows * k * (FACTOR_COPIES * 8 + 2 * itemsize * self.W_on_disk)
        per_process = ceil(self.m / self.processes)
        W = 0 if self.W_on_disk else ceil(W_COPIES * per_process * k * itemsize)
        start = per_process * self.start_width * 8
        blocks = ceil(self.m / rows) * ceil(self.n / columns)
        # The first pass multiplies with the sketch's directions: more than k columns.
        width = sketch_width(self.n, k) if self.model else k
        sums = _live_sums(ceil(self.m / rows)) * width * columns * 8
        if columns < self.n:
            sums += _live_sums(ceil(self.n / columns)) * rows * k * 8
        parts = {
            "process": (BASE_BYTES if self.local else WORKER_BYTES) + self.resident,
            "blocks": (self.threads + waiting) * block + self.threads * reading,
            "half-steps": self.threads * (factors + width * columns * (itemsize + 8 + copies)),
            "sums": sums,
            "graph": blocks * GRAPH_BYTES if self.local else 0,
            "W": max(W, start),
            "H": (H_COPIES if self.local else 2) * k * self.n * 8,
            "model": 0,
        }
        if self.model:
            held, between, picked = self._model(width, block)
            parts["half-steps"] += self.threads * picked
            # Steps on the model are taken when no block is there.
            passing = parts["blocks"] + parts["half-steps"] + parts["sums"]
            parts["model"] = held + max(0, between - passing) if self.local else 0
        return parts

    def block_bytes(self, rows: int, columns: int) -> int:
        """Of the largest block of that size."""
        if self.entries is None:
            return rows * columns * self.itemsize
        return self.entries(rows) * (self.itemsize + self.index) + (rows + 1) * self.index

    def _reading(self, rows: int, columns: int) -> int:
        """Bytes beside a block while it is read."""
        if self.entries is not None:
            return self.beside + ceil(self.extra * self.block_bytes(rows, columns))
        if self.in_place and rows <= self.chunk[0]:
            return 0
        chunk, piece = (
            min(rows, size[0]) * min(columns, size[1]) for size in (self.chunk, self.piece)
        )
        reading = self.payload * chunk + self.decoded * piece + self.extra * rows * columns
        return ceil(reading * self.stored)

    def _model(self, width: int, block: int) -> tuple[int, int, int]:
        """Bytes of the sketch and what a pass adds to it; of the steps; and of a block's sample."""
        k, s = self.rank, sample_size(self.m, self.rank)
        seen = 0 if s < self.m else 2 * s * k * self.itemsize
        held = 8 * width * (s + self.n) + seen
        between = 8 * (s * (2 * width + 15 * k) + self.n * (3 * width + 13 * k))
        return held, between, ceil(block * s / self.m) if s < self.m else 0

    def peak_bytes(self, rows: int, columns: int | None = None) -> int:
        """Projected peak of one process."""
        return sum(self.parts(rows, columns or self.n).values())

    def cost(self, rows: int) -> float:
        """Bytes moved in a pass, as if by one thread: what the orientation is chosen by.

        Not by the threads that there are: the same call gives the same blocks, so the same bits.
        """
        blocks = ceil(self.m / rows)
        copied = 2 if self.chunk[1] < self.n else 1
        moved = copied * self.m * self.n * self.itemsize + 2 * blocks * self.rank * self.n * 8
        return moved / min(blocks, PARALLEL)


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


def _live_sums(blocks: int) -> int:
    """Partial sums alive at once: up to FAN_IN - 1 wait on each level of the tree."""
    levels = ceil(log(blocks, FAN_IN)) if blocks > 1 else 0
    return min((FAN_IN - 1) * levels + 1, blocks + 1)


def _nodes(leaves: int) -> int:
    """Nodes of a tree of sums."""
    nodes = 0
    while True:
        leaves = ceil(leaves / FAN_IN)
        nodes += leaves
        if leaves == 1:
            return nodes


def sample_size(m: int, rank: int) -> int:
    """Rows of V in the sketch and the model."""
    return m if m * rank <= MODEL_ALL else min(m, max(MODEL_ROWS, MODEL_ROWS_PER_COMPONENT * rank))


def sketch_width(n: int, rank: int) -> int:
    """Random directions that V is multiplied with for the sketch."""
    return min(n, 3 * rank + 10)


def even(total: int, height: int) -> tuple[int, ...]:
    """`total` rows cut into chunks of `height`, the last one shorter."""
    whole, rest = divmod(total, height)
    return (height,) * whole + ((rest,) if rest else ())
