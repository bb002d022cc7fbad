"""One sweep, and what comes before the first: a pass over V, and what is made of it."""

import time
from dataclasses import replace
from functools import partial

import dask.array as da
import numpy as np

from dask_nmf.checkpoint import Run
from dask_nmf.descent import after, extrapolate
from dask_nmf.firstpass import first_pass
from dask_nmf.losses import Frobenius, cancellation, relative
from dask_nmf.matrix import Matrix
from dask_nmf.model import directions, first_trust, look_ahead, look_from_start, sample_rows
from dask_nmf.newton import Newton
from dask_nmf.planner import Job
from dask_nmf.simplex import closed
from dask_nmf.solvers import LookAhead, Solver, half_step
from dask_nmf.stream import products, squared_residual, sweep
from dask_nmf.terms import Term, Terms
from dask_nmf.types import (
    Ahead,
    Array,
    DaskArray,
    FirstPass,
    Once,
    Products,
    Sketch,
    State,
    Sums,
    SweepRecord,
    working_dtype,
)
from dask_nmf.watch import aside


def look_first(job: Job, matrix: Matrix) -> FirstPass:
    """The first pass: V's sums, and a sketch of it where "auto" makes a model of that."""
    options, solver = job.options, job.solver
    V, G, rows = matrix.blocks(job.plan.grid), None, None
    if isinstance(solver, LookAhead) and solver.model:
        G = directions(V.shape[1], options.rank, V.dtype)
        rows = sample_rows(V.shape[0], options.rank)
    return first_pass(V, G, rows, matrix.in_pass)


def begin(job: Job, matrix: Matrix, first: FirstPass, once: Once) -> State:
    """The start, and where that leads on a sketch of V.

    On the transpose W is V's H: MU and HALS first need its half-step for H, from a pass.
    """
    plan, options, start, solver = job.plan, job.options, job.start, job.solver
    V, sums, sketch = matrix.blocks(plan.grid), first.sums, first.sketch
    W, H = job.start_factors(V, sums, once)
    state = State(W, H, passes=plan.passes_before)
    if isinstance(solver, LookAhead):
        state = replace(state, ahead=Ahead(first_trust(sketch, solver.steps), sketch))
        if sketch is not None and start.blind:
            told = sketch, H, sums, options.seed, job.side_terms
            found = aside(partial(look_from_start, *told))
            state = _moved(state, sketch, *found)
    elif plan.transposed:
        made = once("products", Products, lambda: products(matrix.blocks(plan.grid), W))
        state = replace(state, products=made)
    return state


def next_sweep(
    job: Job, state: State, matrix: Matrix, sums: Sums, run: Run | None, began: float
) -> State:
    """One sweep: W row block by row block, then H from the sums over the blocks.

    On the transpose, where H is what is made block by block, the sweep still begins with W, which
    is the small factor there: from the sums that the visit before has left.
    """
    grid, solver, terms = job.plan.grid, job.solver, job.side_terms
    assert not isinstance(solver, Newton)
    loss = Frobenius()
    close = cancellation(working_dtype(matrix.dtype))
    residual = state.error < 2 * close
    number = len(state.history) + 1
    W, old = _next_point(state, solver, sums, terms)
    ahead = state.ahead
    name, target = "", None
    if run is not None and job.plan.large_factor == "out":
        name, target = run.new_W(number, state.W.shape, max(grid.heights), state.W.dtype)
    W, seen = sweep(
        matrix.blocks(grid),
        W,
        old,
        solver,
        again=matrix.blocks(grid) if grid.reads_per_sweep == 2 else None,
        residual=residual,
        target=target,
        term=terms.W,
        collect=ahead is not None and ahead.sketch is not None and ahead.sketch.rows is None,
    )
    made = seen.products
    H = old if state.products else _half_step(solver, old, made, terms.H)
    error, passes = loss.error(sums, made, old, H), state.passes + grid.reads_per_sweep
    if not np.isfinite(error):
        raise ValueError(
            f"the error of sweep {number} is {error}: V's entries, from nearly 0 to "
            f"{sums.maximum:.3g}, are too different for sums in float64 (or V has been changed "
            "since the first pass): clip or scale them, or take another start"
        )
    # This close the sums cancel: measure it, once; and where H has moved too far for them.
    if not loss.known(sums, made, old, H) if residual else error < close:
        error = relative(squared_residual(matrix.blocks(grid), W, H), sums)
        passes += 1
    record = SweepRecord(
        sweep=number,
        passes=passes,
        error=error,
        seconds=time.perf_counter() - began,
        bytes_read=passes * matrix.nbytes - (passes - 1) * matrix.kept_bytes,
        kkt=loss.kkt(sums, made, old, terms.H),
        objective=loss.objective(error, sums, made, H, terms),
    )
    found = replace(
        state,
        W=W,
        H=H,
        passes=passes,
        history=(*state.history, record),
        dead=int(np.sum((np.diag(made.WtW) == 0) | ~H.any(axis=1))),
        products=made if state.products else None,
        generation=name,
    )
    better = error <= state.error
    if terms:
        better = (record.objective or 0.0) <= state.objective
    if ahead is not None:
        trust = ahead.trust if old is state.H else after(ahead.trust, better)
        if not better:  # back to the last verified factors; from there a pass can only gain
            found = _dropped(state, found)
        seen_, before = (seen, state.H) if better else (None, None)
        found = replace(found, ahead=Ahead(trust, ahead.sketch, seen_, before))
    return found


def _dropped(state: State, found: State) -> State:
    """The factors before a sweep that was no gain; it counts as one that changed nothing."""
    last = state.history[-1]
    record = replace(found.history[-1], error=last.error, kkt=last.kkt, objective=last.objective)
    return replace(state, passes=found.passes, history=(*state.history, record))


def _next_point(state: State, solver: Solver, sums: Sums, terms: Terms) -> tuple[DaskArray, Array]:
    """Where the next pass is made: W to improve, and H to improve it at."""
    ahead = state.ahead
    if state.products is not None:
        return state.W, _half_step(solver, state.H, state.products, terms.H)
    if ahead is not None and ahead.sketch is not None and ahead.seen is not None:
        told = ahead.sketch, ahead.seen, state.H, sums, ahead.trust.steps, terms
        leap = aside(partial(look_ahead, *told))
        state = _moved(state, ahead.sketch, *leap)
    elif ahead is not None and ahead.H_before is not None:
        H = extrapolate(state.H, ahead.H_before, ahead.trust.momentum)
        return state.W, closed(H.T).T.astype(H.dtype) if terms.H.closed else H
    return state.W, state.H


def _moved(state: State, sketch: Sketch, W: Array, H: Array) -> State:
    """The state at the model's factors; its W stays the one at hand, if the model's is of a sample.

    W is cut here: each task gets its own rows, not all of them.
    """
    state = replace(state, H=H.astype(state.H.dtype))
    if sketch.rows is not None:
        return state
    if isinstance(state.W, np.ndarray):
        return replace(state, W=W.astype(state.W.dtype))
    return replace(
        state, W=da.from_array(W.astype(state.W.dtype), chunks=state.W.chunks, name=False)
    )


def _half_step(solver: Solver, H: Array, made: Products, term: Term) -> Array:
    """H * (W.T @ V) / ((W.T @ W) @ H), for the MU solver."""
    improved = half_step(solver, H.T, made.WtV.T, made.WtW, term).T
    return np.ascontiguousarray(improved, dtype=H.dtype)
