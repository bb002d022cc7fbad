"""The loop of a run, and what comes before and after it: the only `while`."""

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import dask.array as da
import numpy as np
from dask.utils import format_bytes, format_time

from dask_nmf import bundles, sweeps, visits
from dask_nmf.checkpoint import Run
from dask_nmf.divergences import Beta
from dask_nmf.errors import PoisonBlock, RunStopped, StorageFailed
from dask_nmf.fingerprint import identity
from dask_nmf.init import Given
from dask_nmf.looking import look_first
from dask_nmf.losses import Frobenius
from dask_nmf.matrix import Matrix
from dask_nmf.output import IN_MEMORY, Output
from dask_nmf.planner import Job
from dask_nmf.plans import Plan
from dask_nmf.result import Result
from dask_nmf.resume import BUDGET, check_same, unknown
from dask_nmf.stopping import Status, stop
from dask_nmf.types import AnyArray, Callback, DaskArray, FirstPass, State, Sums, at_once
from dask_nmf.watch import compute

AT_HAND = True  # a small V in memory is multiplied as it is: graphs would take 50 times as long
_TRIES = 3  # of a pass under which workers die
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}

T = TypeVar("T")
logger = logging.getLogger("dask_nmf")


@dataclass(frozen=True)
class Kept:
    """Where a run is kept.

    identity : of V, as this call found it. every : sweeps between commits, None as they pay.
    """

    output: Output
    run: Run
    identity: str | None
    every: int | None


def run_job(job: Job, callback: Callback | None, began: float, kept: Kept | None = None) -> Result:
    """From the first pass, or the last commit, to the result."""
    uri = kept.output.uri if kept else None
    try:
        with failures_named(job.plan, uri), job.threads(), job.streamed() as matrix:
            return _run(job, matrix, callback, began, kept)
    except Exception as error:
        if kept is not None:
            with suppress(OSError):  # the store may be what has failed
                kept.run.ended_by_error(error)
        if isinstance(error, _FromCallback) and (theirs := error.__cause__) is not None:
            raise theirs from theirs.__cause__
        raise


def _run(
    job: Job,
    matrix: Matrix,
    callback: Callback | None,
    began: float,
    kept: Kept | None,
) -> Result:
    """`matrix` is V, or V.T, as it is streamed."""
    plan, options = job.plan, job.options
    divergence = isinstance(job.loss, Beta)
    how, look = (visits, look_first) if divergence else (sweeps, sweeps.look_first)
    run, once = (kept.run, kept.run.once) if kept else (None, at_once)
    for line in repr(plan).splitlines():
        logger.info(line)
    first = once("first", FirstPass, partial(_surviving, plan, partial(look, job, matrix)))
    first = matrix.only_once(first, (options.rank, plan.grid))
    state = run.load(first.sketch) if run else None
    if kept and kept.run.recalled and unknown(kept.identity, kept.run.record["identity"]):
        check_same(job, matrix, first.sums)
    resumed_from = state.passes if state else None
    if state is None:
        state = _surviving(plan, partial(how.begin, job, matrix, first, once))
        if kept:
            state = kept.run.save(kept.run.stored(state), kept.every)
    else:
        logger.info("going on after pass %d", state.passes)
        began -= state.history[-1].seconds if state.history else 0.0
    at_hand = AT_HAND and plan.blocks == 1 and matrix.in_memory and not (kept or matrix.shared)
    if at_hand and not (job.scheduler.remote or matrix.partial):
        W, V = compute(state.W, matrix.blocks(plan.grid))
        state, matrix = replace(state, W=W), replace(matrix, block=V)
    asked, reads = False, plan.reads_per_sweep
    rounding = max(1e-13, float(np.finfo(state.H.dtype).eps))
    while (status := stop(state.history, options, asked, reads, rounding)) is Status.RUNNING:
        sweep = partial(how.next_sweep, job, state, matrix, first.sums, run, began)
        state = _surviving(plan, sweep)
        if kept:
            state = kept.run.save(state, kept.every)
        asked = _report(state, callback)
    logger.info("%s: %s", status.name.lower(), status.value)
    ended = state
    if divergence and options.rule == "decrease":
        ended = _surviving(plan, partial(visits.with_last_H, job, state, matrix, first.sums))
    result = _result(job, ended, status, resumed_from)
    if kept is None:
        return result
    if kept.identity is not None and identity(job.matrix) != kept.identity:
        check_same(job, matrix, first.sums)
    kept.run.save(state, kept.every, last=True)
    return _written(result, kept, first.sums)


def _result(job: Job, state: State, status: Status, resumed_from: int | None) -> Result:
    if isinstance(state.W, np.ndarray):
        state = replace(state, W=da.from_array(state.W, chunks=-1, name=False))
    plan, (W, H) = job.plan, _factors(state, job.plan)
    parameters = {
        "shape": list(plan.shape),
        "dtype": str(H.dtype),
        "V": plan.V,
        "loss": "frobenius" if isinstance(job.loss, Frobenius) else job.loss.name,
        "solver": repr(job.solver),
        "init": "given" if isinstance(job.start, Given) else repr(job.start),
        **asdict(job.options),
        "missing": job.matrix.missing,
        "weights": job.matrix.weights.uri if job.matrix.weights else None,
        "fixed_rows": job.constraints.fixed,
        "sum_to_one": job.constraints.sum_to_one,
        "blocks": plan.blocks,
        "block_rows": plan.block[0],
        "scheduler": plan.scheduler,
    }
    about: dict[str, Any] = {"dead": state.dead, "plan": plan, "labels": job.matrix.labels}
    return Result(W, H, state.history, status, parameters, resumed_from=resumed_from, **about)


def _written(result: Result, kept: Kept, sums: Sums) -> Result:
    """The result in its place, and the run beside it where a larger budget may go on with it."""
    output, run = kept.output, kept.run
    goes_on = result.status in BUDGET and result.parameters["tol"] > 0
    about = {"problem": run.record["problem"], "identity": kept.identity, "sums": asdict(sums)}
    about |= {"run": run.name, "goes_on": goes_on}
    run.check_owner()
    result = output.write(result)
    run.check_owner()  # of two that write the same results the owner says that they are there
    output.finish(result, about)
    if not goes_on:
        run.delete()
    output.consolidate()
    return result


def _factors(state: State, plan: Plan) -> tuple[DaskArray, AnyArray]:
    """W and H of V, from those of what was streamed."""
    if not plan.transposed:
        return state.W, np.ascontiguousarray(state.H)
    W = da.from_array(np.ascontiguousarray(state.H.T), chunks=-1)
    H = state.W.T
    return W, np.ascontiguousarray(compute(H)[0]) if H.nbytes <= IN_MEMORY else H


def _report(state: State, callback: Callback | None) -> bool:
    """One log line per sweep, and the callback's answer."""
    now = state.history[-1]
    before = state.history[-2] if len(state.history) > 1 else None
    seconds = now.seconds - (before.seconds if before else 0.0)
    fell = f" d={now.error - before.error:+.1e}" if before else ""
    logger.info(
        "sweep %d pass %d error %.6g%s kkt %.1e %s",
        now.sweep,
        now.passes,
        now.error,
        fell,
        now.kkt,
        format_time(seconds),
    )
    try:
        return callback is not None and callback(now) is True
    except Exception as error:
        raise _FromCallback from error


# ----------------------------------------------------------------------------------- failures
class _FromCallback(Exception):
    """Brings what the caller's own callback has raised past what names our failures."""


def _surviving(plan: Plan, call: Callable[[], T]) -> T:
    """What `call` returns; made again, under other keys, where workers died under it.

    dask gives a task up when it has seen so many workers die ("allowed-failures"), of whatever.
    """
    blamed = []
    for attempt in range(1, _TRIES + 1):
        try:
            return call()
        except PoisonBlock as error:
            blamed.append(error.key)
            if attempt == _TRIES:
                raise PoisonBlock(f"{_rows_of(blamed, plan)}: {error}", error.key) from error
            logger.warning("%s: the pass is made again (%d of %d)", error, attempt + 1, _TRIES)
    raise AssertionError


def _rows_of(keys: list[object], plan: Plan) -> str:
    """Which parts of V tasks were about: the first number in a key is the row block's, or two are.

    dask blames whatever a worker had when it died: perhaps another part each time.
    """
    heights, side = plan.grid.heights, "columns" if plan.transposed else "rows"
    parts = [key for key in keys if isinstance(key, tuple) and not key[0].startswith("nmf-sum")]
    touched = [range(*k[1:]) if k[0].startswith(bundles.NAME) else k[1:2] for k in parts]
    blocks = sorted({i for rows in touched for i in rows if i in range(len(heights))})
    if not blocks:
        return "workers died in each of the tries"
    ends = list(accumulate(heights))
    spans = " or ".join(f"{ends[i] - heights[i]:,} to {ends[i]:,}" for i in blocks)
    return (
        f"the workers that touched {side} {spans} of V died, in {_TRIES} tries of the pass. If "
        "memory ran out there (their logs say so), give them more, or pass a smaller memory= or "
        "block_rows= (with overwrite=True); else look at that part"
    )


@contextmanager
def failures_named(plan: Plan, uri: str | None) -> Iterator[None]:
    """Failures of storage and memory as errors that say how to go on; uri : where a run is kept."""
    again = "Then make the same call again: it goes on from the last commit"
    if uri is None:
        again = "Then call again; with out= such a call goes on from the last pass"
    try:
        yield
    except (RunStopped, FileExistsError):
        raise
    except MemoryError as error:
        raise RunStopped(
            f"memory ran out ({error}), though {format_bytes(plan.peak_bytes)} per process were "
            f"planned: end what else takes it, or pass a smaller memory=. {again}"
        ) from error
    except OSError as error:
        raise StorageFailed(f"{_cause(error, plan, uri)}: {error}. {again}") from error


def _cause(error: OSError, plan: Plan, uri: str | None) -> str:
    out = f" at {uri}" if uri else ""
    if error.errno in _FULL:
        return f"a disk is full (the run needs up to {format_bytes(plan.disk_bytes)}{out})"
    if error.errno in _FORBIDDEN:
        text = "a store may not be read or written any more: restore its permissions"
        return f"{text} (the run lies{out})" if uri else text
    return "a store fails"
