"""A visit to one block of V where the loss has no Gram short cut: entry by entry, in slabs.

W @ H is formed for a slab of rows at a time, which stays in cache; of a sparse V, for
Kullback-Leibler, at the non-zeros only. All in float64.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.sparse import issparse

from dask_nmf.boxes import as_dense
from dask_nmf.divergences import Beta
from dask_nmf.geometry import SPARSE_SLAB
from dask_nmf.newton import Newton, descend, diagonal, own_pairs, pair_count, pair_products
from dask_nmf.slabs import Slab, slabs
from dask_nmf.solvers import HALS, MU
from dask_nmf.terms import Term, Terms
from dask_nmf.types import Array

Visitor = MU | HALS | Newton

_MOST_STEPS, _SETTLED = 1000, 1e-10  # of a row: its largest move beside its largest entry
_TINY = np.finfo(np.float64).tiny
_ROUNDING = np.finfo(np.float64).eps


@dataclass(frozen=True)
class Problem:
    """What a visit needs to know beside V, W and H.

    mean : of V's entries.
    """

    loss: Beta
    solver: Visitor
    terms: Terms
    mean: float

    @property
    def floor(self) -> float:
        """Entries of W @ H are at least this large: as far below V's own scale as rounding."""
        return max(_ROUNDING * self.mean, _TINY)

    @property
    def blank(self) -> float:
        """What stands in for entries without weight: any number that the loss is finite for."""
        return 0.0 if self.loss.beta > 0 else self.mean

    def on_share(self, share: float) -> "Problem":
        """The same on a share of V's rows: the penalty on H is for all of them."""
        return replace(self, terms=replace(self.terms, H=self.terms.H.share(share)))

    @property
    def second(self) -> bool:
        """Whether second derivatives are used."""
        return not isinstance(self.solver, MU)


@dataclass(frozen=True)
class Derivatives:
    """Of the loss in one factor F (r, k), the other fixed.

    pull, push : (r, k); the gradient is push - pull. bend : (k (k + 1) / 2, r) or None.
    """

    pull: Array
    push: Array
    bend: Array | None = None


@dataclass(frozen=True)
class Fixed:
    """The factor that stays, H.T (n, k): the sums of its columns, and products of its pairs."""

    Ht: Array
    sums: Array
    pairs: Array | None


def fixed(H: Array, second: bool) -> Fixed:
    Ht = np.ascontiguousarray(H.T, dtype=np.float64)
    return Fixed(Ht, Ht.sum(axis=0), pair_products(Ht) if second else None)


# ---------------------------------------------------------------------------------- half-steps
def derivatives(slab: Slab, other: Fixed, x: Array, problem: Problem) -> Derivatives:
    """In the rows of W."""
    loss, bend = problem.loss, None
    pull = slab.times(loss.pull(slab.v, x), other.Ht)
    if loss.linear and slab.weight is None:
        push = np.broadcast_to(other.sums, pull.shape)
    else:
        push = slab.times(loss.push(x), other.Ht)
    if other.pairs is not None:
        bend = np.ascontiguousarray(slab.times(loss.curvature(slab.v, x), other.pairs).T)
    return Derivatives(pull, push, bend)


def step(F: Array, at: Derivatives, problem: Problem, term: Term) -> Array:
    """F after one step from its derivatives."""
    if at.bend is None:
        return multiplied(F, at, problem, term)
    solver, exact = problem.solver, problem.loss.beta == 2
    bend = at.bend
    if term.l2:
        bend = bend.copy()
        bend[own_pairs(F.shape[1])] += term.l2
    slope = at.push - at.pull + term.slope(F)
    if isinstance(solver, HALS):
        return descend(F, slope, bend, 0.0, solver.inner, term.fixed)
    assert isinstance(solver, Newton)
    least = 0.0 if exact else solver.least * F
    return descend(F, slope, bend, least, solver.sweeps, term.fixed)


def multiplied(F: Array, at: Derivatives, problem: Problem, term: Term) -> Array:
    """F * (pull / (push + l1 + l2 F)) ** exponent: never a rise of the loss.

    Source: Févotte and Idier 2011, section 4.1.
    """
    denom = np.maximum(at.push + term.slope(F), _TINY)
    quotient = at.pull / denom
    if problem.loss.exponent != 1:
        quotient **= problem.loss.exponent
    quotient[:, : term.fixed] = 1.0
    return np.asarray(F * quotient)


def improve_rows(V_b: Any, weights: Array | None, W_b: Array, H: Array, problem: Problem) -> Array:
    """W_b after the half-step at H; rows that have no weight at all are 0."""
    other, improved = fixed(H, problem.second), np.empty(W_b.shape)
    for part, slab in slabs(V_b, weights, problem.loss, problem.blank):
        improved[part] = _improved(slab, W_b[part].astype(np.float64), other, problem)
        if slab.weight is not None:
            improved[part][~slab.weight.any(axis=1)] = 0.0
    return improved


def solve_rows(V_b: Any, weights: Array | None, H: Array, problem: Problem) -> Array:
    """The best W_b for H: each row takes steps until none of its entries moves any more.

    A row begins, and ends, by itself: what lies beside it has no influence.
    """
    other, found = fixed(H, problem.second), np.zeros((V_b.shape[0], len(H)))
    one = replace(problem, solver=replace(problem.solver, inner=1))
    for part, slab in slabs(V_b, weights, problem.loss, problem.blank):
        sums = slab.times(slab.v, np.ones((H.shape[1], 1)))
        W = np.repeat(sums / max(float(other.sums.sum()), _TINY), len(H), axis=1)
        floors = slab.per_row(np.where(sums > 0, _ROUNDING * sums / H.shape[1], 1.0))
        moving = sums[:, 0] > 0
        for _ in range(_MOST_STEPS):
            if not moving.any():
                break
            W_next = np.where(moving[:, None], _improved(slab, W, other, one, floors), W)
            far = np.abs(W_next - W).max(axis=1) > _SETTLED * W_next.max(axis=1)
            W, moving = W_next, moving & far
        found[part] = W
    return found


def _improved(
    slab: Slab, W: Array, other: Fixed, problem: Problem, floor: Array | float | None = None
) -> Array:
    floor = problem.floor if floor is None else floor
    solver, term = problem.solver, problem.terms.W
    exact = problem.second and problem.loss.beta == 2
    guarded, x, value = problem.second and not exact, None, None
    for _ in range(1 if exact else solver.inner):
        x = _product(slab, W, other, floor) if x is None else x
        at = derivatives(slab, other, x, problem)
        W_next = step(W, at, problem, term)
        if not guarded:
            W, x = W_next, None
            continue
        if value is None:
            value = _row_values(slab, x, W, other, problem)
        x = _product(slab, W_next, other, floor)
        value_next = _row_values(slab, x, W_next, other, problem)
        rose = ~(value_next <= value)
        if rose.any():
            W_next = np.where(rose[:, None], multiplied(W, at, problem, term), W_next)
            x = _product(slab, W_next, other, floor)
            value_next = _row_values(slab, x, W_next, other, problem)
        W, value = W_next, value_next
    return W


def _product(slab: Slab, W: Array, other: Fixed, floor: Array | float) -> Array:
    x = slab.product(W, other.Ht)
    return np.maximum(x, floor, out=x)


def _row_values(slab: Slab, x: Array, W: Array, other: Fixed, problem: Problem) -> Array:
    term, found = problem.terms.W, slab.distances(problem.loss, x, W, other.sums)
    if term:
        found = found + term.l1 * W.sum(axis=1) + term.l2 / 2 * (W**2).sum(axis=1)
    return found


# ----------------------------------------------------------------------------- sums over the rows
def sum_rows(k: int, problem: Problem) -> int:
    """Rows of what `column_sums` gives."""
    return 3 + 2 * k + (pair_count(k) if problem.second else 0)


def column_sums(V_b: Any, weights: Array | None, W_b: Array, H: Array, problem: Problem) -> Array:
    """What a block adds to H's half-step: (3 + 2 k (+ k (k + 1) / 2), n).

    Row by row: the loss, the penalty on W, the loss of hidden entries (each anywhere in its row);
    pull, push and bend.
    """
    k, n = H.shape
    loss, term = problem.loss, problem.terms.W
    other, W_all = fixed(H, False), W_b.astype(np.float64)
    out = np.zeros((sum_rows(k, problem), n))
    out[1, 0] = term.value(float(W_all.sum()), float(np.vdot(W_all, W_all)))
    pull, push, bend = out[3 : 3 + k].T, out[3 + k : 3 + 2 * k].T, out[3 + 2 * k :].T
    ones = loss.linear and weights is None
    if ones:
        push += W_all.sum(axis=0)
    rows = 0
    if ones and issparse(V_b):  # their share is dense: of as many rows as have room
        rows = max(1, SPARSE_SLAB * len(W_all) // max(V_b.nnz, 1))
    for part, slab in slabs(V_b, weights, loss, problem.blank, rows):
        W = W_all[part]
        x = _product(slab, W, other, problem.floor)
        out[0, 0] += slab.distances(loss, x, W, other.sums).sum()
        pull += slab.transposed_times(loss.pull(slab.v, x), W)
        if not ones:
            push += slab.transposed_times(loss.push(x), W)
        if problem.second:
            bend += slab.pair_sums(loss.curvature(slab.v, x), W)
        if weights is not None:
            out[2, 0] += _hidden(V_b[part], weights[part], x, loss)
    return out


def _hidden(V_s: Any, M: Array, x: Array, loss: Beta) -> float:
    """The loss of entries that are there and have no weight."""
    v = as_dense(V_s).astype(np.float64)
    held = (M == 0) & hidden_values(v)
    with np.errstate(all="ignore"):  # they may be anything
        return float(loss.distance(v[held], x[held]).sum())


def hidden_values(v: Array) -> Array:
    """Which entries could be entries of V."""
    return np.isfinite(v) & (v >= 0)


@dataclass(frozen=True)
class Visited:
    """What a pass at H found: the loss, its parts, and the derivatives in H.T."""

    loss: float
    penalty: float
    hidden: float
    at: Derivatives


def visited(sums: Array, k: int, problem: Problem) -> Visited:
    """`column_sums`, summed over the blocks, taken apart."""
    bend = sums[3 + 2 * k :] if problem.second else None
    at = Derivatives(sums[3 : 3 + k].T, sums[3 + k : 3 + 2 * k].T, bend)
    loss, penalty, hidden = (float(row.sum()) for row in sums[:3])
    return Visited(loss, penalty, hidden, at)


def kkt(H: Array, found: Visited, problem: Problem) -> float:
    """How much the entries of H, each alone, could still take from the loss, over the loss; a root.

    By the quadratic model of each where there are second derivatives, else by the one whose minimum
    is the multiplicative step; with Frobenius it is what `Frobenius.kkt` is.
    """
    at, term, F = found.at, problem.terms.H, H.T.astype(np.float64)
    slope = at.push - at.pull + term.slope(F)
    slope[:, : term.fixed] = 0.0
    if at.bend is None:
        gain = (slope**2 * F / np.maximum(at.push + term.slope(F), _TINY)).sum() / 2
    else:
        bend = diagonal(at.bend, F.shape[1]) + term.l2
        live = bend > _ROUNDING**2 * bend.max(initial=0.0)
        move = np.maximum(np.where(live, -slope / np.where(live, bend, 1.0), 0.0), -F)
        gain = -(slope * move + bend * move**2 / 2).sum()
    return float(np.sqrt(max(gain, 0.0) / found.loss)) if found.loss > 0 else 0.0
