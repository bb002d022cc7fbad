"""When a run ends: reads the history only."""

from collections.abc import Sequence
from enum import Enum

from dask_nmf.options import Options
from dask_nmf.types import SweepRecord


class Status(Enum):
    """Why a run stopped; the value is the sentence to show."""

    RUNNING = "still running"
    CONVERGED = "the error fell by less than tol, relative, in the last sweep"
    EXACT = "V is reproduced exactly"
    MAX_PASSES = "max_passes reads of V were spent before the error settled"
    MAX_SECONDS = "max_seconds were spent before the error settled"
    CALLBACK = "the callback asked to stop"

    @property
    def converged(self) -> bool:
        return self in (Status.CONVERGED, Status.EXACT)


def stop(
    history: Sequence[SweepRecord], options: Options, asked: bool = False, reads: int = 1
) -> Status:
    """The status after the last sweep; `asked` is what the callback said, `reads` those of a sweep.

    No sweep begins that would read V more often than `max_passes` allows.
    """
    if not history:
        return Status.RUNNING
    last = history[-1]
    if last.error == 0:
        return Status.EXACT
    if len(history) > 1 and options.tol > 0:
        before = history[-2].error
        if before - last.error < options.tol * before:
            return Status.CONVERGED
    if asked:
        return Status.CALLBACK
    if last.passes + reads > options.max_passes:
        return Status.MAX_PASSES
    if options.max_seconds is not None and last.seconds >= options.max_seconds:
        return Status.MAX_SECONDS
    return Status.RUNNING
