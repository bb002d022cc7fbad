"""The first of the random calls of `tests.fuzz`, which makes more of them by hand."""

import pytest

from tests.conftest import push
from tests.fuzz import run

SEED, CALLS = 0, 100


@pytest.mark.parametrize("first", push(5, range(0, CALLS, 10)))
def test_random_calls(first: int) -> None:
    for index in range(first, first + 10):
        run(SEED, index)
