"""Newton steps for the rows of a non-negative factor, each row a small quadratic problem.

The second derivatives of row f are one symmetric k x k matrix per row; as k (k + 1) / 2 pairs they
come from one product with the pairwise products of the other factor's columns.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from dask_nmf.solvers import Solver, check_inner, make_solver
from dask_nmf.types import Array


@dataclass(frozen=True)
class Newton:
    """Second-order half-steps, for losses between Kullback-Leibler and Frobenius.

    Each row takes the minimum of its quadratic model, by coordinate descent, in a region that keeps
    `least` of each entry; where the loss of that row rose it takes the multiplicative step instead.
    H takes one such step per pass, from derivatives summed over the blocks, and is extrapolated;
    where the next pass finds that the loss rose, H goes back and takes the multiplicative step.

    Parameters
    ----------
    inner : int
        Steps for W in each visit to a block.
    sweeps : int
        Over the coordinates, for one step.
    least : float
        The share of an entry that a step leaves, at least. Not for Frobenius, whose quadratic model
        is the loss itself.

    Notes
    -----
    Cost per pass: (inner + 1) k^2 flops for each entry of V (each non-zero, for sparse V and KL),
    and k (k + 1) / 2 * n numbers from each block.
    Source: Hsieh and Dhillon 2011, section 4 (one coordinate at a time); the step taken for whole
    rows and at the end of a pass is ours.

    Examples
    --------
    >>> import dask_nmf
    >>> V = np.random.default_rng(0).poisson(5.0, (30, 8)).astype(float)
    >>> told = {"loss": "kullback-leibler", "tol": 0.1}
    >>> dask_nmf.factorize(V, 2, solver=Newton(inner=2), **told).status.converged
    True
    """

    inner: int = 5
    sweeps: int = 8
    least: float = 0.05

    def __post_init__(self) -> None:
        check_inner(self.inner)
        check_inner(self.sweeps)
        if not 0 < self.least < 1:
            raise ValueError(f"least must be above 0 and below 1, got {self.least!r}")


_ROUNDING = 1e-24  # of second derivatives: what is so much smaller is what is left of zero

AnySolver = Solver | Newton


def any_solver(solver: str | AnySolver) -> AnySolver:
    """The solver of that name, or the one given."""
    if isinstance(solver, Newton):
        return solver
    return Newton() if isinstance(solver, str) and solver == "newton" else make_solver(solver)


def pair_count(k: int) -> int:
    return k * (k + 1) // 2


def pair_products(F: Array) -> Array:
    """F_i * F_j for all i <= j: (r, k (k + 1) / 2) from (r, k)."""
    first, second = _pairs(F.shape[1])[:2]
    return np.asarray(F[:, first] * F[:, second])


@cache
def _pairs(k: int) -> tuple[Array, Array, Array]:
    """The two members of each pair, and the number of each pair (k, k)."""
    first, second = np.triu_indices(k)
    number = np.zeros((k, k), dtype=np.intp)
    number[first, second] = number[second, first] = np.arange(len(first))
    return first, second, number


def descend(
    F: Array, slope: Array, bend: Array, least: Array | float, sweeps: int, fixed: int = 0
) -> Array:
    """F (r, k) after sweeps of exact coordinate descent on each row's quadratic model at F.

    slope : (r, k) gradient. bend : (k (k + 1) / 2, r) second derivatives, by pairs. least : (r, k)
    or a number; no entry goes below. An entry that nothing depends on stays, or goes to its least
    if the slope says so. fixed : the first so many columns stay.
    """
    k = F.shape[1]
    number = _pairs(k)[2]
    Ft, slope_t = np.ascontiguousarray(F.T), np.ascontiguousarray(slope.T)
    low = np.broadcast_to(np.asarray(least).T, Ft.shape)
    moved = np.zeros_like(Ft)
    own = diagonal(bend, k).T
    flat = own <= _ROUNDING * own.max(axis=0)
    steep = np.where(flat, 1.0, own)
    some_flat = flat.any(axis=1)
    for _ in range(sweeps):
        for j in range(fixed, k):
            row = bend[number[j]]  # (k, r)
            rest = slope_t[j] + np.einsum("ir,ir->r", row, moved)
            to = Ft[j] + moved[j] - rest / steep[j]
            if some_flat[j]:
                to = np.where(flat[j], np.where(rest > 0, low[j], Ft[j] + moved[j]), to)
            moved[j] = np.maximum(low[j], to) - Ft[j]
    return np.ascontiguousarray((Ft + moved).T)


def own_pairs(k: int) -> Array:
    """Which pairs are of a component with itself."""
    return np.diag(_pairs(k)[2])


def diagonal(bend: Array, k: int) -> Array:
    """(r, k): the second derivatives of each entry by itself."""
    return np.ascontiguousarray(bend[own_pairs(k)].T)
