"""Plain records that travel between the files, and the array aliases."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
"""A numpy array: a block of V or W, H, or a k x k product."""

DaskArray = Any
"""A dask array of numpy blocks (dask's own types are not checked)."""

AnyArray = Any
"""Either of the two: the half-steps take both."""


T = TypeVar("T")


class Once(Protocol):
    """Gives what `make` makes; where a run is kept, what an earlier call has made of that name."""

    def __call__(self, name: str, kind: type[T], make: Callable[[], T], /) -> T: ...


def at_once(_name: str, _kind: type[T], make: Callable[[], T]) -> T:
    """`make`, where nothing is kept."""
    return make()


class ConvergenceWarning(UserWarning):
    """The budget was spent before the error settled.

    Examples
    --------
    >>> import dask_nmf, warnings
    >>> with warnings.catch_warnings(record=True, action="always") as told:
    ...     found = dask_nmf.factorize(np.eye(6) + 1, 2, solver="mu", max_passes=3, tol=1e-9)
    >>> told[0].category is ConvergenceWarning
    True
    """


@dataclass(frozen=True)
class SweepRecord:
    """What one sweep did: a row of `Result.history`, and what `callback` receives.

    Attributes
    ----------
    sweep : int
        Number of this sweep, from 1.
    passes : int
        Passes over V so far, with the first one and the start's.
    error : float
        ||V - W H|| / ||V|| of the factors after this sweep; with other losses the divergence of W H
        over that of mean(V): the share of the deviance that is left.
    seconds : float
        Since the run began.
    bytes_read : int
        Decoded bytes of V read so far; blocks that are kept in memory are read once.
    kkt : float
        How far from stationary: the projected gradient in H where the pass was made, each
        component's over the norm of its column of W, over ||V - W H||. Scale-free; 0 at an optimum.
    objective : float or None
        What is minimized: half of ||V - W H||^2, or the divergence, and the terms.
    held_out : float or None
        The error of the entries whose weight is 0; None where there are none.

    Examples
    --------
    >>> import dask_nmf
    >>> seen = []
    >>> result = dask_nmf.factorize(np.ones((6, 4)), 1, callback=seen.append)
    >>> tuple(seen) == result.history, seen[0].sweep
    (True, 1)
    """

    sweep: int
    passes: int
    error: float
    seconds: float
    bytes_read: int
    kkt: float
    objective: float | None = None
    held_out: float | None = None


Callback = Callable[[SweepRecord], object]
"""Called after each sweep; the run stops when it returns True."""


@dataclass(frozen=True)
class Sums:
    """What the first pass finds out about V; all in float64.

    mixed : a sum with weights by row and column, which tells when entries change places.
    minimum : None where nobody asked. own : what a divergence wants of each entry by itself.
    weight : of all entries; None is one each. hidden : the same of entries whose weight is 0.
    """

    total: float
    squares: float
    maximum: float
    mixed: float = 0.0
    minimum: float | None = None
    own: float = 0.0
    weight: float | None = None
    hidden: "Sums | None" = None


@dataclass(frozen=True)
class Products:
    """What one pass sums over the row blocks for H's half-step; all in float64.

    W is the new one, H the one the pass was made at.

    Attributes
    ----------
    WtV : (k, n) array
        W.T @ V.
    WtW : (k, k) array
        W.T @ W.
    WtR, residual : (k, n) array and float, or None
        W.T @ R and ||R||^2 with R = V - W @ H, when the pass was asked for them.
    W_total : float
        The sum of W, where a term needs it.
    """

    WtV: Array
    WtW: Array
    WtR: Array | None = None
    residual: float | None = None
    W_total: float = 0.0


@dataclass(frozen=True)
class Sketch:
    """What the first pass keeps of V for the model: of all of its rows, or of a sample of them.

    Attributes
    ----------
    rows : (s,) array of int, or None
        The sample, ascending; None is all rows.
    share : float
        s / m.
    Y : (s, l) array
        V_s @ random directions.
    YtV : (l, n) array
        Y.T @ V_s.
    """

    rows: Array | None
    share: float
    Y: Array
    YtV: Array


@dataclass(frozen=True)
class Sample:
    """Some rows of V as they are: values (s, n), or data, indices and indptr; and their weights."""

    values: Array
    indices: Array | None = None
    indptr: Array | None = None
    weights: Array | None = None


@dataclass(frozen=True)
class FirstPass:
    """What the first pass leaves: the sums, and what a better start is made of.

    sketch : where a model is made of V. sample : where the loss is a divergence.
    """

    sums: Sums
    sketch: Sketch | None = None
    sample: Sample | None = None


@dataclass(frozen=True)
class Seen:
    """What one pass, made at H, leaves for the model.

    Attributes
    ----------
    H : (k, n) array
    products : Products
        Of the new W.
    numer, W : (m, k) arrays, or None
        V @ H.T and the new W, unless the sketch has a sample of rows only.
    """

    H: Array
    products: Products
    numer: Array | None = None
    W: Array | None = None


@dataclass(frozen=True)
class Trust:
    """How far the next pass may be from the last verified H: grows with success.

    steps, most_steps : on the model; momentum, most : of the extrapolation where there is none.
    """

    steps: int
    most_steps: int
    momentum: float = 0.5
    most: float = 1.0


@dataclass(frozen=True)
class Ahead:
    """What leads from the last verified H to that of the next pass, for "auto".

    trust : how far. sketch : None where there is no model. seen : by the last pass; None after one
    that was dropped. H_before : the H verified before, None likewise.
    """

    trust: Trust
    sketch: Sketch | None = None
    seen: Seen | None = None
    H_before: Array | None = None


@dataclass(frozen=True)
class Next:
    """Where the next pass is made, for a divergence.

    H : there. safe : where it cannot be worse than now, if H is. before : the last H of a Newton
    step, to extrapolate from.
    """

    H: Array
    safe: Array
    trust: Trust
    before: Array | None = None


@dataclass(frozen=True)
class State:
    """The factors between two sweeps.

    W : dask array (m, k), row blocks like V's, in the workers' memory or in a store.
    H : (k, n) array of the same dtype. dead : components that have become zero.
    products : of the W at hand, where the sweeps begin with H (on the transpose).
    generation : name of W in the store, "" where it is not stored.
    ahead : None for solvers that do not look ahead. next : for a divergence, whose error at H is
    known only from a pass made there; H is the one that has been measured.
    """

    W: DaskArray
    H: Array
    passes: int
    history: tuple[SweepRecord, ...] = ()
    dead: int = 0
    products: Products | None = None
    generation: str = ""
    ahead: Ahead | None = None
    next: Next | None = None

    @property
    def error(self) -> float:
        return self.history[-1].error if self.history else float("inf")

    @property
    def objective(self) -> float:
        found = self.history[-1].objective if self.history else None
        return float("inf") if found is None else found


def working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of W, H and of V's blocks: float32 stays float32, all else becomes float64."""
    return np.dtype(np.float32 if dtype.newbyteorder("=") == np.float32 else np.float64)
