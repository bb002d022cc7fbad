"""Errors that end a call and not its run: what is committed stays, and the next call goes on."""


class RunStopped(RuntimeError):
    """The run cannot go on here and now; the same call, made again with `out`, goes on from it.

    Examples
    --------
    >>> issubclass(ClusterLost, RunStopped), issubclass(StorageFailed, OSError)
    (True, True)
    """


class RunTakenOver(RunStopped):
    """A later call of `factorize` works on the same `out`: it goes on, this one has stopped."""


class ClusterLost(RunStopped):
    """The scheduler or all workers are gone, or nothing finishes any more."""


class PoisonBlock(RunStopped):
    """The workers that touch one block of V die: of memory, or of what is in it.

    key : of the task that they died of.
    """

    def __init__(self, text: str, key: object = None) -> None:
        super().__init__(text)
        self.key = key

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.key)


class StorageFailed(RunStopped, OSError):
    """The store of V or of `out` fails: full, read-only, forbidden, or out of reach."""


class Damaged(ValueError):
    """What lies in a store is not what was written there."""
