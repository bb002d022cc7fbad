"""The half-steps: improve one factor while the other is fixed.

A solver is frozen hyper-parameters and a pure function ``improve(F, numer, gram)`` on small
arrays. It serves W as ``improve(W, V @ H.T, H @ H.T)`` and H, transposed, as
``improve(H.T, V.T @ W, W.T @ W)``; inner sweeps cost no read of V. Solvers know neither dask nor
zarr, and compute in float64 whatever the data: with float32 sums the fit of ill-conditioned
data stalls early (measured: 0.1 % above the float64 limit on hyperspectral data).
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dask_nmf.simplex import on_simplex
from dask_nmf.terms import NO_TERM, Term
from dask_nmf.types import Array

_TINY = np.finfo(np.float64).tiny
_MOST_ROUNDS = 1000  # of 10 sweeps each
_SETTLED = 1e-12  # a row's largest move, of its largest entry
_ROUNDING = 1e-28  # of squared norms: a column 1e-14 times the largest is what is left of zero


class Solver(Protocol):
    """What the engine asks of a solver."""

    @property
    def inner(self) -> int: ...

    def improve(self, F: Array, numer: Array, gram: Array) -> Array: ...


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number >= 0 and < 1, got {value!r}")


def check_inner(inner: int) -> None:
    if isinstance(inner, bool) or not isinstance(inner, int) or inner < 1:
        raise ValueError(f"inner must be an int >= 1 (sweeps per half-step), got {inner!r}")


@dataclass(frozen=True)
class MU:
    """Multiplicative updates: F * numer / (F @ gram), never rising, never leaving zero.

    Parameters
    ----------
    inner : int
        How often each half-step is repeated on the same products.

    Notes
    -----
    Cost per half-step: 2 b k^2 flops per inner sweep for b rows, no read of V.
    Source: Lee and Seung 2001, equation 4; inner sweeps: Gillis and Glineur 2012, section 3.

    Examples
    --------
    >>> V, F, G = np.eye(2) + 1, np.ones((2, 1)), np.ones((1, 2))
    >>> MU(inner=3).improve(F, V @ G.T, G @ G.T)
    array([[1.5],
           [1.5]])
    """

    inner: int = 1

    def __post_init__(self) -> None:
        check_inner(self.inner)

    def improve(self, F: Array, numer: Array, gram: Array, term: Term = NO_TERM) -> Array:
        """F (b, k) after the inner sweeps; numer (b, k), gram (k, k)."""
        F = F.astype(np.float64)
        numer = numer.astype(np.float64)
        fixed = F[:, : term.fixed]
        for _ in range(self.inner):
            # A zero denominator has a zero numerator: the floor makes 0 / 0 a zero.
            F = F * numer / np.maximum(F @ gram + term.slope(F), _TINY)
            F[:, : term.fixed] = fixed
        return F


@dataclass(frozen=True)
class HALS:
    """Hierarchical alternating least squares: each column of F set to its exact optimum in turn.

    F_j = max(0, numer_j - sum over i != j of F_i gram_ij) / gram_jj. A column whose gram_jj is 0
    is left as it is: its partner in the other factor is zero, and it may revive that one. So is one
    whose gram_jj is no more than rounding, which division would blow up.

    Parameters
    ----------
    inner : int
        Sweeps over the columns per half-step. More than about 10 rarely pay.
    settle : float
        End the half-step early, when a sweep moves less than this share of what the first one
        moved (squared, weighted by gram's diagonal); 0 takes all sweeps.

    Notes
    -----
    Cost per half-step: 2 b k^2 flops per inner sweep for b rows, no read of V.
    Source: Cichocki, Zdunek and Amari 2007; Gillis and Glineur 2012, equation 4; ending early:
    there, section 3.

    Examples
    --------
    >>> V, F, G = np.eye(2) + 1, np.ones((2, 1)), np.ones((1, 2))
    >>> HALS().improve(F, V @ G.T, G @ G.T)
    array([[1.5],
           [1.5]])
    """

    inner: int = 5
    settle: float = 0.0

    def __post_init__(self) -> None:
        check_inner(self.inner)
        _check_share("settle", self.settle)

    def improve(self, F: Array, numer: Array, gram: Array) -> Array:
        """F (b, k) after the inner sweeps; numer (b, k), gram (k, k)."""
        # Transposed copies: a column of F is then contiguous.
        Ft = np.array(F.T, dtype=np.float64, order="C")
        numer_t = np.array(numer.T, dtype=np.float64, order="C")
        diagonal = np.diag(gram).astype(np.float64)
        others = gram - np.diag(diagonal)
        live = np.flatnonzero(diagonal > _ROUNDING * diagonal.max())
        before, first = np.empty_like(Ft) if self.settle else Ft, 0.0
        for _ in range(self.inner):
            if self.settle:
                np.copyto(before, Ft)
            for j in live:
                Ft[j] = np.maximum(0.0, numer_t[j] - others[j] @ Ft) / diagonal[j]
            if self.settle:
                before -= Ft
                moved = float(diagonal @ np.einsum("ij,ij->i", before, before))
                first = first or moved
                if moved <= self.settle * first:
                    break
        return np.ascontiguousarray(Ft.T)


@dataclass(frozen=True)
class LookAhead:
    """Half-steps that settle, and between two passes many steps on a small model of V.

    A half-step is HALS, begun from the better, row by row, of the factor at hand and the positive
    part of the least-squares solution. Between passes `model.look_ahead` goes on without V, by HALS
    with extrapolation and Newton steps; the next pass measures where that led, and what is not
    better is dropped.

    Parameters
    ----------
    inner : int
        Most sweeps over the columns per half-step.
    settle : float
        A half-step ends when a sweep moves less than this share of what its first one moved.
    steps : int
        Most steps on the model between two passes.
    model : bool
        Without the model (which needs memory for some 22 arrays like H) the next pass is made at
        an extrapolated H.

    Notes
    -----
    Cost per half-step: 2 b k^2 flops per inner sweep for b rows, no read of V. Memory and flops of
    the model: see `model`.
    Source: as `HALS`; when to end the inner sweeps: Gillis and Glineur 2012, section 3.

    Examples
    --------
    >>> import dask_nmf
    >>> dask_nmf.factorize(np.ones((6, 4)), 1, solver=LookAhead(steps=20)).error < 1e-9
    True
    """

    inner: int = 30
    settle: float = 1e-4
    steps: int = 100
    model: bool = True

    def __post_init__(self) -> None:
        check_inner(self.inner)
        _check_share("settle", self.settle)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps must be an int >= 1 (on the model), got {self.steps!r}")

    def improve(self, F: Array, numer: Array, gram: Array) -> Array:
        """F (b, k) after the inner sweeps; numer (b, k), gram (k, k)."""
        F, numer = F.astype(np.float64), numer.astype(np.float64)
        start = _better_rows(F, np.maximum(0.0, numer @ pseudo_inverse(gram)), numer, gram)
        return HALS(self.inner, self.settle).improve(start, numer, gram)


def _better_rows(F: Array, other: Array, numer: Array, gram: Array) -> Array:
    """Of each row f the one with the smaller f G f' - 2 f n': its squared error less v v'."""

    def value(X: Array) -> Array:
        return np.asarray(np.einsum("ij,ij->i", X @ gram - 2 * numer, X))

    return np.where((value(other) < value(F))[:, None], other, F)


def pseudo_inverse(gram: Array, rounding: float = 1e-11) -> Array:
    """That of a Gram matrix, of columns brought to unit norm; what is rounding counts as 0."""
    norms = np.sqrt(np.diag(gram))
    norms = np.where(norms > 0, norms, 1.0)
    values, E = np.linalg.eigh(gram / np.outer(norms, norms))
    live = values > rounding * max(values.max(), 0.0)
    return np.asarray((E[:, live] / values[live]) @ E[:, live].T / np.outer(norms, norms))


@dataclass(frozen=True)
class Settled:
    """Each row at its best, wherever it was: for a factor whose partner is known."""

    inner: int = _MOST_ROUNDS

    def improve(self, F: Array, numer: Array, gram: Array) -> Array:
        """F (b, k) for numer (b, k), gram (k, k)."""
        return settled(np.asarray(numer, np.float64), gram)


def settled(numer: Array, gram: Array) -> Array:
    """F (b, k) >= 0 with the least f G f' - 2 f n' in each row, which settles by itself."""
    start = np.maximum(0.0, numer @ pseudo_inverse(gram))
    F = _better_rows(np.zeros_like(numer), start, numer, gram)
    moving = np.arange(len(F))
    for _ in range(_MOST_ROUNDS):
        if not len(moving):
            break
        now = HALS(inner=10).improve(F[moving], numer[moving], gram)
        far = np.abs(now - F[moving]).max(axis=1) > _SETTLED * now.max(axis=1)
        F[moving] = now
        moving = moving[far]
    return F


def half_step(solver: Solver, F: Array, numer: Array, gram: Array, term: Term = NO_TERM) -> Array:
    """solver.improve under a term.

    Penalties go into the denominator of MU, and into the quadratic of all others, where fixed
    columns only leave less to be explained. Rows that sum to one have a method of their own.
    """
    if isinstance(solver, MU) and not term.closed:
        return solver.improve(F, numer, gram, term)
    numer, gram = term.quadratic(numer, gram)
    if term.closed:
        return on_simplex(F, numer, gram, solver.inner)
    if not (r := term.fixed):
        return solver.improve(F, numer, gram)
    if r == F.shape[1]:
        return F
    rest = numer[:, r:] - F[:, :r] @ gram[:r, r:]
    return np.hstack([F[:, :r], solver.improve(F[:, r:], rest, gram[r:, r:])])


_BY_NAME: dict[str, Solver] = {"auto": LookAhead(), "hals": HALS(), "mu": MU()}


def make_solver(solver: str | Solver) -> Solver:
    """The solver of that name, or the one given."""
    if isinstance(solver, str):
        if solver not in _BY_NAME:
            raise ValueError(
                f"solver must be one of {sorted([*_BY_NAME, 'newton'])} or an object such as "
                f"dask_nmf.HALS(inner=5), got {solver!r}"
            )
        return _BY_NAME[solver]
    if not callable(getattr(solver, "improve", None)) or isinstance(solver, type):
        raise TypeError(
            f"solver must be a name or an object with improve(F, numer, gram), got {solver!r}"
        )
    return solver
