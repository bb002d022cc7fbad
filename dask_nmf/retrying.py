"""Storage that errs now and then: asked again after a pause, and named when it goes on erring."""

import errno
import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

from dask_nmf.errors import RunStopped, StorageFailed

T = TypeVar("T")

_ENOUGH = 60.0  # seconds: a client that took so long has itself asked often enough
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
_DENIED = {  # obstore's and botocore's, which are no OSErrors
    "PermissionDeniedError",
    "UnauthenticatedError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
}
_FINAL_CODES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM}

logger = logging.getLogger("dask_nmf")


def without_passwords(text: object) -> str:
    """Where URLs in it hold user and password, they are left out."""
    return re.sub(r"(?<=://)[^/@\s]*:[^/@\s]*@", "", str(text))


def insist(call: Callable[[], T], what: object) -> T:
    """What `call` returns; called again a few times where its error may pass.

    Raises
    ------
    StorageFailed
        If it does not: chained to the last error.
    PermissionError
        If the store says so.
    """
    began, what = time.monotonic(), without_passwords(what)
    for tries, pause in enumerate((*_PAUSES, None), start=1):
        try:
            return call()
        except ImportError as error:
            raise ImportError(
                f"{what}: {error}; object stores come with pip install 'dask_nmf[s3]'"
            ) from error
        except Exception as error:
            if type(error).__name__ in _DENIED or _is_bare(error):
                raise PermissionError(
                    errno.EACCES, f"{what}: {_told(error)}: are keys and permissions right?"
                ) from error
            if isinstance(error, _FINAL) or getattr(error, "errno", None) in _FINAL_CODES:
                raise
            if pause is None or time.monotonic() - began > _ENOUGH:
                raise StorageFailed(
                    f"{what} failed {tries} times, at last with {_told(error)}. When "
                    "the store answers again, make the same call again"
                ) from error
            logger.warning("%s: %s; once more", what, _told(error))
            time.sleep(pause)
    raise AssertionError


def _is_bare(error: Exception) -> bool:
    """A refusal by a server: those of file systems say of which file."""
    return isinstance(error, PermissionError) and error.filename is None


def _told(error: Exception) -> str:
    """In one line; obstore's go on with pages of internals."""
    return f"{type(error).__name__}: {without_passwords(error).partition(chr(10))[0]}"
