"""One BLAS thread while a task runs, from whatever thread, and as many as before after it."""

import threading
from collections.abc import Callable

import pytest
from threadpoolctl import threadpool_info

from dask_nmf.blas import one_blas_thread


def _threads() -> set[int]:
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}


def _in_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


@pytest.mark.skipif(_threads() == {1}, reason="BLAS has one thread here anyway")
def test_any_thread_sets_and_lifts_the_limit() -> None:
    seen: list[set[int]] = []

    def look() -> None:
        with one_blas_thread:
            seen.append(_threads())

    before = _threads()
    look()
    _in_thread(look)
    look()
    assert seen == [{1}] * 3
    _in_thread(one_blas_thread.__enter__)
    assert _threads() == {1}
    one_blas_thread.__exit__()
    assert _threads() == before
    one_blas_thread.__enter__()
    _in_thread(one_blas_thread.__exit__)
    assert _threads() == before
