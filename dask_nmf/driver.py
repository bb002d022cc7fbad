"""The driver: the only loop."""

import logging
import time
import warnings
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from dask.utils import format_bytes, format_time

from dask_nmf.blas import one_blas_thread
from dask_nmf.blocks import Geometry, row_blocks
from dask_nmf.init import NNDSVD, Given, make_start
from dask_nmf.io import Matrix, Missing, check_reachable, open_matrix
from dask_nmf.losses import Frobenius, cancellation, make_loss, relative
from dask_nmf.options import check_options
from dask_nmf.output import open_output
from dask_nmf.result import Result
from dask_nmf.scheduler import Scheduler, active_scheduler
from dask_nmf.solvers import MU, Solver, make_solver
from dask_nmf.stopping import Status, stop
from dask_nmf.stream import first_pass, squared_residual, sweep
from dask_nmf.types import (
    Callback,
    ConvergenceWarning,
    State,
    Sums,
    SweepRecord,
    working_dtype,
)

logger = logging.getLogger("dask_nmf")

_MU_AND_ZEROS = "MU cannot leave the zeros of init='nndsvd': use init='nndsvda' or 'nndsvdar'"


def factorize(
    V: Any,
    rank: int,
    *,
    out: Any = None,
    loss: str | Frobenius = "frobenius",
    solver: str | Solver = "auto",
    init: Any = "random",
    tol: float = 1e-4,
    max_passes: int = 200,
    max_seconds: float | None = None,
    seed: int = 0,
    memory: int | str | None = None,
    block_rows: int | None = None,
    missing: Missing = "error",
    overwrite: bool = False,
    callback: Callback | None = None,
) -> Result:
    """Find non-negative W (m, k) and H (k, n) with V ≈ W @ H, reading V once per sweep.

    Runs on the active dask scheduler: threads if there is none, the cluster of a
    ``distributed.Client`` if there is one.

    Parameters
    ----------
    V : zarr array, path or URL of one, dask array or numpy array; (m, n)
        Finite and non-negative. Any 2-D chunks; a block of whole rows must fit in memory.
    rank : int
        k, the number of components.
    out : path, URL or zarr group, optional
        Where W, H and the history go, as a zarr group. None keeps W in the workers' memory.
    loss : "frobenius"
    solver : "auto", "hals", "mu" or an object
        "auto" is ``HALS(inner=5)``.
    init : "random", "nndsvd", "nndsvda", "nndsvdar", (W0, H0) or an object
        The start. The NNDSVD family costs 3 passes more.
    tol : float
        Stop when the error falls by less than this, relative, in a sweep; 0 never does.
    max_passes : int
        At most this many reads of V, the first pass and the start's included; one more where a
        very close fit has to be measured (see Notes).
    max_seconds : float, optional
        Stop after the sweep that ends later than this.
    seed : int
        The start depends on (seed, shape, rank) only.
    memory : int or str, optional
        Limit in bytes, or such as "2GiB", for each worker process: blocks are made to fit.
        Under threads call `one_heap` first.
    block_rows : int, optional
        Rows per block; chosen by size (64 MiB) and `memory` when None.
    missing : "error" or "zero"
        What a chunk that V's store does not hold means.
    overwrite : bool
        Replace a finished result at `out`.
    callback : callable, optional
        Called with each sweep's record; the run stops when it returns True. (``tqdm.update``
        returns True whenever it redraws: do not return its answer.)

    Returns
    -------
    Result

    Raises
    ------
    TypeError, ValueError
        Before V is read, if an argument is out of range, or V is not 2-D, empty, or not real; or
        if `memory` is too small. In the first pass, if V has a NaN, infinite or negative entry.
        In any pass, if a chunk of V is missing.
    FileExistsError
        If `out` holds a finished result, or anything that is not a result.
    RuntimeError
        If the active scheduler cannot run it.

    Warns
    -----
    ConvergenceWarning
        If the budget ended the run.

    Notes
    -----
    Cost: one pass over V to check it, the start's, then one per sweep. A fit so close that its
    error cannot be told from the sums of a pass costs one more pass, once. Memory per process:
    see ``blocks.Geometry.peak_bytes``.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> V = rng.random((60, 3)) @ rng.random((3, 20))
    >>> result = factorize(V, rank=3, tol=0, max_passes=60)
    >>> result.W.shape, result.H.shape
    ((60, 3), (3, 20))
    >>> bool(result.error < 0.01)
    True
    """
    began = time.perf_counter()
    loss, solver, start = make_loss(loss), make_solver(solver), make_start(init)
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
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {callback!r}")
    matrix = open_matrix(V, missing)
    start.check(matrix.shape, options.rank)
    if isinstance(start, NNDSVD) and start.fill is None and isinstance(solver, MU):
        warnings.warn(_MU_AND_ZEROS, UserWarning, stacklevel=2)
    scheduler = active_scheduler()
    check_reachable("V", getattr(matrix.source, "store", None), scheduler.remote)
    heights = row_blocks(
        _geometry(matrix, options.rank, scheduler), options.memory, options.block_rows
    )
    output = None if out is None else open_output(out, matrix.uri, overwrite, scheduler.remote)
    _log_plan(matrix, options.rank, heights, scheduler)

    with one_blas_thread:  # the driver's own small products too
        if scheduler.remote:
            matrix = matrix.held_by_workers(heights)
        sums = first_pass(matrix.blocks(heights))
        W, H = start.factors(matrix.blocks(heights), options.rank, sums, options.seed)
        state = State(W, H, passes=1 + start.passes)
        asked = False
        while (status := stop(state.history, options, asked)) is Status.RUNNING:
            state = _sweep(state, matrix, heights, loss, solver, sums, began)
            asked = _report(state, callback)

    logger.info("%s: %s", status.name.lower(), status.value)
    parameters = {
        "shape": list(matrix.shape),
        "dtype": str(H.dtype),
        "V": matrix.uri,
        "loss": "frobenius",
        "solver": repr(solver),
        "init": "given" if isinstance(start, Given) else repr(start),
        **asdict(options),
        "missing": missing,
        "blocks": len(heights),
        "block_rows": max(heights),
        "scheduler": scheduler.name,
    }
    result = Result(state.W, state.H, state.history, status, parameters, state.dead)
    if output is not None:
        result = output.write(result)
    # Last, so that a caller who turns warnings into errors loses nothing.
    if options.tol > 0 and status in (Status.MAX_PASSES, Status.MAX_SECONDS):
        warnings.warn(_not_converged(state, status), ConvergenceWarning, stacklevel=2)
    return result


def _sweep(
    state: State,
    matrix: Matrix,
    heights: tuple[int, ...],
    loss: Frobenius,
    solver: Solver,
    sums: Sums,
    began: float,
) -> State:
    """One pass over V: W row block by row block, then H from the sums over the blocks."""
    V, close = matrix.blocks(heights), cancellation(working_dtype(matrix.dtype))
    residual = state.error < 2 * close
    W, products = sweep(V, state.W, state.H, solver, residual=residual)
    H = solver.improve(state.H.T, products.WtV.T, products.WtW).T
    H = np.ascontiguousarray(H, dtype=state.H.dtype)
    error, passes = loss.error(sums, products, state.H, H), state.passes + 1
    if error < close and not residual:  # this close the sums cancel: measure it, once
        error = relative(squared_residual(matrix.blocks(heights), W, H), sums)
        passes += 1
    record = SweepRecord(
        sweep=len(state.history) + 1,
        passes=passes,
        error=error,
        seconds=time.perf_counter() - began,
        bytes_read=passes * matrix.nbytes,
    )
    dead = int(np.sum((np.diag(products.WtW) == 0) | ~H.any(axis=1)))
    return replace(state, W=W, H=H, passes=passes, history=(*state.history, record), dead=dead)


def _report(state: State, callback: Callback | None) -> bool:
    """One log line per sweep, and the callback's answer."""
    now = state.history[-1]
    before = state.history[-2] if len(state.history) > 1 else None
    seconds = now.seconds - (before.seconds if before else 0.0)
    fell = f" d={now.error - before.error:+.1e}" if before else ""
    logger.info(
        "sweep %d pass %d error %.6g%s %s",
        now.sweep,
        now.passes,
        now.error,
        fell,
        format_time(seconds),
    )
    return callback is not None and callback(now) is True


def _geometry(matrix: Matrix, rank: int, scheduler: Scheduler) -> Geometry:
    return Geometry(
        m=matrix.shape[0],
        n=matrix.shape[1],
        rank=rank,
        itemsize=working_dtype(matrix.dtype).itemsize,
        stored=matrix.copied_itemsize,
        heights=matrix.heights,
        threads=scheduler.threads,
        processes=scheduler.processes,
        target=matrix.target_bytes,
    )


def _log_plan(matrix: Matrix, rank: int, heights: tuple[int, ...], scheduler: Scheduler) -> None:
    logger.info(
        "V %d x %d %s (%s) in %d blocks of up to %d rows, rank %d, on %s with %d x %d threads",
        *matrix.shape,
        matrix.dtype,
        format_bytes(matrix.nbytes),
        len(heights),
        max(heights),
        rank,
        scheduler.name,
        scheduler.processes,
        scheduler.threads,
    )


def _not_converged(state: State, status: Status) -> str:
    fell = ""
    if len(state.history) > 1:
        before, last = state.history[-2].error, state.history[-1].error
        fell = f", and fell by {(before - last) / before:.1e} in the last sweep"
    return (
        f"{status.value}: the error is {state.error:.6g}{fell}. Raise the limit, or tol, if "
        "that is not good enough"
    )
