"""What is asked of the factors beside a small loss: penalties, and constraints."""

from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from dask_nmf.types import Array


@dataclass(frozen=True)
class Term:
    """Of one non-negative factor F (r, k).

    Attributes
    ----------
    l1, l2 : float
        Penalties: l1 * sum(F) + l2 / 2 * sum(F**2).
    fixed : int
        Its first so many columns stay as they are.
    closed : bool
        Each of its rows sums to one.
    """

    l1: float = 0.0
    l2: float = 0.0
    fixed: int = 0
    closed: bool = False

    def __bool__(self) -> bool:
        """Whether it adds to the objective."""
        return bool(self.l1 or self.l2)

    def value(self, total: float, squares: float) -> float:
        """From the sum of F and of its squares."""
        return self.l1 * total + self.l2 / 2 * squares

    def share(self, part: float) -> "Term":
        """That of a part of the rows, beside a loss of all."""
        return replace(self, l1=part * self.l1, l2=part * self.l2)

    def slope(self, F: Array) -> Array | float:
        """Its gradient at F."""
        return self.l1 + self.l2 * F if self.l2 else self.l1

    def quadratic(self, numer: Array, gram: Array) -> tuple[Array, Array]:
        """What min ||F A - B||^2 / 2 has as B A' and A A', with the penalties in them."""
        if not self:
            return numer, gram
        return numer - self.l1, gram + self.l2 * np.eye(len(gram))


NO_TERM = Term()


@dataclass(frozen=True)
class Terms:
    """Of W, and of H."""

    W: Term = NO_TERM
    H: Term = NO_TERM

    def __bool__(self) -> bool:
        return bool(self.W or self.H)

    @property
    def T(self) -> "Terms":
        """Those of V.T = H.T @ W.T."""
        return Terms(self.H, self.W)


NO_TERMS = Terms()


def check_alpha(alpha_W: Any, alpha_H: Any, l1_ratio: Any) -> None:
    """Refuse penalties out of range."""
    for name, alpha in (("alpha_W", alpha_W), ("alpha_H", alpha_H)):
        same = name == "alpha_H" and isinstance(alpha, str) and alpha == "same"
        if not (same or (isinstance(alpha, Real) and 0 <= float(alpha) < float("inf"))):
            allowed = " or 'same' (as alpha_W)" if name == "alpha_H" else ""
            raise ValueError(f"{name} must be a number >= 0{allowed}, got {alpha!r}")
    if not (isinstance(l1_ratio, Real) and 0 <= float(l1_ratio) <= 1):
        raise ValueError(f"l1_ratio must be from 0 (L2 only) to 1 (L1 only), got {l1_ratio!r}")


def scaled(shape: tuple[int, int], alpha_W: float, alpha_H: float | str, l1_ratio: float) -> Terms:
    """scikit-learn's: alpha_W times n on W and alpha_H times m on H, split by l1_ratio.

    So that the penalties keep their weight beside a loss which is a sum over m n entries.
    """
    m, n = shape
    of_W, of_H = n * alpha_W, m * (alpha_W if alpha_H == "same" else float(alpha_H))
    return Terms(
        Term(of_W * l1_ratio, of_W * (1 - l1_ratio)),
        Term(of_H * l1_ratio, of_H * (1 - l1_ratio)),
    )
