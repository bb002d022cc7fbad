"""Steps on a V that is the product of two thin matrices: HALS, and leaps between its steps.

Sources: extrapolation with restart, Ang and Gillis 2019, algorithm 3; the Newton step, Gauss and
Newton's on ||V - W H||^2 with the answer of W to a move of H in it, Golub and Pereyra 1973; by
conjugate gradients with the inverse Gram matrices, Sorber, Van Barel and De Lathauwer 2013,
section 4; on the entries that are not held at zero, Bertsekas 1982.
"""

from dataclasses import dataclass, replace

import numpy as np

from dask_nmf.solvers import HALS, LookAhead, half_step, pseudo_inverse
from dask_nmf.terms import NO_TERMS, Term, Terms
from dask_nmf.types import Array, Products, Trust

_HALF_STEP, _CLOSED_STEP = HALS(inner=5), HALS(inner=1)  # sweeps on the simplex take longer
_NEWTON_STEPS = 10  # of conjugate gradients, at most
_SOLVED = 1e-2  # of the squared gradient is left: they end
_NEWTON_PRICE = 2.0  # how many times as long a step takes that begins with them
_ROUNDING = 1e-12  # squared gradients and curvatures so much smaller are what is left of zero
_OTHER_LEAP = 10  # after so many steps the leap that seems worse is tried again


@dataclass(frozen=True)
class LowRank:
    """left @ right in place of V, or of a share of its rows; what a step needs of V, from it.

    Attributes
    ----------
    left, right : (s, r) and (r, n) arrays
    share : float
        s over V's rows: sums over the rows are brought to those of V.
    squares : float
        ||V||^2, or what makes `squared_error` V's own.
    shift : (k, n) array or 0
        Taken from W.T @ V, so that the gradient in H is V's own.
    """

    left: Array
    right: Array
    share: float = 1.0
    squares: float = 0.0
    shift: Array | float = 0.0
    terms: Terms = NO_TERMS

    def numer(self, H: Array) -> Array:
        VHt: Array = self.left @ (self.right @ H.T)
        return VHt

    def improve_W(self, W: Array, H: Array) -> Array:
        return _improved(W, self.numer(H), H @ H.T, self.terms.W)

    def first_W(self, H: Array) -> Array:
        """Of a start: as far from settled as H is."""
        return self.improve_W(np.zeros((len(self.left), len(H))), H)

    def best_W(self, H: Array) -> Array:
        """Settled: from any other, the first steps would undo a part of what H has gained."""
        nothing = np.zeros((len(self.left), len(H)))
        return half_step(LookAhead(), nothing, self.numer(H), H @ H.T, self.terms.W)

    def products(self, W: Array) -> Products:
        WtV = (W.T @ self.left) @ self.right / self.share - self.shift
        return Products(WtV=WtV, WtW=W.T @ W / self.share)

    def squared_error(self, products: Products, H: Array) -> float:
        return float(self.squares - 2 * np.vdot(products.WtV, H) + np.vdot(products.WtW, H @ H.T))

    def value(self, products: Products, W: Array, H: Array) -> float:
        """The squared error and twice the penalties: what the steps reduce."""
        found = self.squared_error(products, H)
        if not self.terms:
            return found
        of_W = self.terms.W.value(float(W.sum()) / self.share, float(np.trace(products.WtW)))
        return found + 2 * (of_W + self.terms.H.value(float(H.sum()), float(np.vdot(H, H))))

    def descend(
        self, W: Array, H: Array, steps: int, of_error: float, of_gained: float = 0.0
    ) -> tuple[Array, Array]:
        """HALS steps, each from where a leap from the best point leads; none that is no gain.

        A leap is an extrapolation of H or a Newton step: the one that gained more for its price
        when last taken, and now and then the other. The descent ends when both gain less than
        these shares of the squared error and of what has been gained.
        """
        trust, H_before, made = Trust(steps, steps), H, self.products(W)
        error, gained, gains, since = np.inf, 0.0, [np.inf, np.inf], 0
        for _ in range(steps):
            far = gains[1] > _NEWTON_PRICE * gains[0]
            since = (since + 1) % _OTHER_LEAP
            if far is not (since == 0):
                leap = 1
                W_next, H_next = self.newton(W, H, made)
            else:
                leap = 0
                W_next, H_next = W, extrapolate(H, H_before, trust.momentum)
            W_next = self.improve_W(W_next, H_next)
            made_next = self.products(W_next)
            half = made_next.WtV.T, made_next.WtW, self.terms.H
            H_next = _improved(H_next.T, *half).T
            error_next = self.value(made_next, W_next, H_next)
            better = error_next < error
            if leap == 0:
                trust = after(trust, better)
            if better:
                gains[leap] = error - error_next
                gained += gains[leap] if np.isfinite(error) else 0.0
                H_before, W, H, made, error = H, W_next, H_next, made_next, error_next
            elif leap or H_before is H:
                gains[leap] = 0.0
            else:  # too far: again from H itself
                H_before = H
            if max(gains) <= of_error * abs(error) + of_gained * gained:
                break
        return W, H

    def newton(self, W: Array, H: Array, made: Products) -> tuple[Array, Array]:
        """W and H moved together to where ||V - W H||^2 would be least without dW dH.

        Alternating steps are slow where a change of both factors hardly changes their product;
        this step is not. Zeros that want to stay so do. The way there is found in float32, in units
        in which the largest entries are 1; how far it led, the caller measures in float64. 60 s k^2
        flops for ten steps of conjugate gradients.
        """
        WtW, HHt = made.WtW, H @ H.T / self.share
        of_W, of_H = self.terms.W.share(1 / self.share), self.terms.H
        in_W = W @ HHt - self.numer(H) / self.share + of_W.slope(W)  # the gradients
        in_H = WtW @ H - made.WtV + of_H.slope(H)
        _, HHt = of_W.quadratic(W, HHt)
        _, WtW = of_H.quadratic(H, WtW)
        free_W, free_H = (W > 0) | (in_W < 0), (H > 0) | (in_H < 0)
        free_H[: of_H.fixed] = False
        w, h = float(W.max()) or 1.0, float(H.max()) or 1.0
        rest = -in_W / (w * h * h) * free_W, -in_H / (w * w * h) * free_H
        with np.errstate(over="ignore", invalid="ignore"):  # then there is no such way: no move
            dW, dH = _moves(
                W / w, H / h, self.share, WtW / w**2, HHt / h**2, rest, (free_W, free_H)
            )
        return np.maximum(0.0, W + w * dW), np.maximum(0.0, H + h * dH)


def _moves(
    W: Array,
    H: Array,
    share: float,
    WtW: Array,
    HHt: Array,
    rest: tuple[Array, Array],
    free: tuple[Array, Array],
) -> tuple[Array, Array]:
    """dW and dH, where free, that solve the normal equations, nearly:

    dW H H' + W dH H' = rest of W  and  W'W dH + W'dW H = rest of H, W's terms over the share.
    """
    by_W, by_H = (pseudo_inverse(gram).astype(np.float32) for gram in (HHt, WtW))
    W, H, WtW, HHt = (x.astype(np.float32) for x in (W, H, WtW, HHt))
    (free_W, free_H), (rest_W, rest_H) = ([x.astype(np.float32) for x in y] for y in (free, rest))
    H_share = H.T / np.float32(share)
    dW, dH, size, first = np.zeros_like(W), np.zeros_like(H), np.inf, 0.0
    way_W, way_H = np.zeros_like(W), np.zeros_like(H)
    for _ in range(_NEWTON_STEPS):
        next_W, next_H = (rest_W @ by_W) * free_W, (by_H @ rest_H) * free_H
        last, size = size, float(np.vdot(rest_W, next_W) + np.vdot(rest_H, next_H))
        first = first or size
        if not size > _SOLVED * first:
            break
        turned = np.float32(size / last)
        way_W, way_H = next_W + turned * way_W, next_H + turned * way_H
        bent_W = (way_W @ HHt + W @ (way_H @ H_share)) * free_W
        bent_H = (WtW @ way_H + (W.T @ way_W) @ H_share.T) * free_H
        curvature = float(np.vdot(way_W, bent_W) + np.vdot(way_H, bent_H))
        if not curvature > _ROUNDING * size:  # a way along which W H does not change
            break
        length = np.float32(size / curvature)
        dW += length * way_W
        dH += length * way_H
        rest_W -= length * bent_W
        rest_H -= length * bent_H
    return dW, dH


def _improved(F: Array, numer: Array, gram: Array, term: Term) -> Array:
    return half_step(_CLOSED_STEP if term.closed else _HALF_STEP, F, numer, gram, term)


def extrapolate(H: Array, before: Array, momentum: float) -> Array:
    """max(0, H + momentum (H - before))."""
    moved: Array = np.maximum(0.0, H + momentum * (H - before))
    return moved


def after(trust: Trust, better: bool) -> Trust:
    """More trust after a leap that led to a better point, less after a worse one."""
    if better:
        return replace(
            trust,
            steps=min(2 * trust.steps, trust.most_steps),
            momentum=min(1.05 * trust.momentum, trust.most),
            most=min(1.02 * trust.most, 1.0),
        )
    steps, most = max(1, trust.steps // 4), max(trust.momentum, 0.1)
    return replace(trust, steps=steps, momentum=trust.momentum / 1.5, most=most)
