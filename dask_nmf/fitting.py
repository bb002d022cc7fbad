"""Fits a run into the memory: which solver, which blocks, how many threads, what is kept."""

import os
from dataclasses import replace
from math import ceil

from dask.utils import format_bytes

from dask_nmf.advice import advise
from dask_nmf.blocks import Grid, choose_grid
from dask_nmf.bundles import size_of
from dask_nmf.constraints import Constraints
from dask_nmf.geometry import Geometry, sample_size
from dask_nmf.init import Start
from dask_nmf.limits import default_memory
from dask_nmf.losses import Frobenius, Loss
from dask_nmf.matrix import Matrix
from dask_nmf.newton import AnySolver, Newton, pair_count
from dask_nmf.options import Options
from dask_nmf.plans import Plan
from dask_nmf.scheduler import Scheduler
from dask_nmf.solvers import HALS, MU, LookAhead, Settled
from dask_nmf.survey import geometry, storage

_SPARE = 0.9  # of the memory limit: what is kept of V beside the pass itself stays below


def solvers_for(loss: Loss, asked: AnySolver, constraints: Constraints) -> list[AnySolver]:
    """What may run it, best first; what comes later needs less memory.

    Raises
    ------
    ValueError
        If the solver cannot do with the loss.
    """
    if isinstance(loss, Frobenius):
        if isinstance(asked, Newton):
            raise ValueError(
                "solver='newton' is for other losses than 'frobenius' without weights, where "
                "'auto' and 'hals' solve each half-step exactly"
            )
        if constraints.complete:
            return [Settled()]
        return [asked, replace(asked, model=False)] if isinstance(asked, LookAhead) else [asked]
    if isinstance(asked, LookAhead):
        return [Newton(), MU(inner=10)] if loss.convex else [MU(inner=10)]
    if isinstance(asked, HALS) and loss.beta != 2:
        raise ValueError(f"solver {asked!r} does not handle {loss!r}: use 'auto', 'newton' or 'mu'")
    if isinstance(asked, Newton) and not loss.convex:
        raise ValueError(f"solver='newton' needs a beta from 1 to 2, got {loss!r}: use 'mu'")
    if not isinstance(asked, (HALS, MU, Newton)):
        raise ValueError(f"a solver of your own is for loss='frobenius' only, got {loss!r}")
    return [asked]


def first_that_fits(
    choices: list[AnySolver],
    matrix: Matrix,
    options: Options,
    scheduler: Scheduler,
    start: Start,
    entrywise: bool,
    out: bool,
    constraints: Constraints,
) -> tuple[Plan, AnySolver]:
    """The plan, without a model or second derivatives where they cost reads or do not fit."""
    plans: list[tuple[Plan, AnySolver]] = []
    refused: list[ValueError] = []
    for one in choices:
        try:
            plan = make_plan(matrix, options, scheduler, start, out, one, entrywise)
        except ValueError as error:
            refused.append(error)
            continue
        if plan.transposed and constraints.fixed and isinstance(one, LookAhead) and one.model:
            continue  # columns of the large factor are known: the model does not know them
        plans.append((plan, one))
        if plan.reads_per_sweep == 1:
            break
    if not plans:
        raise refused[-1]
    found = min(plans, key=lambda found: found[0].reads_per_sweep)
    if entrywise and found[0].reads_per_sweep > 1:
        raise ValueError(
            "this loss, or weights, needs whole rows or columns of V in memory, and neither fits "
            f"in memory={format_bytes(found[0].memory or 0)}: raise memory=, or rechunk V"
        )
    return found


def make_plan(
    matrix: Matrix,
    options: Options,
    scheduler: Scheduler,
    start: Start,
    out: bool,
    solver: AnySolver,
    entrywise: bool = False,
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
        entrywise=entrywise,
        pairs=pair_count(options.rank) if entrywise and not isinstance(solver, MU) else 0,
        weight_bytes=matrix.weight_bytes,
        perturbed=matrix.drawn is not None and matrix.drawn.perturb > 0,
        hiding=matrix.drawn is not None and matrix.drawn.held_out > 0,
    )
    if grid is None:
        used, grid = _within(found, memory, options.block_rows, scheduler.flexible)
    else:
        used = _holding(grid, found, memory, scheduler.flexible)
    if scheduler.name in ("threads", "synchronous"):  # workers may be lost with it
        used = _with_W_at_hand(used, grid, memory)
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
        between=_between(side, solver) if not entrywise else repr(solver),
        block=(columns, rows) if grid.transposed else (rows, columns),
        transposed=grid.transposed,
        blocks=grid.blocks,
        tasks=_tasks(side, grid, scheduler),
        reads_per_sweep=grid.reads_per_sweep,
        passes_before=1 + start.passes + (grid.transposed and not (ahead or entrywise)),
        max_passes=options.max_passes,
        scheduler=scheduler.name,
        processes=side.processes,
        threads=side.threads,
        memory=memory,
        parts=parts,
        kept_blocks=kept,
        nnz=matrix.nnz,
        step_bytes=side.step_bytes if side.model else 0,
        large_factor="out" if side.W_on_disk else "memory",
        output_bytes=tall + wide,
        disk_bytes=3 * tall + wide if out else 0,
    )
    return replace(plan, advice=tuple(advise(plan, found, matrix, os.cpu_count() or 1)))


def _tasks(side: Geometry, grid: Grid, scheduler: Scheduler) -> int:
    """Of a sweep, about."""
    here = 0 if side.W_on_disk else grid.blocks  # those of W, held by the workers
    tasks = grid.tasks + (grid.blocks if _collects(side) else 0)
    if not scheduler.remote:
        return tasks
    size = size_of(len(grid.heights), tasks, side.processes * side.threads)
    return tasks if size == 1 else grid.tasks_in_bundles(size) + here


def _collects(side: Geometry) -> bool:
    """Whether V @ H.T, too, comes here from each block."""
    return side.model and sample_size(side.m, side.rank) == side.m


def _between(side: Geometry, solver: AnySolver) -> str:
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


def _with_W_at_hand(used: Geometry, grid: Grid, memory: int | None) -> Geometry:
    """With W in memory between passes, and in the store at commits only, where that has room.

    The blocks do not depend on it.
    """
    if not (used.W_on_disk and memory):
        return used
    at_hand = replace(used, W_on_disk=False)
    side = at_hand.T if grid.transposed else at_hand
    peak = side.peak_bytes(grid.heights[0], grid.widths[0])
    return at_hand if peak <= _SPARE * memory else used


def _kept_blocks(matrix: Matrix, side: Geometry, grid: Grid, memory: int | None, peak: int) -> int:
    """Row blocks that may stay decoded: nothing of what the page cache keeps as it is."""
    if memory is None or not matrix.stored or len(grid.widths) > 1 or matrix.mapped:
        return 0
    if matrix.shared is not None:  # the memory is for more runs
        return 0
    blocks = (_SPARE * memory - peak) // side.block_bytes(grid.heights[0], side.n)
    return min(len(grid.heights), max(0, int(blocks * side.processes / _uneven(side))))


def _uneven(side: Geometry) -> float:
    """How much more than its share one of several workers may come to hold."""
    return 1.3 if side.processes > 1 else 1.0
