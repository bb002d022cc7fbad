"""Makes the plan of a run: blocks, threads, what is kept, within the memory."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import dask
import numpy as np

from dask_nmf.blas import one_blas_thread
from dask_nmf.blocks import Grid
from dask_nmf.constraints import Constraints, make_constraints
from dask_nmf.divergences import Beta
from dask_nmf.draws import Drawn
from dask_nmf.fitting import first_that_fits, make_plan, solvers_for
from dask_nmf.init import Given, Start, make_start
from dask_nmf.io import check_reachable, open_weighted
from dask_nmf.losses import Frobenius, Loss, make_loss
from dask_nmf.matrix import Matrix, Missing
from dask_nmf.newton import AnySolver, Newton, any_solver
from dask_nmf.options import Options, Rule, check_options
from dask_nmf.plans import Plan
from dask_nmf.scheduler import Scheduler, active_scheduler
from dask_nmf.solvers import HALS, MU, LookAhead
from dask_nmf.tasks import product
from dask_nmf.terms import Terms, scaled
from dask_nmf.types import Array, DaskArray, Once, Sums, working_dtype
from dask_nmf.watch import release


@dataclass(frozen=True)
class Job:
    """A run that has been checked and planned, and has not begun."""

    matrix: Matrix
    options: Options
    start: Start
    asked: AnySolver
    solver: AnySolver
    scheduler: Scheduler
    plan: Plan
    loss: Loss
    terms: Terms
    constraints: Constraints

    def resumed(self, begun: dict[str, Any]) -> "Job":
        """The job on the blocks of the plan that the run began with, which its bits depend on.

        Raises
        ------
        ValueError
            If they do not fit into the memory there is now.
        """
        was, solver, out = Plan.from_json(begun["plan"]), self.solver, True
        if isinstance(solver, LookAhead):
            solver = replace(solver, model=begun["model"])
        elif isinstance(self.loss, Beta):  # "auto" took what had room then
            solver = next(
                s
                for s in solvers_for(self.loss, self.asked, self.constraints)
                if repr(s) == begun["used"]
            )
        if was.grid == self.plan.grid and solver == self.solver:
            return self
        parts = self.matrix, self.options, self.scheduler, self.start
        plan = make_plan(*parts, out, solver, isinstance(self.loss, Beta), was.grid)
        return replace(self, solver=solver, plan=plan)

    @property
    def side_terms(self) -> Terms:
        """Of the factors of what is streamed: of V or V.T."""
        return self.terms.T if self.plan.transposed else self.terms

    @property
    def from_sample(self) -> bool:
        """Whether the start of a divergence is found on some rows of V."""
        free = not (self.plan.transposed and self.constraints.fixed)  # each row of W is another
        return free and self.start.blind and isinstance(self.asked, (LookAhead, Newton))

    def start_factors(self, V: DaskArray, sums: Sums, once: Once) -> tuple[DaskArray, Array]:
        """W0 and H0 of what is streamed, within the constraints."""
        transposed = self.plan.transposed
        options = self.options
        W, H = self.start.factors(V, options.rank, sums, options.seed, transposed, once)
        mean = None if isinstance(self.start, Given) else sums.total / (sums.weight or V.size)
        return self.constraints.obeyed(W, H, mean, transposed)

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
            if matrix.shared is None:
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
    loss: str | float | Loss = "frobenius",
    solver: str | AnySolver = "auto",
    init: Any = "random",
    weights: Any = None,
    max_passes: int = 200,
    memory: int | str | None = None,
    block_rows: int | None = None,
    missing: Missing = "error",
    fixed_H: Any = None,
    sum_to_one: bool = False,
    perturb: float = 0.0,
    held_out: float = 0.0,
    layer: str | None = None,
    feature_dim: Any = None,
    probe: bool = False,
) -> Plan:
    """What `factorize` would do with these arguments, on the dask scheduler active now.

    Parameters
    ----------
    V, rank, out, loss, solver, init, weights, max_passes, memory, block_rows, missing, fixed_H, \
    sum_to_one, perturb, held_out, layer, feature_dim
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
        loss=loss,
        solver=solver,
        init=init,
        weights=weights,
        max_passes=max_passes,
        memory=memory,
        block_rows=block_rows,
        missing=missing,
        fixed_H=fixed_H,
        sum_to_one=sum_to_one,
        perturb=perturb,
        held_out=held_out,
        layer=layer,
        feature_dim=feature_dim,
    )
    return probed(job.plan, job.matrix) if probe else job.plan


def prepare(
    V: Any,
    rank: int,
    *,
    out: Any,
    loss: str | float | Loss,
    solver: str | AnySolver,
    init: Any,
    weights: Any,
    max_passes: int,
    memory: int | str | None,
    block_rows: int | None,
    missing: Missing,
    tol: float = 5e-3,
    max_seconds: float | None = None,
    seed: int = 0,
    alpha_W: float = 0.0,
    alpha_H: float | str = "same",
    l1_ratio: float = 0.0,
    fixed_H: Any = None,
    sum_to_one: bool = False,
    perturb: float = 0.0,
    held_out: float = 0.0,
    rule: Rule = "kkt",
    max_sweeps: int | None = None,
    layer: str | None = None,
    feature_dim: Any = None,
) -> Job:
    """Everything that can be checked and decided without reading V or writing."""
    start, asked, loss = make_start(init), any_solver(solver), make_loss(loss)
    options = check_options(
        rank=rank,
        tol=tol,
        max_passes=max_passes,
        max_seconds=max_seconds,
        seed=seed,
        memory=memory,
        block_rows=block_rows,
        alpha_W=alpha_W,
        alpha_H=alpha_H,
        l1_ratio=l1_ratio,
        perturb=perturb,
        held_out=held_out,
        rule=rule,
        max_sweeps=max_sweeps,
        start_passes=start.passes,
    )
    matrix = open_weighted(V, missing, weights, layer, feature_dim)
    if perturb or held_out:
        matrix = replace(matrix, drawn=Drawn(options.seed, options.perturb, options.held_out))
    if matrix.partial and isinstance(loss, Frobenius):
        loss = Beta(2.0)
    constraints = make_constraints(fixed_H, sum_to_one, matrix, options.rank, loss)
    choices = solvers_for(loss, asked, constraints)
    if matrix.partial and start.width(options.rank):
        raise ValueError(
            f"init = {start!r} needs all entries of V, and some have weights or are missing: use "
            "init='random', or give (W0, H0)"
        )
    terms = scaled(matrix.shape, options.alpha_W, options.alpha_H, options.l1_ratio)
    terms = constraints.within(terms)
    bound = terms or constraints.sum_to_one or (constraints.fixed and not constraints.complete)
    if bound and not isinstance(asked, (HALS, MU, LookAhead, Newton)):
        raise ValueError(
            f"a solver of your own, {asked!r}, knows nothing of alpha_W, alpha_H, fixed_H and "
            "sum_to_one: take one of ours, or leave them out"
        )
    start.check(matrix.shape, options.rank)
    scheduler = active_scheduler()
    check_reachable("V", getattr(matrix.source, "store", None), scheduler.remote)
    if matrix.weights is not None:
        store = getattr(matrix.weights.source, "store", None)
        check_reachable("weights", store, scheduler.remote)
    entrywise, parts = isinstance(loss, Beta), (matrix, options, scheduler, start)
    found, solver = first_that_fits(choices, *parts, entrywise, out is not None, constraints)
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
    return Job(matrix, options, start, asked, solver, scheduler, found, loss, terms, constraints)


def probed(plan: Plan, matrix: Matrix) -> Plan:
    """The plan with the seconds of a pass, from a block or two where tasks run."""
    bare = replace(matrix, labels=None)
    seconds = dask.delayed(_time_a_block)(bare, plan.grid, plan.rank).compute()
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
            numer = product(V_b, X)
            W_b = HALS().improve(numer, numer, gram).astype(X.dtype)
            product(W_b.T, V_b)
            seconds = time.perf_counter() - began
    return seconds
