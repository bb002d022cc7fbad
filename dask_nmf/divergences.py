"""Beta-divergences: what is minimized where there is no Gram matrix to shorten it.

With X = W @ H, entry by entry (Févotte and Idier 2011, equations 3 to 5):

    beta = 2   (v - x)^2 / 2                      Frobenius, of weighted or missing entries
    beta = 1   v log(v / x) - v + x               Kullback-Leibler, Poisson noise
    beta = 0   v / x - log(v / x) - 1             Itakura-Saito, multiplicative noise
    else       (v^beta + (beta - 1) x^beta - beta v x^(beta - 1)) / (beta (beta - 1))

Its derivative in x is x^(beta - 1) - v x^(beta - 2): the two terms are what the multiplicative
update is a quotient of.
"""

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from scipy.special import xlogy

from dask_nmf.types import Array


@dataclass(frozen=True)
class Beta:
    """The sum over all entries of d(v, x), x of W @ H, each times its weight.

    Parameters
    ----------
    beta : float
        2 is Frobenius, 1 Kullback-Leibler, 0 Itakura-Saito. Below 0, as at 0, zeros of V are
        infinitely far from any x and refused.

    Notes
    -----
    Cost: as W H is formed entry by entry, 2 m n k flops a pass beside those of the solver (of a
    sparse V with beta = 1 at the non-zeros only), in float64, in slabs of 1 MiB.
    Source: Févotte and Idier 2011.

    Examples
    --------
    >>> Beta(1.0).distance(np.array([0.0, 2.0]), np.array([1.0, 2.0]))
    array([1., 0.])
    """

    beta: float

    def __post_init__(self) -> None:
        beta: Any = self.beta
        if isinstance(beta, bool) or not isinstance(beta, Real) or not np.isfinite(float(beta)):
            raise ValueError(f"beta must be a finite number, got {self.beta!r}")

    @property
    def name(self) -> str | float:
        """What a result's parameters call it: `losses.make_loss` makes the same loss of it."""
        return self.beta

    @property
    def exponent(self) -> float:
        """Of the quotient, so that the multiplicative update never lets the divergence rise.

        Source: Févotte and Idier 2011, section 4.1 (for 0 < beta < 1 the proven one is this, too).
        """
        if self.beta < 1:
            return 1 / (2 - self.beta)
        return 1 / (self.beta - 1) if self.beta > 2 else 1.0

    @property
    def convex(self) -> bool:
        """Whether d(v, x) is convex in x: each half-step then has one minimum."""
        return 1 <= self.beta <= 2

    @property
    def linear(self) -> bool:
        """Whether x itself is what an entry v = 0 costs: zeros need not be visited then."""
        return self.beta == 1

    def check_least(self, least: float | None) -> None:
        """Refuse V by its least entry: with beta <= 0 a zero is infinitely far from any x."""
        if self.beta <= 0 and least == 0:
            raise ValueError(
                f"V contains zeros, of which loss={self.beta:g} makes infinitely much (beta <= 0): "
                "add a small value to V, or take a positive beta such as 'kullback-leibler'"
            )

    def distance(self, v: Array, x: Array) -> Array:
        """d(v, x), entry by entry."""
        beta = self.beta
        if beta == 2:
            found = (v - x) ** 2 / 2
        elif beta == 1:
            found = xlogy(v, v / x) - v + x
        elif beta == 0:
            found = v / x - np.log(v / x) - 1
        else:
            found = v**beta + (beta - 1) * x**beta - beta * v * x ** (beta - 1)
            found /= beta * (beta - 1)
        return np.asarray(found)

    def pull(self, v: Array, x: Array) -> Array:
        """v x^(beta - 2): what draws x upwards."""
        if self.beta == 2:
            return v
        return v / x if self.beta == 1 else v * x ** (self.beta - 2)

    def push(self, x: Array) -> Array:
        """x^(beta - 1): what draws it down."""
        if self.beta == 2:
            return x
        return np.ones_like(x) if self.beta == 1 else np.asarray(x ** (self.beta - 1))

    def curvature(self, v: Array, x: Array) -> Array:
        """The second derivative in x, for a convex one."""
        beta = self.beta
        if beta == 2:
            return np.ones_like(x)
        if beta == 1:
            return np.asarray(v / (x * x))
        return np.asarray((beta - 1) * x ** (beta - 2) + (2 - beta) * v * x ** (beta - 3))

    def from_sums(self, total: float, own: float, weight: float) -> float:
        """The divergence of V from its own mean, as one constant, from sums over the entries.

        total : of v. own : of v^beta (beta 1: of v log v; beta 0: of log v). weight : of 1.
        """
        if not total > 0:
            return 0.0
        mean, beta = total / weight, self.beta
        if beta == 1:
            return float(own - total * np.log(mean))
        if beta == 0:
            return float(weight * np.log(mean) - own)
        return float((own - weight * mean**beta) / (beta * (beta - 1)))

    def own(self, v: Array) -> Array:
        """Of an entry, what `from_sums` wants the sum of."""
        if self.beta == 1:
            return np.asarray(xlogy(v, v))
        return np.asarray(np.log(v) if self.beta == 0 else v**self.beta)
