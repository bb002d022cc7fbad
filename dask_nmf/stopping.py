"""When a run ends: reads the history only."""

from collections.abc import Sequence
from enum import Enum
from itertools import pairwise

from dask_nmf.options import Options
from dask_nmf.types import SweepRecord


class Status(Enum):
    """Why a run stopped; the value is the sentence to show.

    Examples
    --------
    >>> Status.MAX_PASSES.converged, Status.EXACT.value
    (False, 'V is reproduced exactly')
    """

    RUNNING = "still running"
    CONVERGED = "the KKT residual is below tol"
    STALLED = "the error fell by no more than rounding in each of the last two sweeps"
    EXACT = "V is reproduced exactly"
    MAX_PASSES = "max_passes reads of V were spent before the KKT residual was below tol"
    MAX_SECONDS = "max_seconds were spent before the KKT residual was below tol"
    CALLBACK = "the callback asked to stop"

    @property
    def converged(self) -> bool:
        return self in (Status.CONVERGED, Status.STALLED, Status.EXACT)


def stop(
    history: Sequence[SweepRecord],
    options: Options,
    asked: bool = False,
    reads: int = 1,
    rounding: float = 1e-13,
) -> Status:
    """The status after the last sweep.

    `asked` is what the callback said, `reads` those of a sweep, `rounding` that of an error.
    No sweep begins that would read V more often than `max_passes` allows.
    """
    if not history:
        return Status.RUNNING
    last = history[-1]
    if options.rule != "kkt":
        if options.tol > 0 and _as_scikit_learn(history, options):
            return Status.CONVERGED
    elif last.error == 0:
        return Status.EXACT
    elif last.kkt < options.tol:
        return Status.CONVERGED
    may_stall = options.tol > 0 and options.rule != "decrease"  # which ten sweeps decide
    if may_stall and len(history) > 2 and _still(history[-3:], rounding):
        return Status.STALLED
    if asked:
        return Status.CALLBACK
    if last.passes + reads > options.max_passes or len(history) == options.max_sweeps:
        return Status.MAX_PASSES
    if options.max_seconds is not None and last.seconds >= options.max_seconds:
        return Status.MAX_SECONDS
    return Status.RUNNING


def _as_scikit_learn(history: Sequence[SweepRecord], options: Options) -> bool:
    """scikit-learn's rules, for those who know their tol; free of V's scale as ours.

    "cd": the projected gradient (here: in H, by component) beside the first one. "mu": every ten
    sweeps, what they gained beside the first error (scikit-learn's is the start's).
    """
    first, last, sweeps = history[0], history[-1], len(history)
    if options.rule == "gradient":
        found = last.kkt * last.error <= options.tol * first.kkt * first.error
        return sweeps > 1 and found
    before = history[max(0, sweeps - 11)]
    return sweeps % 10 == 0 and before.error - last.error <= options.tol * first.error


def _still(last: Sequence[SweepRecord], rounding: float) -> bool:
    """Whether no sweep of these was a gain; what is not told from rounding is none."""
    return all(b.error >= a.error * (1 - rounding) for a, b in pairwise(last))
