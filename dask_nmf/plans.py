"""The plan: what a run will read, hold and write, known before it starts."""

from dataclasses import dataclass, fields
from html import escape
from typing import Any

from dask.utils import format_bytes, format_time

from dask_nmf.blocks import Grid, even
from dask_nmf.tables import facts_as_html, facts_as_text


@dataclass(frozen=True, repr=False)
class Plan:
    """What a run of `factorize` does with V; it prints as a table.

    Attributes
    ----------
    V, shape, dtype, chunks, codec
        Where V lies, and how it is stored; chunks of a shard as "inner in outer".
    decoded_bytes, stored_bytes : int, int or None
        Of V (as CSR, if it is sparse); stored ones from the sizes of some of its chunks.
    nnz : int or None
        Entries of a sparse V; of a dask array as if 10 % were there.
    rank : int
    between : str
        What improves the factors between two passes.
    block : (int, int)
        Rows and columns of V in a block.
    transposed : bool
        Whether the blocks are columns of V: H is then the large factor, W the small one.
    blocks, tasks : int
        Blocks of V, and about how many dask tasks a pass has.
    reads_per_sweep, passes_before : int
        Reads of V in a sweep, and before the first one.
    scheduler, processes, threads
        What runs it.
    memory : int or None
        Limit in bytes for each process.
    parts : dict
        Predicted peak bytes of one process, by what they are for.
    kept_blocks : int
        Blocks that stay decoded in memory, so that they are read once.
    large_factor : "memory" or "out"
        Where W (H if transposed) lies between passes; of what lies in memory the commits of a run
        with `out` keep copies.
    output_bytes, disk_bytes : int
        Size of the results, and the most that lies on disk during the run.
    seconds : float or None
        Of a pass, when probed.
    advice : tuple of str

    Examples
    --------
    >>> import dask_nmf, numpy
    >>> found = dask_nmf.plan(numpy.ones((600, 40)), rank=3)
    >>> found.block, found.reads_per_sweep, Plan.from_json(found.to_json()) == found
    ((600, 40), 1, True)
    """

    V: str
    shape: tuple[int, int]
    dtype: str
    chunks: str
    codec: str
    decoded_bytes: int
    stored_bytes: int | None
    rank: int
    between: str
    block: tuple[int, int]
    transposed: bool
    blocks: int
    tasks: int
    reads_per_sweep: int
    passes_before: int
    max_passes: int
    scheduler: str
    processes: int
    threads: int
    memory: int | None
    parts: dict[str, int]
    kept_blocks: int
    large_factor: str
    output_bytes: int
    disk_bytes: int
    nnz: int | None = None
    seconds: float | None = None
    step_bytes: int = 0
    advice: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """Predicted peak of one process."""
        return sum(self.parts.values())

    @property
    def grid(self) -> Grid:
        """The blocks, of V.T if transposed."""
        (m, n), (rows, columns) = self.shape, self.block
        if self.transposed:
            return Grid(even(n, columns), (m,), transposed=True)
        return Grid(even(m, rows), even(n, columns))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `Plan.from_json` reads them."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        return plain | {name: list(plain[name]) for name in ("shape", "block", "advice")}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Plan":
        return cls(**saved | {name: tuple(saved[name]) for name in ("shape", "block", "advice")})

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line of the table."""
        (m, n), (rows, columns) = self.shape, self.block
        stored = f", {format_bytes(self.stored_bytes)} stored" if self.stored_bytes else ""
        kind = "whole rows" if columns == n else "whole columns" if rows == m else "tiles"
        large = "H" if self.transposed else "W"
        place = "on disk, beside the results" if self.large_factor == "out" else "in memory"
        if self.large_factor == "memory" and self.disk_bytes:
            place += ", on disk at commits"
        parts = ", ".join(
            f"{name} {format_bytes(size)}" for name, size in self.parts.items() if size
        )
        entries = "" if self.nnz is None else f"{self.nnz:,} entries ({self.nnz / (m * n):.2%}), "
        during = f", up to {format_bytes(self.disk_bytes)} until then" if self.disk_bytes else ""
        table = [
            (
                "V",
                f"{m:,} x {n:,} {self.dtype}, {entries}{format_bytes(self.decoded_bytes)}{stored}",
            ),
            ("chunks", f"{self.chunks}, {self.codec}"),
            ("rank", f"{self.rank}"),
            (
                "blocks",
                f"{self.blocks:,} of {rows:,} x {columns:,} ({kind}), {self.tasks:,} tasks a pass",
            ),
            (
                "reads of V",
                f"{self.reads_per_sweep} per sweep, {self.passes_before} before the first",
            ),
            ("passes", f"at most {self.max_passes}"),
            ("between passes", self.between),
            ("runs on", f"{self.scheduler}, {self.processes} x {self.threads} threads"),
            ("peak memory", f"{format_bytes(self.peak_bytes)} per process: {parts}"),
            ("memory limit", format_bytes(self.memory) if self.memory else "none known"),
            (f"{large} between passes", place),
            ("output", f"{format_bytes(self.output_bytes)}{during}"),
        ]
        if self.kept_blocks:
            table.insert(6, ("kept in memory", f"{self.kept_blocks:,} of {self.blocks:,} blocks"))
        if self.seconds is not None:
            speed = f"{self.decoded_bytes / self.seconds / 1e6:,.0f} MB/s"
            table.append(("a pass takes", f"{format_time(self.seconds)} ({speed})"))
        return table

    def __repr__(self) -> str:
        return "\n".join([facts_as_text(self.rows()), *(f"advice: {x}" for x in self.advice)])

    def _repr_html_(self) -> str:
        advice = "".join(f"<li>{escape(text)}</li>" for text in self.advice)
        return facts_as_html(self.rows()) + (f"<ul>{advice}</ul>" if advice else "")
