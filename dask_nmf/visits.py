"""The sweep of a divergence: H's half-step from the sums of the pass before, then a visit to V.

No Gram matrix tells what W @ H costs at another H. So a pass measures the loss where it is made,
at the new W and the H that it was given, and that pair is the sweep's. Each block improves its own
rows of W and adds the derivatives in H to sums over the blocks, of which the next H is made.
"""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from dask_nmf.blas import single_threaded
from dask_nmf.checkpoint import Run
from dask_nmf.descent import after, extrapolate
from dask_nmf.divergences import Beta
from dask_nmf.entrywise import (
    Problem,
    Visited,
    column_sums,
    improve_rows,
    kkt,
    multiplied,
    solve_rows,
    step,
    sum_rows,
    visited,
)
from dask_nmf.matrix import Matrix
from dask_nmf.newton import Newton
from dask_nmf.planner import Job
from dask_nmf.solvers import HALS, MU
from dask_nmf.stream import blockwise, done, from_rows, sum_blocks, whole
from dask_nmf.tasks import aligned, factor_dtype, write_rows
from dask_nmf.types import (
    AnyArray,
    Array,
    DaskArray,
    FirstPass,
    Next,
    Once,
    Sample,
    State,
    Sums,
    SweepRecord,
    Trust,
)
from dask_nmf.watch import aside, compute

_STEPS_ON_SAMPLE, _LEAST_GAIN = 30, 1e-3  # of the loss: a step that gains less ends them
_FLOOR = 1e-2  # of H's mean: an entry may be of a column that the sample does not have


# ------------------------------------------------------------------------------------ the start
def begin(job: Job, matrix: Matrix, first: FirstPass, once: Once) -> State:
    """The start; and, of a sample of V's rows, the H that serves them."""
    plan = job.plan
    V = matrix.observed(plan.grid)[0]
    W, H = job.start_factors(V, first.sums, once)
    trust = Trust(1, 1)
    if first.sample is not None:
        V_s = _rows_of(first.sample, V.shape[1])
        problem = _problem(job, first.sums).on_share(V_s.shape[0] / V.shape[0])
        row, H = aside(partial(_from_sample, V_s, first.sample.weights, H, problem))
        same = _SameRows((V.shape[0], job.options.rank), row.astype(W.dtype))
        W, H = from_rows(same, V.chunks[0]), H.astype(W.dtype)
    return State(W, H, passes=plan.passes_before, next=Next(H, H, trust))


class _SameRows:
    """The same row again and again, as boxes."""

    ndim = 2

    def __init__(self, shape: tuple[int, int], row: Array) -> None:
        self.shape, self.row, self.dtype = shape, row, row.dtype

    def __getitem__(self, index: Any) -> Array:
        start, stop, _ = index[0].indices(self.shape[0])
        return np.tile(self.row, (stop - start, 1))


def _rows_of(sample: Sample, n: int) -> Any:
    if sample.indices is None or sample.indptr is None:
        return sample.values
    parts = sample.values, sample.indices, sample.indptr
    return csr_array(parts, shape=(len(sample.indptr) - 1, n))


def _from_sample(V: Any, weights: Array | None, H: Array, problem: Problem) -> tuple[Array, Array]:
    """W's mean row and H, from sweeps on some rows of V alone."""
    now = Next(H.astype(np.float64), H.astype(np.float64), Trust(1, 1))
    size = float(np.sqrt(np.mean(now.H**2)))
    W, objective = np.full((V.shape[0], len(H)), size), np.inf
    best = W, now.H
    for _ in range(_STEPS_ON_SAMPLE):
        W_next = improve_rows(V, weights, W, now.H, problem)
        found = visited(column_sums(V, weights, W_next, now.H, problem), len(H), problem)
        total = found.loss + found.penalty
        if total <= objective:
            gained, W, objective, best = objective - total, W_next, total, (W_next, now.H)
            now = _proposed(now, best[1], found, problem)
            if gained <= _LEAST_GAIN * objective:
                break
        else:
            now = replace(now, H=now.safe, before=None, trust=after(now.trust, False))
    (W, H), fixed = best, problem.terms.H.fixed
    lifted = np.maximum(H[fixed:], _FLOOR * H.mean())
    return W.mean(axis=0), np.vstack([H[:fixed], lifted])


# ----------------------------------------------------------------------------------- the sweep
def next_sweep(
    job: Job, state: State, matrix: Matrix, sums: Sums, run: Run | None, began: float
) -> State:
    """One sweep: a pass at the H that the one before has led to, with the best W for it."""
    assert state.next is not None
    grid, problem, number = job.plan.grid, _problem(job, sums), len(state.history) + 1
    name, target = "", None
    if run is not None and job.plan.large_factor == "out":
        name, target = run.new_W(number, state.W.shape, max(grid.heights), state.W.dtype)
    H = state.next.H
    W, found = visit(*matrix.observed(grid), state.W, H, problem, target)
    of_H = problem.terms.H.value(float(H.sum()), float(np.vdot(H, H)))
    objective, passes = found.loss + found.penalty + of_H, state.passes + 1
    if not np.isfinite(objective):
        raise ValueError(
            f"the loss of sweep {number} is {objective}: V's entries, up to {sums.maximum:.3g}, "
            "are too different for sums in float64 (or V has been changed since the first pass): "
            "clip or scale them, or take another start"
        )
    better = objective <= state.objective
    last = state.history[-1] if state.history else None
    hidden = None
    if sums.hidden is not None:
        hidden = relative_loss(found.hidden, sums.hidden, problem.loss)
        hidden = hidden if np.isfinite(hidden) else None
    record = SweepRecord(
        sweep=number,
        passes=passes,
        error=relative_loss(found.loss, sums, problem.loss),
        seconds=time.perf_counter() - began,
        bytes_read=passes * matrix.nbytes - (passes - 1) * matrix.kept_bytes,
        kkt=kkt(H, found, problem),
        objective=objective,
        held_out=hidden,
    )
    if not better and last is not None:  # from the safe H a pass can only gain
        kept = {"error": last.error, "kkt": last.kkt, "objective": last.objective}
        record = replace(record, **kept, held_out=last.held_out)  # type: ignore[arg-type]
        trust = after(state.next.trust, better=False)
        back = replace(state.next, H=state.next.safe, before=None, trust=trust)
        return replace(state, passes=passes, history=(*state.history, record), next=back)
    used = (found.at.pull.any(axis=0) | found.at.push.any(axis=0)) & H.any(axis=1)
    return replace(
        state,
        W=W,
        H=H,
        passes=passes,
        history=(*state.history, record),
        dead=int(np.sum(~used)),
        generation=name,
        next=_proposed(state.next, H, found, problem),
    )


def with_last_H(job: Job, state: State, matrix: Matrix, sums: Sums) -> State:
    """H made from the last pass, too: as many half-steps of H as of W; one pass more for the loss.

    So scikit-learn counts, whose iterations end with H.
    """
    assert state.next is not None
    H, problem = state.next.safe, _problem(job, sums)
    _, found = visit(*matrix.observed(job.plan.grid), state.W, H, problem, improve=False)
    of_H = problem.terms.H.value(float(H.sum()), float(np.vdot(H, H)))
    last = replace(
        state.history[-1],
        passes=state.passes + 1,
        error=relative_loss(found.loss, sums, problem.loss),
        objective=found.loss + found.penalty + of_H,
    )
    return replace(state, H=H, history=(*state.history[:-1], last))


def _proposed(now: Next, H: Array, found: Visited, problem: Problem) -> Next:
    """Where the next pass is made, after one at H that was a gain."""
    F, term, at = H.T.astype(np.float64), problem.terms.H, found.at
    # A column without any weight tells nothing.
    seen = np.any(at.pull + at.push, axis=1, keepdims=True)
    seen = seen | (np.arange(F.shape[1]) < term.fixed)
    safe = multiplied(F, at, problem, term).T.astype(H.dtype)
    to = np.where(seen, step(F, at, problem, term), 0.0).T
    if not isinstance(problem.solver, Newton):
        return Next(to.astype(H.dtype), safe, now.trust)
    trust = after(now.trust, better=True)
    ahead = to if now.before is None else extrapolate(to, now.before, now.trust.momentum)
    if problem.loss.beta != 2:
        ahead = np.maximum(ahead, problem.solver.least * to)
    return Next(ahead.astype(H.dtype), safe, trust, before=to)


def visit(
    V: DaskArray,
    M: DaskArray | None,
    W: DaskArray,
    H: Array,
    problem: Problem,
    target: Any = None,
    improve: bool = True,
) -> tuple[DaskArray, Visited]:
    """One pass: the new W, row block by row block, and the derivatives in H there.

    Parameters
    ----------
    V : (m, n) dask array in row blocks, dense or of csr_array blocks
    M : (m, n) dask array of weights in the same blocks, or None
    W : (m, k) dask array in the same row blocks
    H : (k, n) array
    target : Writer, optional
        Where the new W is written; None keeps it in the workers' memory.
    improve : bool
        Whether W is to be a new one.

    Notes
    -----
    Cost: one read of V. Per block 3 tasks and a share of a tree.
    """
    k = len(H)
    if isinstance(W, np.ndarray):  # V is at hand, in one piece
        W = _improve_block(W, H, problem, V) if improve else W
        return W, visited(_sums_block(W, H, problem, V)[0], k, problem)
    data, H_all = (V, *_some(M)), whole(H)
    pairs = [x for X in data for x in (X, "ik")]
    if improve:
        W = blockwise(
            _improve_block,
            "ik",
            *(W, "ik", H_all, None, problem, None),
            *pairs,
            dtype=factor_dtype(W),
            align_arrays=False,
            adjust_chunks={"k": k},
        )
    if target is not None:
        W = W.map_blocks(write_rows, target, dtype=W.dtype, meta=W._meta, token="nmf-write")
    pairs = [x for X in data for x in (X, "in")]
    sums = blockwise(
        _sums_block,
        "ikn",
        *(W, "ik", H_all, None, problem, None),
        *pairs,
        adjust_chunks={"i": 1, "k": sum_rows(k, problem)},
    )
    if not improve:
        return W, visited(compute(sum_blocks(sums))[0], k, problem)
    W, (found,) = done(W, target, sum_blocks(sums))
    return W, visited(found, k, problem)


@single_threaded
def _improve_block(
    W_b: Array, H: Array, problem: Problem, V_b: AnyArray, M_b: Array | None = None
) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found by the loss
        if problem.terms.H.fixed == len(H):  # nothing else is to be found
            improved = solve_rows(aligned(V_b), M_b, aligned(H), problem)
        else:
            improved = improve_rows(aligned(V_b), M_b, aligned(W_b), aligned(H), problem)
    return improved.astype(factor_dtype(W_b))


@single_threaded
def _sums_block(
    W_b: Array, H: Array, problem: Problem, V_b: AnyArray, M_b: Array | None = None
) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return column_sums(aligned(V_b), M_b, aligned(W_b), aligned(H), problem)[np.newaxis]


def _problem(job: Job, sums: Sums) -> Problem:
    visitor = job.solver
    assert isinstance(visitor, (MU, HALS, Newton))
    mean = sums.total / (sums.weight or 1.0)
    return Problem(_divergence(job), visitor, job.side_terms, mean)


def _divergence(job: Job) -> Beta:
    assert isinstance(job.loss, Beta)
    return job.loss


def relative_loss(value: float, sums: Sums, loss: Beta) -> float:
    """||V - W H|| / ||V||; or the loss, over that of V's mean as a constant."""
    if not np.isfinite([value, sums.squares, sums.own]).all():  # of entries that are hidden
        return float("nan")
    if loss.beta == 2:
        base = sums.squares / 2
        return float(np.sqrt(value / base)) if base else float(value > 0)
    weight = sums.weight or 1.0
    base = loss.from_sums(sums.total, sums.own, weight)
    least = 1e-10 * weight * (sums.total / weight) ** loss.beta if sums.total else 0.0
    return value / max(base, least) if max(base, least) > 0 else float(value > 0)


def _some(M: DaskArray | None) -> tuple[DaskArray, ...]:
    return () if M is None else (M,)
