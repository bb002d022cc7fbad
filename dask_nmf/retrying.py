"""Storage that errs now and then: asked again after a pause, and named when it goes on erring."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from dask_nmf.errors import RunStopped, StorageFailed

T = TypeVar("T")

_PAUSES = (0.1, 0.4, 1.5, 5.0)  # seconds; clients of object stores have retries of their own
_FINAL = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    MemoryError,
    RunStopped,
)
_FINAL_CODES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM}

logger = logging.getLogger("dask_nmf")


def insist(call: Callable[[], T], what: object) -> T:
    """What `call` returns; called again a few times where its error may pass.

    Raises
    ------
    StorageFailed
        If it does not: chained to the last error.
    """
    for pause in (*_PAUSES, None):
        try:
            return call()
        except Exception as error:
            if isinstance(error, _FINAL) or getattr(error, "errno", None) in _FINAL_CODES:
                raise
            if pause is None:
                raise StorageFailed(
                    f"{what} failed {len(_PAUSES) + 1} times, at last with "
                    f"{type(error).__name__}: {error}"
                ) from error
            logger.warning("%s: %s: %s; once more", what, type(error).__name__, error)
            time.sleep(pause)
    raise AssertionError
