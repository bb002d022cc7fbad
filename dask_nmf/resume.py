"""What a call finds at `out`: its own result, its own run to go on with, or something to refuse."""

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from dask_nmf.checkpoint import Claim, forget, holds_work, newest_claim
from dask_nmf.fingerprint import differences, identity, same_sums
from dask_nmf.looking import sums_of
from dask_nmf.matrix import Matrix
from dask_nmf.output import Output, load_result
from dask_nmf.planner import Job
from dask_nmf.result import Result
from dask_nmf.stopping import Status, stop
from dask_nmf.types import Sums

BUDGET = (Status.MAX_PASSES, Status.MAX_SECONDS, Status.CALLBACK)
"""Ends after which a call with a larger budget goes on: the run is kept beside its results."""

_TOLD = ("tol", "max_passes", "max_seconds")
_STOPPING = (*_TOLD, "rule", "max_sweeps")


@dataclass(frozen=True)
class Found:
    """result : finished, to be returned as it is. last : the run that was begun there.

    resume : whether to go on with that one. record : what is written of the run. identity : of V.
    """

    result: Result | None
    last: Claim | None
    resume: bool
    record: dict[str, Any]
    identity: str | None


def take_up(output: Output, job: Job, problem: dict[str, Any], overwrite: bool) -> Found:
    """Decide, and change nothing; V is read (once) only if it may have changed.

    Raises
    ------
    FileExistsError
        If another call's result or unfinished run is there and not `overwrite`; or this call's, but
        of a V that has changed since.
    """
    now = identity(job.matrix)
    record: dict[str, Any] = {"problem": problem, "identity": now, "plan": job.plan.to_json()}
    record |= {"model": getattr(job.solver, "model", False), "used": repr(job.solver)}
    saved = output.finished
    last = newest_claim(output.group) if output.group is not None else None
    if saved is not None and not overwrite:
        return _finished(output, saved, last, job, record)
    ended = saved is not None and last is not None and last.run == saved.get("run")
    if last is None or ended or not holds_work(output.group, last.run):
        return Found(None, last, False, record, now)
    differ = differences(problem, last.record["problem"])
    if differ and not overwrite:
        raise FileExistsError(
            f"out: {output.uri} holds an unfinished run of another call: {differ}. Make that call "
            "again, choose another place, or pass overwrite=True to drop the run"
        )
    return Found(None, last, not differ, record if differ else last.record, now)


def _finished(
    output: Output, saved: dict[str, Any], last: Claim | None, job: Job, record: dict[str, Any]
) -> Found:
    now = record["identity"]
    where = f"out: {output.uri} holds a finished result (error {saved['error']:.6g})"
    anew = "pass overwrite=True to replace it, or read it with dask_nmf.open_result"
    result = load_result(output.group)
    if differ := differences(record["problem"], saved.get("problem", {})):
        raise FileExistsError(f"{where} of another call, {differ}: {anew}")
    if unknown(now, saved["identity"]):
        try:
            check_same(job, job.side, Sums(**saved["sums"]))
        except ValueError as error:
            raise FileExistsError(f"{where}, but {error}") from error
    if last is not None and last.run == saved["run"] and not saved["goes_on"]:
        with suppress(OSError):  # its call was killed at the very end
            group = output.writable(remote=False, needs=0).group
            forget(group.store_path / "run", last.run, last.number)
    wanted = {name: getattr(job.options, name) for name in _STOPPING}
    asked = all(result.parameters.get(name) == wanted[name] for name in _STOPPING)
    if asked:
        return Found(result, last, False, record, now)
    status = stop(result.history, job.options, reads=job.plan.reads_per_sweep)
    if status is not Status.RUNNING:
        result = replace(result, status=status, parameters=result.parameters | wanted)
        return Found(result, last, False, record, now)
    if last is None or last.run != saved["run"] or not saved["goes_on"]:
        raise FileExistsError(
            f"{where} of {_told(result.parameters)}, and what is needed to go on from it to "
            f"{_told(wanted)} is not kept: {anew}"
        )
    return Found(None, last, True, last.record, now)


def _told(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={options[name]}" for name in _TOLD)


# ------------------------------------------------------------------------------ is V the same
def unknown(mine: str | None, theirs: str | None) -> bool:
    """Whether only a read of V can tell that it is still the same."""
    return mine is None or mine != theirs


def check_same(job: Job, matrix: Matrix, sums: Sums) -> None:
    """Read V, and raise ValueError if its sums are others than those."""
    found = sums_of(job, matrix)
    if not same_sums(found, sums):
        raise ValueError(
            f"V has changed since the run began: the squares of {matrix.uri} now sum to "
            f"{found.squares:.15g}, then to {sums.squares:.15g}. Restore it, or pass "
            "overwrite=True to begin anew"
        )
