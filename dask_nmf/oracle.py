"""The reference: NMF of a small matrix in plain numpy, as in the textbooks.

It shares no code with the engine, forms W @ H whole, and is meant to be read. The tests take
their truth from it; use it to learn, or on matrices of a few thousand entries.

>>> import numpy as np
>>> V = np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
>>> W, H = nmf(V, rank=1, sweeps=20, seed=0)
>>> bool(error(V, W, H) < 1e-12)
True
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

__all__ = [
    "best_of",
    "divergence",
    "error",
    "hals_H",
    "hals_W",
    "mu_W",
    "newton_W",
    "nmf",
    "update_H",
    "update_W",
]


def _quotient(numer: Array, denom: Array) -> Array:
    """numer / denom, with 0 where denom is 0: there numer is 0 too."""
    return np.divide(numer, denom, out=np.zeros_like(denom), where=denom != 0)


def update_H(V: Array, W: Array, H: Array) -> Array:
    """H * (W.T @ V) / (W.T @ W @ H): the multiplicative half-step for H, (k, n).

    Source: Lee and Seung 2001, equation 4.
    """
    return H * _quotient(W.T @ V, W.T @ W @ H)


def update_W(V: Array, W: Array, H: Array) -> Array:
    """W * (V @ H.T) / (W @ H @ H.T): the multiplicative half-step for W, (m, k).

    Source: Lee and Seung 2001, equation 4.
    """
    return W * _quotient(V @ H.T, W @ H @ H.T)


def hals_W(
    V: Array,
    W: Array,
    H: Array,
    inner: int = 1,
    weights: Array | None = None,
    l1: float = 0.0,
    l2: float = 0.0,
    fixed: int = 0,
) -> Array:
    """`inner` sweeps over the columns of W, each set to its exact non-negative optimum.

    With R = V - sum of all other components, w_j = max(0, R h_j - l1) / (h_j h_j + l2); w_j stays
    as it is where h_j is zero but for rounding. With weights M each row has its own products:
    w_ij = max(0, sum_n M R h_j - l1) / (sum_n M h_j^2 + l2). The first `fixed` columns stay.
    Source: Cichocki, Zdunek and Amari 2007; Gillis and Glineur 2012, equation 4.
    """
    W = W.copy()
    norms = np.linalg.norm(H, axis=1)
    M = np.ones_like(V) if weights is None else weights
    V = np.where(M > 0, V, 0.0)
    for _ in range(inner):
        for j in range(fixed, W.shape[1]):
            if norms[j] > 1e-14 * norms.max():
                R = V - W @ H + np.outer(W[:, j], H[j])
                numer, denom = (M * R) @ H[j] - l1, M @ H[j] ** 2 + l2
                W[:, j] = np.where(denom > 0, np.maximum(0, _quotient(numer, denom)), W[:, j])
    return W


def hals_H(V: Array, W: Array, H: Array, inner: int = 1) -> Array:
    """The same for H: `hals_W` of the transposed problem."""
    return hals_W(V.T, H.T, W.T, inner).T


def error(V: Array, W: Array, H: Array) -> float:
    """The relative Frobenius error ||V - W H|| / ||V||; 0 where both norms are 0."""
    norm = np.linalg.norm(V)
    residual = np.linalg.norm(V - W @ H)
    return float(residual / norm) if norm else float(residual > 0)


# ------------------------------------------------------------------- divergences, entry by entry
def divergence(V: Array, X: Array, beta: float, weights: Array | None = None) -> float:
    """The beta-divergence of V from X: 2 Frobenius (half the square), 1 Kullback-Leibler,
    0 Itakura-Saito. X counts as no smaller than what rounding leaves of V's mean.

    Source: Févotte and Idier 2011, equation 5.
    """
    V, M, floor = _known(V, weights)
    return float(np.sum(M * _distance(V, np.maximum(X, floor), beta)))


def mu_W(
    V: Array,
    W: Array,
    H: Array,
    beta: float,
    weights: Array | None = None,
    l1: float = 0.0,
    l2: float = 0.0,
) -> Array:
    """W * (((WH)^(beta-2) V) H') / ((WH)^(beta-1) H' + l1 + l2 W)), to the power that never rises.

    Source: Févotte and Idier 2011, section 4.1; the penalties as in scikit-learn.
    """
    power = 1 / (2 - beta) if beta < 1 else 1 / (beta - 1) if beta > 2 else 1.0
    V, M, floor = _known(V, weights)
    X = np.maximum(W @ H, floor)
    numer, denom = (M * X ** (beta - 2) * V) @ H.T, (M * X ** (beta - 1)) @ H.T + l1 + l2 * W
    return W * _quotient(numer, denom) ** power


def newton_W(
    V: Array,
    W: Array,
    H: Array,
    beta: float,
    sweeps: int,
    least: float,
    weights: Array | None = None,
    l1: float = 0.0,
    l2: float = 0.0,
    safe: bool = True,
    fixed: int = 0,
) -> Array:
    """Each row of W at the minimum of its quadratic model, by coordinate descent from W.

    No entry falls below `least` times what it was; if `safe`, a row whose loss rose takes `mu_W`
    instead. The first `fixed` columns stay.
    Source: the derivatives of `divergence`, for 1 <= beta <= 2.
    """
    fallback = mu_W(V, W, H, beta, weights, l1, l2)
    fallback[:, :fixed] = W[:, :fixed]
    V, M, floor = _known(V, weights)
    new = W.copy()
    for i, (v, m, w) in enumerate(zip(V, M, W, strict=True)):
        x = np.maximum(w @ H, floor)
        gradient = H @ (m * (x ** (beta - 1) - v * x ** (beta - 2))) + l1 + l2 * w
        bend = m * ((beta - 1) * x ** (beta - 2) + (2 - beta) * v * x ** (beta - 3))
        hessian = (H * bend) @ H.T + l2 * np.eye(len(H))
        d = np.zeros_like(w)
        for _ in range(sweeps):
            for j in range(fixed, len(w)):
                slope = gradient[j] + hessian[j] @ d
                if hessian[j, j] > 0:
                    d[j] = max(least * w[j] - w[j], d[j] - slope / hessian[j, j])
                elif slope > 0:
                    d[j] = least * w[j] - w[j]
        before, after = (
            np.sum(m * _distance(v, np.maximum(f @ H, floor), beta)) + l1 * f.sum() + l2 / 2 * f @ f
            for f in (w, w + d)
        )
        falls = not safe or least == 0 or after <= before
        new[i] = w + d if falls else fallback[i]
    return new


def _known(V: Array, weights: Array | None) -> tuple[Array, Array, float]:
    """V with its mean for what has no weight, the weights, and the least that X may be."""
    M = np.ones_like(V) if weights is None else weights
    mean = np.sum(M[M > 0] * V[M > 0]) / np.sum(M)
    return np.where(M > 0, V, mean), M, float(np.finfo(np.float64).eps * mean)


def _distance(v: Array, x: Array, beta: float) -> Array:
    if beta == 0:
        return v / x - np.log(v / x) - 1
    if beta == 1:
        return v * np.log(np.where(v > 0, v, x) / x) - v + x
    return (v**beta + (beta - 1) * x**beta - beta * v * x ** (beta - 1)) / (beta * (beta - 1))


def nmf(
    V: Array, rank: int, sweeps: int, seed: int | np.random.RandomState = 0, order: str = "WH"
) -> tuple[Array, Array]:
    """W (m, k) and H (k, n) after `sweeps` multiplicative sweeps from a uniform random start.

    W is drawn first, then H, both by ``RandomState(seed).random``. `order` says which factor each
    sweep updates first: "WH" or "HW".
    """
    if order not in ("WH", "HW"):
        raise ValueError(f"order must be 'WH' or 'HW', got {order!r}")
    random = seed if isinstance(seed, np.random.RandomState) else np.random.RandomState(seed)
    m, n = V.shape
    W, H = random.random((m, rank)), random.random((rank, n))
    for _ in range(sweeps):
        for factor in order:
            if factor == "W":
                W = update_W(V, W, H)
            else:
                H = update_H(V, W, H)
    return W, H


def best_of(
    V: Array, rank: int, sweeps: int, seeds: Iterable[int], order: str = "WH"
) -> tuple[Array, Array]:
    """The W, H of the seed that ends with the smallest error (the first one on a tie)."""
    runs = [nmf(V, rank, sweeps, seed, order) for seed in seeds]
    if not runs:
        raise ValueError("seeds must hold at least one seed")
    return min(runs, key=lambda run: error(V, *run))
