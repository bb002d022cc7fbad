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

__all__ = ["best_of", "error", "hals_H", "hals_W", "nmf", "update_H", "update_W"]


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


def hals_W(V: Array, W: Array, H: Array, inner: int = 1) -> Array:
    """`inner` sweeps over the columns of W, each set to its exact non-negative optimum.

    With R = V - sum of all other components, w_j = max(0, R h_j) / (h_j h_j); w_j stays as it is
    where h_j is zero but for rounding.
    Source: Cichocki, Zdunek and Amari 2007; Gillis and Glineur 2012, equation 4.
    """
    W = W.copy()
    norms = np.linalg.norm(H, axis=1)
    for _ in range(inner):
        for j in range(W.shape[1]):
            if norms[j] > 1e-14 * norms.max():
                R = V - W @ H + np.outer(W[:, j], H[j])
                W[:, j] = np.maximum(0, R @ H[j]) / (H[j] @ H[j])
    return W


def hals_H(V: Array, W: Array, H: Array, inner: int = 1) -> Array:
    """The same for H: `hals_W` of the transposed problem."""
    return hals_W(V.T, H.T, W.T, inner).T


def error(V: Array, W: Array, H: Array) -> float:
    """The relative Frobenius error ||V - W H|| / ||V||; 0 where both norms are 0."""
    norm = np.linalg.norm(V)
    residual = np.linalg.norm(V - W @ H)
    return float(residual / norm) if norm else float(residual > 0)


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
