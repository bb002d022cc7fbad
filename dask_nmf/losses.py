"""What is minimized, and its value from the products of a pass."""

from dataclasses import dataclass

import numpy as np

from dask_nmf.divergences import Beta
from dask_nmf.options import is_number
from dask_nmf.terms import NO_TERM, NO_TERMS, Term, Terms
from dask_nmf.types import Array, Products, Sums

_DIGITS = 2e-5  # of a squared error that rounding may take


@dataclass(frozen=True)
class Frobenius:
    """||V - W @ H||^2, reported as the relative error ||V - W @ H|| / ||V||."""

    def objective(
        self,
        error: float,
        sums: Sums,
        products: Products,
        H: Array,
        terms: Terms = NO_TERMS,
    ) -> float:
        """||V - W H||^2 / 2 of that relative error, and the penalties."""
        found = error**2 * sums.squares / 2 if sums.squares else error / 2
        if not terms:
            return found
        H = _float64(H)
        of_W = terms.W.value(products.W_total, float(np.trace(products.WtW)))
        return found + of_W + terms.H.value(float(H.sum()), float(np.vdot(H, H)))

    def error(self, sums: Sums, products: Products, H_old: Array, H: Array) -> float:
        """The relative error of the new W and H, from the products of the pass made at H_old.

        Without the residual it is the trace form ||V||^2 - 2 <W'V, H> + <W'W, H H'>, whose terms
        cancel in a close fit. With R = V - W H_old taken block by block, and D = H - H_old,
        ||V - W H||^2 = ||R||^2 - 2 <W'R, D> + <W'W, D D'> does not: all its terms are small.
        """
        if products.WtR is not None and products.residual is not None:
            start, cross, D = products.residual, products.WtR, _float64(H) - _float64(H_old)
        else:
            start, cross, D = sums.squares, products.WtV, _float64(H)
        with np.errstate(over="ignore", invalid="ignore"):  # the sweep refuses what is not finite
            squared = start - 2 * np.vdot(cross, D) + np.vdot(products.WtW, D @ D.T)
        return relative(float(squared), sums)

    def known(self, sums: Sums, products: Products, H_old: Array, H: Array) -> bool:
        """Whether rounding leaves four digits of the error that a residual and D give.

        Not where D is large and W D is not: <W'W, D D'> then is a small difference of large terms.
        """
        moved = np.linalg.norm(_float64(H) - _float64(H_old), axis=1)
        terms = float(np.sqrt(np.diag(products.WtW)) @ moved) ** 2
        squared = self.error(sums, products, H_old, H) ** 2 * sums.squares
        return bool(np.finfo(np.float64).eps * terms <= _DIGITS * squared)

    def kkt(self, sums: Sums, products: Products, H: Array, term: Term = NO_TERM) -> float:
        """How much the new W still asks H, at which the pass was made, to move.

        With g = W'W H - W'V and its projection p (of g where H = 0 only what is negative counts),
        the norm of p_k / ||w_k|| over all k, over ||V - W H||. Where W is the best one for H, it is
        0 at a stationary point of the whole problem only, and no component can then move.
        Source: the optimality conditions of Lin 2007, equation 17, made free of scale.
        """
        rounding = float(np.finfo(H.dtype).eps) * np.sqrt(sums.squares)  # no fit can be closer
        H = _float64(H)
        gradient = products.WtW @ H - products.WtV if products.WtR is None else -products.WtR
        gradient = gradient + term.slope(H)
        if term.closed:  # less the multiplier of each column's sum
            gradient = gradient - np.sum(H * gradient, axis=0)
        projected = np.where(H > 0, gradient, np.minimum(gradient, 0.0))
        projected[: term.fixed] = 0.0
        norms = np.sqrt(np.diag(products.WtW) + term.l2)[:, None]
        per_unit = np.divide(projected, norms, out=np.zeros_like(projected), where=norms > 0)
        rest = self.error(sums, products, H, H) * np.sqrt(sums.squares)
        return float(np.linalg.norm(per_unit) / max(rest, rounding)) if rounding else 0.0


def relative(squared_residual: float, sums: Sums) -> float:
    """sqrt(squared_residual) / ||V||; for V = 0 it is 0 or 1."""
    if sums.squares == 0:
        return float(squared_residual > 0)
    return float(np.sqrt(max(squared_residual, 0.0) / sums.squares))


def cancellation(dtype: np.dtype[np.floating]) -> float:
    """The relative error below which the trace form may not be right to four digits.

    Measured with float32 products, float64 sums and Gram matrices, blocks of 20,000 rows: the
    squared relative error is off by up to 7e-9, so four digits end at an error of 8e-3.
    """
    return 0.02 if dtype == np.float32 else 2e-6


def _float64(x: Array) -> Array:
    return x.astype(np.float64, copy=False)


Loss = Frobenius | Beta

_BY_NAME: dict[str, Loss] = {
    "frobenius": Frobenius(),
    "kullback-leibler": Beta(1.0),
    "itakura-saito": Beta(0.0),
}


def make_loss(loss: str | float | Loss) -> Loss:
    """The loss of that name, that beta, or the one given."""
    if isinstance(loss, (Frobenius, Beta)):
        return loss
    if is_number(loss) and not isinstance(loss, bool) and np.isfinite(beta := float(loss)):
        return Frobenius() if beta == 2 else Beta(beta)
    if not isinstance(loss, str) or loss not in _BY_NAME:
        raise ValueError(
            f"loss must be one of {sorted(_BY_NAME)} or a number, the beta of a beta-divergence "
            f"(2, 1 and 0 are those three), got {loss!r}"
        )
    return _BY_NAME[loss]
