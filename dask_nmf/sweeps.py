"""One sweep, and what comes before the first: a pass over V, and what is made of it."""

import time
from dataclasses import replace

import dask.array as da
import numpy as np

from dask_nmf.blocks import Grid
from dask_nmf.init import Start
from dask_nmf.io import Matrix
from dask_nmf.losses import Frobenius, cancellation, relative
from dask_nmf.model import (
    after,
    directions,
    extrapolate,
    first_trust,
    look_ahead,
    look_from_start,
    sample_rows,
    trusted,
)
from dask_nmf.options import Options
from dask_nmf.output import Output
from dask_nmf.plans import Plan
from dask_nmf.solvers import LookAhead, Solver
from dask_nmf.stream import first_pass, products, squared_residual, sweep
from dask_nmf.types import (
    Array,
    DaskArray,
    Products,
    Sketch,
    State,
    Sums,
    SweepRecord,
    working_dtype,
)


def begin(
    matrix: Matrix, plan: Plan, options: Options, start: Start, solver: Solver
) -> tuple[State, Sums]:
    """The first pass, the start, and where that leads on a sketch of V.

    On the transpose W is V's H: MU and HALS first need its half-step for H, from a pass.
    """
    V, G, rows = matrix.blocks(plan.grid), None, None
    if isinstance(solver, LookAhead) and solver.model:
        G = directions(V.shape[1], options.rank, options.seed, V.dtype)
        rows = sample_rows(V.shape[0], options.rank, options.seed)
    sums, sketch = first_pass(V, plan.transposed, G, rows)
    V = matrix.blocks(plan.grid)
    W, H = start.factors(V, options.rank, sums, options.seed, plan.transposed)
    state = State(W, H, passes=plan.passes_before)
    if isinstance(solver, LookAhead):
        if sketch is not None and start.blind:
            W_s, H_s = look_from_start(sketch, H, sums, options.seed)
            state = replace(state, W=_every_row(state, sketch, W_s), H=H_s.astype(H.dtype))
        return replace(state, sketch=sketch, trust=first_trust(sketch, solver.steps)), sums
    if plan.transposed:
        state = replace(state, products=products(matrix.blocks(plan.grid), W))
    return state, sums


def next_sweep(
    state: State,
    matrix: Matrix,
    grid: Grid,
    loss: Frobenius,
    solver: Solver,
    sums: Sums,
    output: Output | None,
    began: float,
) -> State:
    """One sweep: W row block by row block, then H from the sums over the blocks.

    On the transpose, where H is what is made block by block, the sweep still begins with W, which
    is the small factor there: from the sums that the visit before has left.
    """
    close = cancellation(working_dtype(matrix.dtype))
    residual = state.error < 2 * close
    number = len(state.history) + 1
    W, old = _next_point(state, solver, sums)
    target = None
    if output is not None:
        (m, k), rows = state.W.shape, max(grid.heights)
        target = output.generation(number, (m, k), rows, state.W.dtype)
    W, made, seen = sweep(
        matrix.blocks(grid),
        W,
        old,
        solver,
        again=matrix.blocks(grid) if grid.reads_per_sweep == 2 else None,
        residual=residual,
        target=target,
        collect=state.sketch is not None,
        rows=state.sketch.rows if state.sketch else None,
    )
    H = old if state.products else _half_step(solver, old, made)
    error, passes = loss.error(sums, made, old, H), state.passes + grid.reads_per_sweep
    if not np.isfinite(error):
        raise ValueError(
            f"the error of sweep {number} is {error}: V was finite and non-negative in the first "
            "pass and has been changed since"
        )
    if error < close and not residual:  # this close the sums cancel: measure it, once
        error = relative(squared_residual(matrix.blocks(grid), W, H), sums)
        passes += 1
    record = SweepRecord(
        sweep=number,
        passes=passes,
        error=error,
        seconds=time.perf_counter() - began,
        bytes_read=passes * matrix.nbytes - (passes - 1) * matrix.kept_bytes,
        kkt=loss.kkt(sums, made, old),
    )
    if state.trust is not None and isinstance(solver, LookAhead):
        better = error <= state.error
        plain = old is state.H
        trust = state.trust if plain else after(state.trust, better, solver.steps)
        if not better:  # back to the last verified factors; from there a pass can only gain
            if output is not None:
                output.forget(number)
            kkt = state.history[-1].kkt
            record = replace(record, error=state.error, kkt=kkt)
            history = (*state.history, record)
            return replace(
                state, passes=passes, history=history, seen=None, trust=trust, H_before=None
            )
        state = replace(state, trust=trust, seen=seen, H_before=state.H)
    if output is not None:
        output.forget(state.generation)
    return replace(
        state,
        W=W,
        H=H,
        passes=passes,
        history=(*state.history, record),
        dead=int(np.sum((np.diag(made.WtW) == 0) | ~H.any(axis=1))),
        products=made if state.products else None,
        generation=number,
    )


def _every_row(state: State, sketch: Sketch, W_s: Array) -> DaskArray:
    """The model's W, where it has all rows; else the one at hand."""
    if sketch.rows is not None:
        return state.W
    # Cut here: each task gets its own rows, not all of them.
    return da.from_array(W_s.astype(state.W.dtype), chunks=state.W.chunks, name=False)


def _next_point(state: State, solver: Solver, sums: Sums) -> tuple[DaskArray, Array]:
    """Where the next pass is made: W to improve, and H to improve it at."""
    if state.products is not None:
        return state.W, _half_step(solver, state.H, state.products)
    if not isinstance(solver, LookAhead) or state.trust is None:
        return state.W, state.H
    if state.sketch is not None and state.seen is not None and trusted(state.trust):
        W_s, H = look_ahead(state.sketch, state.seen, state.H, sums, state.trust.steps)
        return _every_row(state, state.sketch, W_s), H.astype(state.H.dtype)
    if state.H_before is not None:
        return state.W, extrapolate(state.H, state.H_before, state.trust.momentum)
    return state.W, state.H


def _half_step(solver: Solver, H: Array, made: Products) -> Array:
    """H * (W.T @ V) / ((W.T @ W) @ H), for the MU solver."""
    improved = solver.improve(H.T, made.WtV.T, made.WtW).T
    return np.ascontiguousarray(improved, dtype=H.dtype)
