"""Two trials of `python -m tests.chaos`, which makes as many as are asked for."""

import pytest

from tests.chaos import EVENTS, try_once
from tests.conftest import push


@pytest.mark.parametrize(
    ("seed", "events"),
    push(
        1,
        [
            (10, ["kill_driver", "kill_worker", "damaged_run"]),
            (18, ["kill_scheduler", "stop_worker", "two_drivers"]),
        ],
    ),
)
def test_trial(seed: int, events: list[str]) -> None:
    """What happens is given; the call and the moments are the seed's."""
    trial, line = try_once(seed, events)
    print(line)
    assert line.endswith(": same"), line
    assert set(trial.done) & EVENTS.keys()
    assert trial.restarts
    assert not trial.processes.all
