"""One run: the arguments checked, what lies at `out` taken up, and the loop set going."""

import time
import warnings
from dataclasses import replace
from typing import Any

import dask
import numpy as np

from dask_nmf.blas import arithmetic, one_blas_thread
from dask_nmf.checkpoint import Run
from dask_nmf.fingerprint import problem
from dask_nmf.init import NNDSVD
from dask_nmf.labels import check_storable
from dask_nmf.loop import Kept, failures_named, run_job
from dask_nmf.options import check_int
from dask_nmf.output import open_output
from dask_nmf.planner import Job, prepare
from dask_nmf.result import Result
from dask_nmf.resume import take_up
from dask_nmf.solvers import MU
from dask_nmf.stopping import Status
from dask_nmf.types import Callback, ConvergenceWarning
from dask_nmf.watch import compute

_MU_AND_ZEROS = "MU cannot leave the zeros of init='nndsvd': use init='nndsvda' or 'nndsvdar'"


def run(
    V: Any,
    rank: int,
    *,
    out: Any = None,
    overwrite: bool = False,
    checkpoint_every: int | None = None,
    callback: Callback | None = None,
    **options: Any,
) -> Result:
    """What `factorize` does for one start; options : as for `prepare`, all of them."""
    began = time.perf_counter()
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {callback!r}")
    if not isinstance(overwrite, (bool, np.bool_)):  # "no" would replace a result
        raise TypeError(f"overwrite must be True or False, got {overwrite!r}")
    if checkpoint_every is not None:
        check_int("checkpoint_every", checkpoint_every, 1)
    job = prepare(V, rank, out=out, **options)
    if isinstance(job.start, NNDSVD) and job.start.fill is None and isinstance(job.solver, MU):
        warnings.warn(_MU_AND_ZEROS, UserWarning, stacklevel=3)
    result = carried_out(job, out, overwrite, checkpoint_every, callback, began)
    # Last, so that a caller who turns warnings into errors loses nothing.
    warn_of_budget(result, 4)
    return result


def carried_out(
    job: Job,
    out: Any = None,
    overwrite: bool = False,
    checkpoint_every: int | None = None,
    callback: Callback | None = None,
    began: float | None = None,
) -> Result:
    """The result at `out`, if it is there; else that of the run, which may go on from there."""
    began = time.perf_counter() if began is None else began
    kept, result = None, None
    with one_blas_thread:  # the driver's own small products too
        if out is not None:
            job, kept, result = _begun(job, out, overwrite, checkpoint_every)
        if result is None:
            result = run_job(job, callback, began, kept)
    return result


def _begun(
    job: Job, out: Any, overwrite: bool, every: int | None
) -> tuple[Job, Kept | None, Result | None]:
    """What is to be done at `out`: the job and where it is kept, or the result that is there."""
    check_storable(job.matrix.labels)
    output = open_output(out, job.matrix.uri)
    wanted = problem(job.matrix, job.options, job.loss, job.asked, job.start, job.constraints)
    with failures_named(job.plan, output.uri), job.threads():
        found = take_up(output, job, wanted, overwrite)
    if found.result is not None:
        passes = found.result.history[-1].passes
        labels = job.matrix.labels or found.result.labels
        return job, None, replace(found.result, resumed_from=passes, labels=labels)
    if found.resume:
        job = job.resumed(found.record)
    needs = job.plan.output_bytes if found.resume else job.plan.disk_bytes
    output = output.writable(job.scheduler.remote, needs)
    with job.threads():
        (here,) = compute(dask.delayed(arithmetic)())
    record = {"arithmetic": here, **found.record}
    if (there := record["arithmetic"]) != here:
        text = (
            f"the run at {output.uri} began with other arithmetic ({', '.join(there)}; here: "
            f"{', '.join(here)}): it goes on, but its last bits may differ from those of an "
            "uninterrupted run"
        )
        warnings.warn(text, UserWarning, stacklevel=4)
    with failures_named(job.plan, output.uri):
        run = Run(output.group, record, found.last, found.resume)
    return job, Kept(output, run, found.identity, every), None


def warn_of_budget(result: Result, stacklevel: int) -> None:
    """Warn of a run that its budget has ended; stacklevel : of the user's call."""
    ended = result.status in (Status.MAX_PASSES, Status.MAX_SECONDS)
    if result.parameters["tol"] > 0 and ended:
        warnings.warn(_not_converged(result), ConvergenceWarning, stacklevel=stacklevel)


def _not_converged(result: Result) -> str:
    fell = ""
    if len(result.history) > 1:
        before, last = result.history[-2].error, result.history[-1].error
        fell = f", and fell by {(before - last) / before:.1e} in the last sweep"
    return (
        f"{result.status.value}: the error is {result.error:.6g}{fell}. Raise the limit, or tol, "
        "if that is not good enough"
    )
