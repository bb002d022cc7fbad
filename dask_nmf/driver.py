"""The driver: the only loop."""

import logging
import time
import warnings
from dataclasses import asdict
from typing import Any

import dask.array as da
import numpy as np
from dask.utils import format_time

from dask_nmf.blas import one_blas_thread
from dask_nmf.init import NNDSVD, Given
from dask_nmf.io import Missing
from dask_nmf.losses import Frobenius, make_loss
from dask_nmf.output import IN_MEMORY, open_output
from dask_nmf.planner import prepare
from dask_nmf.plans import Plan
from dask_nmf.result import Result
from dask_nmf.solvers import MU, Solver
from dask_nmf.stopping import Status, stop
from dask_nmf.sweeps import begin, next_sweep
from dask_nmf.types import AnyArray, Callback, ConvergenceWarning, DaskArray, State

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
    tol: float = 5e-3,
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
        Where W, H and the history go, as a zarr group; W lies there between sweeps, too. None
        keeps W in the workers' memory.
    loss : "frobenius"
    solver : "auto", "hals", "mu" or an object
        "auto" is ``LookAhead()``: it needs the fewest reads, mostly 3 to 10.
    init : "random", "nndsvd", "nndsvda", "nndsvdar", (W0, H0) or an object
        The start. The NNDSVD family costs 3 passes more.
    tol : float
        Stop when the KKT residual (`SweepRecord.kkt`) is below this, or when two sweeps have gained
        no more than rounding; 0 never does.
    max_passes : int
        At most this many reads of V, the first pass and the start's included; one more where a
        very close fit has to be measured (see Notes).
    max_seconds : float, optional
        Stop after the sweep that ends later than this.
    seed : int
        The start depends on (seed, shape, rank) only.
    memory : int or str, optional
        Limit in bytes, or such as "2GiB", for each worker process: blocks are made to fit, and
        what is to spare keeps blocks of V. None: 60 % of what the workers, the container or the
        machine allow.
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
    Cost: one pass over V to check it, the start's, then one per sweep. With "auto" the first pass
    sketches V, too, and between passes the factors are improved on a model of it; the errors in
    the history are those of V, and never rise: a pass that leads to a worse one is dropped. A fit
    so close that its error cannot be told from the sums of a pass costs one more pass, once.
    Memory per process: see ``blocks.Geometry.peak_bytes``.

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
    loss = make_loss(loss)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {callback!r}")
    job = prepare(
        V,
        rank,
        out=out,
        solver=solver,
        init=init,
        tol=tol,
        max_passes=max_passes,
        max_seconds=max_seconds,
        seed=seed,
        memory=memory,
        block_rows=block_rows,
        missing=missing,
    )
    plan, options, start, solver = job.plan, job.options, job.start, job.solver
    if isinstance(start, NNDSVD) and start.fill is None and isinstance(solver, MU):
        warnings.warn(_MU_AND_ZEROS, UserWarning, stacklevel=2)
    output = None
    if out is not None:
        remote, needs = job.scheduler.remote, plan.disk_bytes
        output = open_output(out, job.matrix.uri, overwrite, remote, needs)
        output.forget()  # what a killed run has left
    for line in repr(plan).splitlines():
        logger.info(line)

    with one_blas_thread, job.threads():  # the driver's own small products too
        matrix, grid = job.streamed(), plan.grid
        state, sums = begin(matrix, plan, options, start, solver)
        asked, reads = False, grid.reads_per_sweep
        rounding = max(1e-13, float(np.finfo(state.H.dtype).eps))
        while (status := stop(state.history, options, asked, reads, rounding)) is Status.RUNNING:
            state = next_sweep(state, matrix, grid, loss, solver, sums, output, began)
            asked = _report(state, callback)
        logger.info("%s: %s", status.name.lower(), status.value)
        W, H = _factors(state, plan)
        parameters = {
            "shape": list(plan.shape),
            "dtype": str(H.dtype),
            "V": plan.V,
            "loss": "frobenius",
            "solver": repr(solver),
            "init": "given" if isinstance(start, Given) else repr(start),
            **asdict(options),
            "missing": missing,
            "blocks": plan.blocks,
            "block_rows": plan.block[0],
            "scheduler": plan.scheduler,
        }
        result = Result(W, H, state.history, status, parameters, state.dead, plan=plan)
        if output is not None:
            result = output.write(result)
    # Last, so that a caller who turns warnings into errors loses nothing.
    if options.tol > 0 and status in (Status.MAX_PASSES, Status.MAX_SECONDS):
        warnings.warn(_not_converged(state, status), ConvergenceWarning, stacklevel=2)
    return result


def _factors(state: State, plan: Plan) -> tuple[DaskArray, AnyArray]:
    """W and H of V, from those of what was streamed."""
    if not plan.transposed:
        return state.W, state.H
    W = da.from_array(np.ascontiguousarray(state.H.T), chunks=-1)
    H = state.W.T
    return W, np.ascontiguousarray(H.compute()) if H.nbytes <= IN_MEMORY else H


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
    return callback is not None and callback(now) is True


def _not_converged(state: State, status: Status) -> str:
    fell = ""
    if len(state.history) > 1:
        before, last = state.history[-2].error, state.history[-1].error
        fell = f", and fell by {(before - last) / before:.1e} in the last sweep"
    return (
        f"{status.value}: the error is {state.error:.6g}{fell}. Raise the limit, or tol, if "
        "that is not good enough"
    )
