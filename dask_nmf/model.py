"""A low-rank model of V, which the factors are improved on between two passes: no reads.

The first pass keeps a sketch, Y = V G with random G, and Y'V. A pass at H adds C = V H', the new W
and W'V; all but the last two products only in the sketch's rows. With Q an orthonormal basis of H's
rows and L = [Y, W],

    M = V Q Q' + P_L V (I - Q Q'),     P_L = L (L'L)^-1 L',     V Q from C,  L'V = [Y'V, W'V]

has rank 5k at most, and M H' = V H', W'M = W'V: at (W, H) its gradients are those of V. Further
away ||V - W H||^2 and ||M - W H||^2 differ by a constant and 2 <(I - P_L) V (I - Q Q'), W H>, which
is of second order in the move, and zero as long as W stays in L or H in Q.

Of a long V the sketch and the model hold a sample of rows (`blocks.sample_size`), with the sums of
all rows where a pass has them; a constant added to H's gradient then makes it V's at (W, H) again.

Sources: the sketch, Halko, Martinsson and Tropp 2011, section 5.5 (one pass); NMF on a compressed
V, Tepper and Sapiro 2016; the gradient's constant, Shamir, Srebro and Zhang 2014, equation 7
(DANE); extrapolation, Ang and Gillis 2019, algorithm 3.
"""

from dataclasses import dataclass, replace

import numpy as np

from dask_nmf.blocks import sample_size, sketch_width
from dask_nmf.solvers import HALS, pseudo_inverse
from dask_nmf.types import Array, Products, Seen, Sketch, Sums, Trust

_HALF_STEP = HALS(inner=5)
_STARTS, _TRY_STEPS, _START_ROWS = 4, 100, 1024  # of which the best goes on for
_START_STEPS = 200
_SAME = 1e-5
_TRY_GAIN = 0.0
_START_GAIN = 0.0
_LEAST_GAIN = 1e-6  # of the squared error: steps that gain less are not worth their time;
_LEAST_GAIN_OF_SAMPLE = 2e-5  # nor these, where the model itself is less sure
_GAIN = 5e-3  # of what the steps since the last pass have gained
_SAMPLE_STEPS = 20  # trusted at first of a model that is a sample
_LEAST_STEPS = 3
_NEWTON_STEPS, _PRICE, _OTHER = 10, 2.0, 10


# --------------------------------------------------------------------------- what is collected
def sample_rows(m: int, rank: int, seed: int) -> Array | None:
    """Which rows, ascending; None for all. They depend on (seed, m, rank) only."""
    size = sample_size(m, rank)
    if size == m:
        return None
    return np.sort(_random(seed, 1).choice(m, size, replace=False))


def directions(n: int, rank: int, seed: int, dtype: np.dtype[np.floating]) -> Array:
    """G (n, l): what V is multiplied with in the first pass."""
    return _random(seed, 2).standard_normal((n, sketch_width(n, rank))).astype(dtype)


def _random(seed: int, purpose: int) -> np.random.Generator:
    key = np.array([seed, 2**60 + purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


# --------------------------------------------------------------------------------- looking ahead
def look_from_start(sketch: Sketch, H: Array, sums: Sums, seed: int) -> tuple[Array, Array]:
    """W of the sketch's rows and H, from the sketch alone: P_Y V in place of V.

    Where the steps end depends on where they begin. So H and some other random starts go some way
    on a few of the rows, and the one with the smallest error goes all of it.
    """
    right = pseudo_inverse(sketch.Y.T @ sketch.Y) @ sketch.YtV
    model, H = Model(sketch.Y, right, sketch.share, sums.squares), H.astype(np.float64)
    random, least = _random(seed, 3), _least_gain(sketch)
    size = np.sqrt(np.mean(H**2))
    starts = [H, *(size * np.abs(random.standard_normal((_STARTS - 1, *H.shape))))]
    fewer = model
    if len(sketch.Y) > _START_ROWS:
        rows = np.sort(random.choice(len(sketch.Y), _START_ROWS, replace=False))
        part = sketch.share * _START_ROWS / len(sketch.Y)
        fewer = replace(model, left=sketch.Y[rows], share=part)

    ends: list[tuple[float, Array, Array]] = []
    for start in starts:
        W, H = fewer.descend(fewer.improve_W(_no_W(fewer, start), start), start, _TRY_STEPS, least, _TRY_GAIN)
        ends.append((fewer.squared_error(fewer.products(W), H), H, W))
        ends.sort(key=lambda end: end[0])
        if len(ends) > 1 and ends[1][0] <= (1 + _SAME) * ends[0][0]:
            break
    _, H, W = ends[0]
    if fewer is not model:
        W = model.improve_W(_no_W(model, H), H)
    return model.descend(W, H, _START_STEPS, least, _START_GAIN)


def _no_W(model: "Model", H: Array) -> Array:
    return np.zeros((len(model.left), len(H)))


def look_ahead(sketch: Sketch, seen: Seen, H: Array, sums: Sums, steps: int) -> tuple[Array, Array]:
    """W of the sketch's rows and H for the next pass, from the model at (seen.W, seen.H).

    H is the verified one, the half-step after seen.H. Cost per step: 40 s k^2 + 16 n k^2 flops.
    """
    model = at(sketch, seen, sums)
    return model.descend(
        seen.W.astype(np.float64), H.astype(np.float64), steps, _least_gain(sketch), _GAIN
    )


def _least_gain(sketch: Sketch) -> float:
    return _LEAST_GAIN if sketch.rows is None else _LEAST_GAIN_OF_SAMPLE


def first_trust(sketch: Sketch | None, steps: int) -> Trust:
    return Trust(steps if sketch is None or sketch.rows is None else min(steps, _SAMPLE_STEPS))


def after(trust: Trust, better: bool, steps: int) -> Trust:
    """More trust after a look ahead that led to a better point, less after a worse one."""
    if better:
        return Trust(
            min(2 * trust.steps, steps),
            min(1.05 * trust.momentum, trust.most),
            min(1.02 * trust.most, 1.0),
        )
    return Trust(trust.steps // 4, trust.momentum / 1.5, max(trust.momentum, 0.1))


def trusted(trust: Trust) -> bool:
    """Whether the model is worth its steps; after too many worse passes H is extrapolated."""
    return trust.steps >= _LEAST_STEPS


def extrapolate(H: Array, before: Array, momentum: float) -> Array:
    """max(0, H + momentum (H - before))."""
    moved: Array = np.maximum(0.0, H + momentum * (H - before))
    return moved


# ------------------------------------------------------------------------------------- the model
@dataclass(frozen=True)
class Model:
    """left @ right in place of the share s / m of V's rows; what a step needs of V, from it."""

    left: Array
    right: Array
    share: float
    squares: float = 0.0
    correction: Array | float = 0.0

    def numer(self, H: Array) -> Array:
        return self.left @ (self.right @ H.T)

    def improve_W(self, W: Array, H: Array) -> Array:
        return _HALF_STEP.improve(W, self.numer(H), H @ H.T)

    def products(self, W: Array) -> Products:
        WtV = (W.T @ self.left) @ self.right / self.share - self.correction
        return Products(WtV=WtV, WtW=W.T @ W / self.share)

    def squared_error(self, products: Products, H: Array) -> float:
        return float(self.squares - 2 * np.vdot(products.WtV, H) + np.vdot(products.WtW, H @ H.T))

    def descend(
        self, W: Array, H: Array, steps: int, of_error: float, of_gained: float
    ) -> tuple[Array, Array]:
        """HALS steps, each from where a leap from the best point leads; none that is no gain.

        A leap is an extrapolation of H or a Newton step: the one that gained more for its price
        when last taken, and now and then the other. The descent ends when both gain less than
        these shares of the squared error and of what has been gained.
        """
        before, trust, error, gained = H, Trust(steps), np.inf, 0.0
        gains, made, since = [np.inf, np.inf], self.products(W), 0
        for _ in range(steps):
            leap = int(gains[1] > _PRICE * gains[0]) ^ int(since >= _OTHER)
            since = 0 if since >= _OTHER else since + 1
            if leap:
                start = newton(W, H, self.numer(H), made, self.share)
            else:
                start = W, extrapolate(H, before, trust.momentum)
            W_next = self.improve_W(*start)
            made_next = self.products(W_next)
            H_next = _HALF_STEP.improve(start[1].T, made_next.WtV.T, made_next.WtW).T
            now = self.squared_error(made_next, H_next)
            better = now < error
            if not leap:
                trust = after(trust, better, steps)
            if better:
                gains[leap] = error - now
                gained += gains[leap] if np.isfinite(error) else 0.0
                before, W, H, made, error = H, W_next, H_next, made_next, now
            else:
                gains[leap] = 0.0 if leap or before is H else gains[leap]
                before = H
            if max(gains) <= of_error * abs(error) + of_gained * gained:
                break
        return W, H


def newton(
    W: Array, H: Array, numer: Array, made: Products, share: float
) -> tuple[Array, Array]:
    """W and H moved together to where ||V - W H||^2 is least if their moves' product is left out.

    Zeros that want to stay so do. Conjugate gradients on the normal equations, preconditioned by
    the inverse Gram matrices: 10 s k^2 flops a step. This is what alternating steps are slow at:
    a change of both factors that hardly changes their product.
    """
    G, B = H @ H.T / share, made.WtW
    W_slope, H_slope = W @ G - numer / share, B @ H - made.WtV
    W_free, H_free = (W > 0) | (W_slope < 0), (H > 0) | (H_slope < 0)
    W_scale, H_scale = pseudo_inverse(G), pseudo_inverse(B)
    W_left, H_left = -W_slope * W_free, -H_slope * H_free
    dW, dH, W_way, H_way, size = np.zeros_like(W), np.zeros_like(H), 0.0, 0.0, np.inf
    for _ in range(_NEWTON_STEPS):
        W_next, H_next = (W_left @ W_scale) * W_free, (H_scale @ H_left) * H_free
        last, size = size, float(np.vdot(W_left, W_next) + np.vdot(H_left, H_next))
        if not size > 0:
            break
        W_way, H_way = W_next + size / last * W_way, H_next + size / last * H_way
        W_bent = (W_way @ G + W @ (H @ H_way.T / share).T) * W_free
        H_bent = (B @ H_way + (W.T @ W_way / share) @ H) * H_free
        length = size / float(np.vdot(W_way, W_bent) + np.vdot(H_way, H_bent))
        dW, dH = dW + length * W_way, dH + length * H_way
        W_left, H_left = W_left - length * W_bent, H_left - length * H_bent
    return np.maximum(0.0, W + dW), np.maximum(0.0, H + dH)


def at(sketch: Sketch, seen: Seen, sums: Sums) -> Model:
    """The model whose gradients at (seen.W, seen.H) are V's."""
    H, W, made = seen.H.astype(np.float64), seen.W.astype(np.float64), seen.products
    Q, sizes, T = np.linalg.svd(H.T, full_matrices=False)  # H' = Q diag(sizes) T
    live = sizes > np.sqrt(np.finfo(seen.H.dtype).eps) * sizes.max(initial=0.0)
    Q = Q[:, live]
    VQ = seen.numer.astype(np.float64) @ (T[live].T / sizes[live])
    L = np.hstack([sketch.Y, W])
    LtV = np.vstack([sketch.YtV, made.WtV * sketch.share])
    rest = LtV - (LtV @ Q) @ Q.T
    model = Model(
        np.hstack([VQ, L]), np.vstack([Q.T, pseudo_inverse(L.T @ L) @ rest]), sketch.share
    )
    if sketch.rows is None:
        return replace(model, squares=sums.squares)
    # A sample: its gradient in H, and its value, are shifted to V's.
    mine = model.products(W)
    correction = (made.WtW @ H - made.WtV) - (mine.WtW @ H - mine.WtV)
    model = replace(model, correction=correction)
    true = replace(model, squares=sums.squares).squared_error(made, H)
    return replace(model, squares=true - model.squared_error(model.products(W), H))
