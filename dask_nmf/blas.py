"""One BLAS thread per task, for as long as one of ours runs in the process.

Blocks already run side by side, so more BLAS threads only fight for the same cores (1.9 times
slower, measured), and the bits of a product depend on their number.
"""

import os
import platform
import threading
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

P = ParamSpec("P")
T = TypeVar("T")


@cache
def _controller() -> Any:
    return ThreadpoolController()  # finds the loaded BLAS libraries: milliseconds, so only once


def _disown() -> None:
    """Let this thread set limits: from 3.7 on threadpoolctl obeys only the last one that did.

    Of ours the one that lifts the limit may be another.
    """
    for library in _controller().lib_controllers:
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread(force=True)


class _OneThread:
    """Re-entrant and shared by all threads: the first in sets the limit, the last out lifts it.

    The number of BLAS threads belongs to the process, so this counter has to as well. A plain
    ``threadpool_limits(1)`` in each task is a race (threadpoolctl issue 205): one thread's exit
    restores the old number under another one's product.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limiter: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                _disown()
                self._limiter = _controller().limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                _disown()
                self._limiter.restore_original_limits()
                _disown()


one_blas_thread = _OneThread()


def arithmetic() -> list[str]:
    """What the bits of a product depend on here: numpy, and its BLAS library with its kernels."""
    loaded = [found for found in _controller().info() if found["user_api"] == "blas"]
    numpys = os.path.dirname(np.__file__)  # and numpy.libs beside it
    own = [found for found in loaded if found["filepath"].startswith(numpys)]
    libraries = sorted(
        f"{found['internal_api']} {found['version']} {found.get('architecture')}"
        for found in own or loaded
    )
    return [f"numpy {np.__version__} {platform.machine()}", *libraries]


def single_threaded(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate the work of a task: it runs with one BLAS thread, on whatever process it lands."""

    @wraps(function)
    def task(*args: P.args, **kwargs: P.kwargs) -> T:
        with one_blas_thread:
            return function(*args, **kwargs)

    return task
