"""Random calls, checked: ``python -m tests.fuzz --calls 1000 --seed 0 [--only 17]``.

Each call, reproducible from the seed and its index, gives a right answer or an error that this
package raises on purpose, in words about an argument or V. Bad input that is accepted is a failure,
and so are warnings, and calls that take too long.
"""

import argparse
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask

import dask_nmf
from dask_nmf import geometry
from tests.fuzz_asked import ask
from tests.fuzz_checks import Wrong
from tests.fuzz_draw import Call, Draw
from tests.fuzz_options import draw_call, tighten
from tests.fuzz_stories import OTHERS, STORIES, Story

LIMIT = 60.0  # seconds of one call with all that follows it
_WEIGHTS = ("BASE_BYTES", "WORKER_BYTES", "GRAPH_BYTES")


class Hangs(BaseException):
    """A call took too long."""


def run(seed: int, index: int) -> str:
    """One call and what follows it; how it ended, in a word or two. Raises what is wrong."""
    draw = Draw(seed, index)
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call = draw_call(draw, Path(folder))
            story: Story = draw.one(*(OTHERS if draw.chance(0.15) else STORIES))
            if story in STORIES and draw.chance(0.4):
                ask(draw, call)
        try:
            with _limited(), _weightless(call.tight), dask.config.set(call.dask), _quiet(call):
                if call.tight:
                    tighten(draw, call)
                call.kind += f"; {story.__name__}"
                return f"{story.__name__}: {story(draw, call)}"
        except BaseException as error:
            error.add_note(f"seed {seed}, index {index}:\n{call}")
            raise


# ----------------------------------------------------------------------------------- around it
@contextmanager
def _limited() -> Iterator[None]:
    """Raise in a call that hangs."""

    def ring(*_: Any) -> None:
        raise Hangs(f"no end after {LIMIT:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _weightless(tight: bool) -> Iterator[None]:
    """A process that weighs nothing, so that limits of some kB decide about blocks."""
    before = {name: getattr(geometry, name) for name in _WEIGHTS}
    for name in _WEIGHTS if tight else ():
        setattr(geometry, name, 0)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(geometry, name, value)


@contextmanager
def _quiet(call: Call) -> Iterator[None]:
    """No warnings but those that are documented, and numpy's where V is at the end of its range."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
    for warning in seen:
        ours = warning.category is UserWarning and "MU cannot leave the zeros" in str(
            warning.message
        )
        ours = ours or ("V" in call.doubtful and warning.category is RuntimeWarning)
        if not (ours or issubclass(warning.category, dask_nmf.ConvergenceWarning)):
            raise Wrong(f"warns at {warning.filename}:{warning.lineno}: {warning.message!r}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Ctrl-C ends it with the counts so far."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="index of the first call")
    parser.add_argument("--only", type=int, help="index of the one call to make")
    arguments = parser.parse_args(argv)
    first, calls = arguments.first, arguments.calls
    if arguments.only is not None:
        first, calls = arguments.only, 1
    outcomes: Counter[str] = Counter()
    slowest, began = (0.0, 0), time.perf_counter()
    for index in range(first, first + calls):
        start = time.perf_counter()
        try:
            outcomes[run(arguments.seed, index)] += 1
        except KeyboardInterrupt:
            break
        except (Exception, Hangs):
            outcomes["FAILED"] += 1
            traceback.print_exc(file=sys.stdout)
            print(flush=True)
        slowest = max(slowest, (time.perf_counter() - start, index))
    for outcome, count in outcomes.most_common():
        print(f"{count:7,}  {outcome}")
    seconds, calls = time.perf_counter() - began, outcomes.total()
    print(
        f"{calls:,} calls of seed {arguments.seed} in {seconds:.0f} s, the slowest {slowest[0]:.1f}"
        f" s (index {slowest[1]}); {outcomes['FAILED']:,} failed"
    )
    return 1 if outcomes["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
