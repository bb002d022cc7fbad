"""What the memory and the cost of a pass depend on, in bytes: pure arithmetic on shapes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, log

TARGET_BYTES = 64 * 2**20
"""Size of a block when nothing else decides: some 0.1 s of reading, far above a task's 1 ms."""

BASE_BYTES = 225 * 2**20
"""A Python process with numpy, scipy, dask and zarr loaded, and with pandas and pyarrow, which dask
loads where they are installed (75 MiB); and what its heap keeps."""

WORKER_BYTES = 210 * 2**20
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

SPARSE_SLAB = 2**19
"""Non-zeros of a slab of sparse rows: for W @ H there, and for a dense (k, n) share of the sums."""

SPARSE_ROWS = 2**13
"""Of such a slab for W, at most."""

START_ROWS, START_ROWS_PER_COMPONENT, START_BYTES = 1024, 50, 2**25
"""Of V, for the start of a divergence: the more of the two, as far as dense rows take no more."""

SLAB = 2**17
"""Entries of V, or non-zeros, for which W @ H is formed at a time: some arrays stay in cache."""

PARALLEL = 4
"""Blocks at work at once, when the cost of a grid is weighed."""


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
    entrywise : bool
        Whether W @ H is formed, in slabs, as for a divergence; then `pairs` second derivatives of
        each column are summed, and each entry may have a weight of `weight_bytes`.
    perturbed, hiding : bool
        Whether a block with noise lies beside the block; weights that are drawn.
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
    entrywise: bool = False
    pairs: int = 0
    weight_bytes: int = 0
    perturbed: bool = False
    hiding: bool = False
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
        blocks = ceil(self.m / rows) * ceil(self.n / columns)
        threads = min(self.threads, blocks)  # that have something to do
        drawn = self.perturbed * block + self.hiding * rows * columns * itemsize
        block += rows * columns * self.weight_bytes
        waiting = 0 if self.local else WAITING_BLOCKS
        # Of a sparse V: H.T copied, and the sum of float32 products of some rows (csr.py).
        copies = 0 if self.entries is None else 2 * itemsize
        factors = rows * k * (FACTOR_COPIES * 8 + 2 * itemsize * self.W_on_disk)
        per_process = ceil(self.m / self.processes)
        W = 0 if self.W_on_disk else ceil(W_COPIES * per_process * k * itemsize)
        start = per_process * self.start_width * 8
        # The first pass multiplies with the sketch's directions: more than k columns.
        width = sketch_width(self.n, k) if self.model else k
        if self.entrywise:
            width = 3 + 2 * k + self.pairs
        sums = _live_sums(ceil(self.m / rows)) * width * columns * 8
        if columns < self.n:
            sums += _live_sums(ceil(self.n / columns)) * rows * k * 8
        product = 8 if self.entrywise else itemsize + 8 + copies
        parts = {
            "process": (BASE_BYTES if self.local else WORKER_BYTES) + self.resident,
            "blocks": (threads + waiting) * block + threads * reading,
            "drawn": (threads + waiting) * drawn,
            "half-steps": threads * (factors + width * columns * product),
            "sums": sums,
            "graph": blocks * GRAPH_BYTES if self.local else 0,
            "W": max(W, start),
            "H": (H_COPIES if self.local else 2) * k * self.n * 8,
            "sketch": 0,
            "model": 0,
        }
        if self.entrywise:
            parts["half-steps"] += threads * self._slabs(columns)
            start = 3 * sample_height(self.m, columns, k, self.entries is not None) * columns * 8
            if self.entries is not None:
                start = start * self.nnz // (self.m * self.n)
            parts["H"] += max(3 * width * columns * 8, start) if self.local else 0
        if self.model:
            held, seen, picked = self._model(width, block)
            parts["half-steps"] += threads * picked
            # Steps on the model are taken when no block is there.
            passing = parts["blocks"] + parts["half-steps"] + parts["sums"]
            if self.local:
                parts["sketch"] = held
                parts["model"] = seen + max(0, self.step_bytes - passing)
        return parts

    def _slabs(self, columns: int) -> int:
        """Bytes of one visit beyond the factors: arrays of a slab, and of pairs of components."""
        rows, entries = max(1, SLAB // columns), 12 * max(SLAB, columns)
        if self.entries is not None and not self.weight_bytes:
            rows, entries = SPARSE_ROWS, 8 * max(SPARSE_SLAB, self.nnz // self.m)
        if not self.pairs:
            return 8 * entries
        of_pairs = 3 * (rows + columns) * self.pairs + 2**21
        return 8 * (entries + of_pairs + rows * self.rank**2)

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
        """Bytes of the sketch; of what a pass adds to it; and of a block's sample."""
        k, s = self.rank, sample_size(self.m, self.rank)
        seen = 0 if s < self.m else 2 * s * k * self.itemsize
        return 8 * width * (s + self.n), seen, ceil(block * s / self.m) if s < self.m else 0

    @property
    def step_bytes(self) -> int:
        """Of the steps on a model."""
        k, s, width = self.rank, sample_size(self.m, self.rank), sketch_width(self.n, self.rank)
        return 8 * (s * (2 * width + 15 * k) + self.n * (3 * width + 13 * k))

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


def _live_sums(blocks: int) -> int:
    """Partial sums alive at once: up to FAN_IN - 1 wait on each level of the tree, fewer on top."""
    if blocks == 1:
        return 1
    below = ceil(log(blocks, FAN_IN)) - 1
    on_top = ceil(blocks / float(FAN_IN) ** below) - 1
    return min((FAN_IN - 1) * below + on_top + 1, blocks + 1)


def sample_size(m: int, rank: int) -> int:
    """Rows of V in the sketch and the model."""
    return m if m * rank <= MODEL_ALL else min(m, max(MODEL_ROWS, MODEL_ROWS_PER_COMPONENT * rank))


def sample_height(m: int, n: int, rank: int, sparse: bool) -> int:
    """Rows of V that the start of a divergence is found on; fewer where dense rows are long."""
    wanted = max(START_ROWS, START_ROWS_PER_COMPONENT * rank)
    room = wanted if sparse else max(rank, START_BYTES // (8 * n))
    return min(m, wanted, room)


def sketch_width(n: int, rank: int) -> int:
    """Random directions that V is multiplied with for the sketch."""
    return min(n, 3 * rank + 10)
