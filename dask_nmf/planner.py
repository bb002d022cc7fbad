"""Makes the plan of a run: blocks, threads, what is kept, within the memory."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import dask
import numpy as np
from dask.utils import format_bytes

from dask_nmf.advice import advise
from dask_nmf.blas import one_blas_thread
from dask_nmf.blocks import Geometry, Grid, choose_grid, sample_size
from dask_nmf.init import Start, make_start
from dask_nmf.io import Matrix, Missing, check_reachable, open_matrix
from dask_nmf.limits import default_memory
from dask_nmf.options import Options, check_options
from dask_nmf.plans import Plan
from dask_nmf.scheduler import Scheduler, active_scheduler
from dask_nmf.solvers import HALS, LookAhead, Solver, make_solver
from dask_nmf.survey import geometry, storage
from dask_nmf.types import working_dtype
from dask_nmf.watch import release

_SPARE = 0.9  # of the memory limit: what is kept of V beside the pass itself stays below


@dataclass(frozen=True)
class Job:
    """A run that has been checked and planned, and has not begun."""

    matrix: Matrix
    options: Options
    start: Start
    asked: Solver
    solver: Solver
    scheduler: Scheduler
    plan: Plan

    def resumed(self, begun: dict[str, Any]) -> "Job":
        """The job on the blocks of the plan that the run began with, which its bits depend on.

        Raises
        ------
        ValueError
            If they do not fit into the memory there is now.
        """
        was, solver, out = Plan.from_json(begun["plan"]), self.asked, True
        if isinstance(solver, LookAhead):
            solver = replace(solver, model=begun["model"])
        if was.grid == self.plan.grid and solver == self.solver:
            return self
        parts = self.matrix, self.options, self.scheduler, self.start
        plan = make_plan(*parts, out, solver, was.grid)
        return replace(self, solver=solver, plan=plan)

    @property
    def side(self) -> Matrix:
        """V or V.T."""
        return self.matrix.T if self.plan.transposed else self.matrix

    @contextmanager
    def streamed(self) -> Iterator[Matrix]:
        """V or V.T, with what stays in the workers' memory brought there: at most one read."""
        matrix, grid = self.side, self.plan.grid
        if self.scheduler.remote:
            matrix = matrix.held_by_workers(grid)
        matrix = matrix.keep(grid, self.plan.kept_blocks)
        try:
            yield matrix
        finally:
            release(matrix.kept, matrix.source if self.matrix.in_memory else None)

    @contextmanager
    def threads(self) -> Iterator[None]:
        """As many threads as planned; a single block needs no pool of them."""
        if self.plan.blocks == 1 and self.scheduler.name == "threads":
            with dask.config.set(scheduler="synchronous"):
                yield
        elif self.plan.threads == self.scheduler.threads:
            yield
        else:
            with dask.config.set(num_workers=self.plan.threads):
                yield


def plan(
    V: Any,
    rank: int,
    *,
    out: Any = None,
    solver: str | Solver = "auto",
    init: Any = "random",
    max_passes: int = 200,
    memory: int | str | None = None,
    block_rows: int | None = None,
    missing: Missing = "error",
    probe: bool = False,
) -> Plan:
    """What `factorize` would do with these arguments, on the dask scheduler active now.

    Parameters
    ----------
    V, rank, out, solver, init, max_passes, memory, block_rows, missing
        As for `factorize`. Nothing is written to `out`.
    probe : bool
        Read one block and multiply it, for the seconds of a pass.

    Returns
    -------
    Plan
        Prints as a table, and shows as one in notebooks.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `factorize`, before it reads V.

    Notes
    -----
    Cost: metadata and the sizes of up to 64 chunks; with `probe`, one block.

    Examples
    --------
    >>> import numpy as np
    >>> found = plan(np.ones((1000, 40)), rank=3, memory="1GiB")
    >>> found.block, found.reads_per_sweep
    ((1000, 40), 1)
    """
    job = prepare(
        V,
        rank,
        out=out,
        solver=solver,
        init=init,
        max_passes=max_passes,
        memory=memory,
        block_rows=block_rows,
        missing=missing,
    )
    return probed(job.plan, job.matrix) if probe else job.plan


def prepare(
    V: Any,
    rank: int,
    *,
    out: Any,
    solver: str | Solver,
    init: Any,
    max_passes: int,
    memory: int | str | None,
    block_rows: int | None,
    missing: Missing,
    tol: float = 5e-3,
    max_seconds: float | None = None,
    seed: int = 0,
) -> Job:
    """Everything that can be checked and decided without reading V or writing."""
    start, solver = make_start(init), make_solver(solver)
    options = check_options(
        rank=rank,
        tol=tol,
        max_passes=max_passes,
        max_seconds=max_seconds,
        seed=seed,
        memory=memory,
        block_rows=block_rows,
        start_passes=start.passes,
    )
    matrix = open_matrix(V, missing)
    start.check(matrix.shape, options.rank)
    scheduler = active_scheduler()
    check_reachable("V", getattr(matrix.source, "store", None), scheduler.remote)
    asked = solver
    found, solver = _plan_with_model(matrix, options, scheduler, start, solver, out is not None)
    if found.reads_per_sweep > 1 and start.width(options.rank):
        raise ValueError(
            f"init = {start!r} needs whole rows or columns of V in memory, and neither fits in "
            f"memory={options.memory}: use init='random', or raise memory="
        )
    least = found.passes_before + found.reads_per_sweep
    if options.max_passes < least:
        raise ValueError(
            f"max_passes must be at least {least} for this plan ({found.passes_before} before the "
            f"first sweep, {found.reads_per_sweep} in each), got {options.max_passes}"
        )
    return Job(matrix, options, start, asked, solver, scheduler, found)


def _plan_with_model(
    matrix: Matrix,
    options: Options,
    scheduler: Scheduler,
    start: Start,
    solver: Solver,
    out: bool,
) -> tuple[Plan, Solver]:
    """The plan, without a model between passes where that costs reads or does not fit."""

    without = [replace(solver, model=False)] if isinstance(solver, LookAhead) else []
    plans: list[tuple[Plan, Solver]] = []
    refused: list[ValueError] = []
    for one in [solver, *without]:
        try:
            plans.append((make_plan(matrix, options, scheduler, start, out, one), one))
        except ValueError as error:
            refused.append(error)
            continue
        if plans[-1][0].reads_per_sweep == 1:
            break
    if not plans:
        raise refused[-1]
    return min(plans, key=lambda found: found[0].reads_per_sweep)


def make_plan(
    matrix: Matrix,
    options: Options,
    scheduler: Scheduler,
    start: Start,
    out: bool,
    solver: Solver,
    grid: Grid | None = None,
) -> Plan:
    """The plan of a run, on that grid if it is given.

    V is not read beyond its metadata and the sizes of some chunks.

    Raises
    ------
    ValueError
        If nothing fits the memory, or `block_rows` would read chunks twice.
    """
    memory = limit_of(options.memory, scheduler)
    ahead = isinstance(solver, LookAhead)
    found = geometry(
        matrix,
        options.rank,
        scheduler,
        W_on_disk=out,
        start_width=start.width(options.rank),
        model=isinstance(solver, LookAhead) and solver.model,
    )
    if grid is None:
        used, grid = _within(found, memory, options.block_rows, scheduler.flexible)
    else:
        used = _holding(grid, found, memory, scheduler.flexible)
    side = used.T if grid.transposed else used
    rows, columns = grid.heights[0], grid.widths[0]
    parts = side.parts(rows, columns)
    kept = _kept_blocks(matrix, side, grid, memory, sum(parts.values()))
    parts["kept"] = ceil(kept / side.processes * _uneven(side)) * side.block_bytes(rows, columns)
    tall, wide = (size * options.rank * side.itemsize for size in (side.m, side.n))
    m, n = matrix.shape
    share = matrix.stored_share
    chunks, codec = storage(matrix)
    plan = Plan(
        V=matrix.uri,
        shape=(m, n),
        dtype=str(matrix.dtype),
        chunks=chunks,
        codec=codec,
        decoded_bytes=matrix.nbytes,
        stored_bytes=None if share is None else int(share[0] * matrix.nbytes),
        rank=options.rank,
        between=_between(side, solver),
        block=(columns, rows) if grid.transposed else (rows, columns),
        transposed=grid.transposed,
        blocks=grid.blocks,
        tasks=grid.tasks + (grid.blocks if _collects(side) else 0),
        reads_per_sweep=grid.reads_per_sweep,
        passes_before=1 + start.passes + (grid.transposed and not ahead),
        max_passes=options.max_passes,
        scheduler=scheduler.name,
        processes=side.processes,
        threads=side.threads,
        memory=memory,
        parts=parts,
        kept_blocks=kept,
        nnz=matrix.nnz,
        large_factor="out" if out else "memory",
        output_bytes=tall + wide,
        disk_bytes=3 * tall + wide if out else 0,
    )
    return replace(plan, advice=tuple(advise(plan, found, matrix, os.cpu_count() or 1)))


def _collects(side: Geometry) -> bool:
    """Whether V @ H.T, too, comes here from each block."""
    return side.model and sample_size(side.m, side.rank) == side.m


def _between(side: Geometry, solver: Solver) -> str:
    """What happens between two passes, for the table."""
    if not isinstance(solver, LookAhead):
        return "nothing"
    if not side.model:
        return "extrapolation of H (a model does not fit in memory)"
    rows = sample_size(side.m, side.rank)
    of = "all" if rows == side.m else f"{rows:,} of {side.m:,}"
    return f"up to {solver.steps} steps on a model of V ({of} rows)"


def limit_of(memory: int | None, scheduler: Scheduler) -> int | None:
    """Bytes that a process may take: as asked for, or a share of what there is, if it is known."""
    if memory is not None or (scheduler.remote and scheduler.memory is None):
        return memory
    return default_memory(scheduler.memory)


def _within(
    found: Geometry, memory: int | None, block_rows: int | None, flexible: bool
) -> tuple[Geometry, Grid]:
    """As many threads as fit with one read per sweep; else tiles; else the refusal of all."""
    refused: ValueError | None = None
    tiled: tuple[Geometry, Grid] | None = None
    threads = found.threads
    while threads:
        used = replace(found, threads=threads)
        try:
            grid = choose_grid(used, memory, block_rows)
        except ValueError as error:
            refused = error
        else:
            if grid.reads_per_sweep == 1:
                return used, grid
            tiled = tiled or (used, grid)
        threads = threads // 2 if flexible else 0
    if tiled is None:
        assert refused is not None
        raise refused
    return tiled


def _holding(grid: Grid, found: Geometry, memory: int | None, flexible: bool) -> Geometry:
    """With as many threads as those blocks leave room for."""
    threads, peak = found.threads, 0
    while threads:
        used = replace(found, threads=threads)
        side = used.T if grid.transposed else used
        peak = side.peak_bytes(grid.heights[0], grid.widths[0])
        if memory is None or peak <= memory:
            return used
        threads = threads // 2 if flexible else 0
    raise ValueError(
        f"memory={format_bytes(memory or 0)} is too small to go on with the run at out: its blocks "
        f"of {grid.heights[0]:,} x {grid.widths[0]:,} need {format_bytes(peak)} per process. Raise "
        "memory= to it, or pass overwrite=True to begin anew in smaller blocks"
    )


def _kept_blocks(matrix: Matrix, side: Geometry, grid: Grid, memory: int | None, peak: int) -> int:
    """Row blocks that may stay decoded: nothing of what the page cache keeps as it is."""
    if memory is None or not matrix.stored or len(grid.widths) > 1 or matrix.mapped:
        return 0
    blocks = (_SPARE * memory - peak) // side.block_bytes(grid.heights[0], side.n)
    return min(len(grid.heights), max(0, int(blocks * side.processes / _uneven(side))))


def _uneven(side: Geometry) -> float:
    """How much more than its share one of several workers may come to hold."""
    return 1.3 if side.processes > 1 else 1.0


def probed(plan: Plan, matrix: Matrix) -> Plan:
    """The plan with the seconds of a pass, from a block or two where tasks run."""
    seconds = dask.delayed(_time_a_block)(matrix, plan.grid, plan.rank).compute()
    at_once = min(plan.blocks, plan.processes * min(plan.threads, os.cpu_count() or 1))
    return replace(plan, seconds=seconds * plan.blocks / at_once)


def _time_a_block(matrix: Matrix, grid: Grid, rank: int) -> float:
    """Seconds of the second block, or the only one: its read, both products and a half-step."""
    V = (matrix.T if grid.transposed else matrix).blocks(grid)
    X = np.ones((V.chunksize[1], rank), working_dtype(matrix.dtype))
    gram = (X.T @ X).astype(np.float64)
    seconds = 0.0
    with one_blas_thread:
        for i in range(min(2, len(grid.heights))):  # the first one also loads code
            (block,) = dask.optimize(V.blocks[i, 0])
            began = time.perf_counter()
            V_b = block.compute(scheduler="synchronous", optimize_graph=False)
            numer = V_b @ X
            W_b = HALS().improve(numer, numer, gram).astype(X.dtype)
            W_b.T @ V_b
            seconds = time.perf_counter() - began
    return seconds
