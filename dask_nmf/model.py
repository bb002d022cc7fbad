"""A low-rank model of V, which the factors are improved on between two passes: no reads.

The first pass keeps a sketch, Y = V G with random G, and Y'V. A pass at H adds C = V H', the new W
and W'V. With Q an orthonormal basis of H's rows and L = [Y, W],

    M = V Q Q' + P_L V (I - Q Q'),     P_L = L (L'L)^-1 L',     V Q from C,  L'V = [Y'V, W'V]

has rank 5k at most, and M H' = V H', W'M = W'V: at (W, H) its gradients are those of V. Further
away ||V - W H||^2 and ||M - W H||^2 differ by a constant and 2 <(I - P_L) V (I - Q Q'), W H>, which
is of second order in the move, and zero as long as W stays in L or H in Q.

Of a long V the sketch has a sample of rows only (`blocks.sample_size`), and passes add nothing to
it: M = P_Y V of the sample, and a constant in H's gradient makes that V's own at (W, H).

Sources: the sketch, Halko, Martinsson and Tropp 2011, section 5.5 (one pass); NMF on a compressed
V, Tepper and Sapiro 2016; the gradient's constant, Shamir, Srebro and Zhang 2014, equation 7
(DANE).
"""

from dataclasses import replace

import numpy as np

from dask_nmf.descent import LowRank
from dask_nmf.geometry import START_ROWS, START_ROWS_PER_COMPONENT, sample_size, sketch_width
from dask_nmf.solvers import pseudo_inverse
from dask_nmf.terms import NO_TERMS, Terms
from dask_nmf.types import Array, Seen, Sketch, Sums, Trust

_STARTS, _START_STEPS = 4, 50  # before the worse half is dropped; the last one goes on for
_MORE_STEPS = 75  # on all rows
_SAME = 1e-5  # two tries that end with squared errors so close have found what there is
_LEAST_GAIN = 4e-7  # of the squared error: a step that gains less is not worth its time;
_LEAST_GAIN_OF_SAMPLE = 2e-5  # nor this one, where the model itself is less sure
_GAIN = 5e-3  # nor this share of what the steps since the last pass have gained,
_START_GAIN = 1e-3  # or since the start
_SAMPLE_STEPS = 2  # trusted at first of a model that is a sample


# --------------------------------------------------------------------------- what is collected
def sample_rows(m: int, rank: int) -> Array | None:
    """Which rows, ascending; None for all. They depend on (m, rank) only: restarts share them."""
    size = sample_size(m, rank)
    if size == m:
        return None
    return some_rows(m, size, seed=0)


def some_rows(m: int, size: int, seed: int) -> Array:
    """So many of m rows, ascending, drawn from the seed."""
    return _some(_random(seed, 1), m, size)


def directions(n: int, rank: int, dtype: np.dtype[np.floating]) -> Array:
    """G (n, l): what V is multiplied with in the first pass; the same for all restarts."""
    return _random(0, 2).standard_normal((n, sketch_width(n, rank))).astype(dtype)


def _random(seed: int, purpose: int) -> np.random.Generator:
    key = np.array([seed, 2**60 + purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _some(random: np.random.Generator, m: int, size: int) -> Array:
    return np.sort(random.choice(m, size, replace=False))


# --------------------------------------------------------------------------------- looking ahead
def look_from_start(
    sketch: Sketch, H: Array, sums: Sums, seed: int, terms: Terms = NO_TERMS
) -> tuple[Array, Array]:
    """W of the sketch's rows and H, from the sketch alone: P_Y V in place of V.

    Where the steps end depends on where they begin. So H and some other random starts go their way
    on a few of the rows; the better half goes on, until one is left or two end alike.
    """
    model, H = _sketched(sketch, sums, terms), H.astype(np.float64)
    random, rows = _random(seed, 3), len(sketch.Y)
    size = np.sqrt(np.mean(H**2))
    starts = [H, *(size * np.abs(random.standard_normal((_STARTS - 1, *H.shape))))]
    for start in starts:
        start[: terms.H.fixed] = H[: terms.H.fixed]
    some = min(rows, max(START_ROWS, START_ROWS_PER_COMPONENT * len(H)))
    few = replace(
        model, left=model.left[_some(random, rows, some)], share=model.share * some / rows
    )
    least = _least_gain(sketch)
    tried = [(np.inf, few.first_W(start), start) for start in starts]
    while len(tried) > 1:
        ended: list[tuple[float, Array, Array]] = []
        for _, W, H in tried:
            W, H = few.descend(W, H, _START_STEPS, least, _START_GAIN)
            ended.append((few.value(few.products(W), W, H), W, H))
            ended.sort(key=lambda end: end[0])
            if len(ended) > 1 and ended[1][0] <= (1 + _SAME) * ended[0][0]:
                ended = ended[:1]
                break
        tried = ended[: max(1, len(tried) // 2)]
    H = tried[0][2]
    return model.descend(model.best_W(H), H, _MORE_STEPS, least, _START_GAIN)


def look_ahead(
    sketch: Sketch,
    seen: Seen,
    H: Array,
    sums: Sums,
    steps: int,
    terms: Terms = NO_TERMS,
) -> tuple[Array, Array]:
    """W of the sketch's rows and H for the next pass, from the model at seen.H.

    H is the verified one, the half-step after seen.H. Cost per step: about 50 s k^2 + 20 n k^2
    flops.
    """
    model, W = model_at(sketch, seen, sums, terms)
    return model.descend(W, H.astype(np.float64), steps, _least_gain(sketch), _GAIN)


def first_trust(sketch: Sketch | None, steps: int) -> Trust:
    """In how many steps on the model, at most `steps`."""
    sample = sketch is not None and sketch.rows is not None
    return Trust(_SAMPLE_STEPS if sample else steps, most_steps=steps)


def _least_gain(sketch: Sketch) -> float:
    return _LEAST_GAIN if sketch.rows is None else _LEAST_GAIN_OF_SAMPLE


# ------------------------------------------------------------------------------------- the model
def model_at(
    sketch: Sketch, seen: Seen, sums: Sums, terms: Terms = NO_TERMS
) -> tuple[LowRank, Array]:
    """The model whose gradients at seen.H are V's, and its W there."""
    H, made = seen.H.astype(np.float64), seen.products
    if seen.numer is None or seen.W is None:
        return _shifted(_sketched(sketch, sums, terms), H, seen, sums)
    W = seen.W.astype(np.float64)
    Q, sizes, T = np.linalg.svd(H.T, full_matrices=False)  # H' = Q diag(sizes) T
    live = sizes > np.sqrt(np.finfo(seen.H.dtype).eps) * sizes.max(initial=0.0)
    Q = Q[:, live]
    VQ = seen.numer.astype(np.float64) @ (T[live].T / sizes[live])
    L, LtV = np.hstack([sketch.Y, W]), np.vstack([sketch.YtV, made.WtV])
    rest = pseudo_inverse(L.T @ L) @ (LtV - (LtV @ Q) @ Q.T)
    left, right = np.hstack([VQ, L]), np.vstack([Q.T, rest])
    return LowRank(left, right, squares=sums.squares, terms=terms), W


def _sketched(sketch: Sketch, sums: Sums, terms: Terms) -> LowRank:
    right = pseudo_inverse(sketch.Y.T @ sketch.Y) @ sketch.YtV
    return LowRank(sketch.Y, right, sketch.share, sums.squares, terms=terms)


def _shifted(model: LowRank, H: Array, seen: Seen, sums: Sums) -> tuple[LowRank, Array]:
    """A sample's model; its gradient in H, and its value, are shifted to V's at seen.H."""
    W = model.best_W(H)
    true = seen.products
    mine = model.products(W)
    shift = (true.WtW @ H - true.WtV) - (mine.WtW @ H - mine.WtV)
    model = replace(model, shift=shift)
    off = model.squared_error(true, H) - model.squared_error(model.products(W), H)
    return replace(model, squares=sums.squares + off), W
