"""Rows of H that are known, and rows of W that sum to one: how a start comes to obey them."""

from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np

from dask_nmf.blocks import Grid
from dask_nmf.io import open_matrix
from dask_nmf.losses import Frobenius, Loss
from dask_nmf.matrix import Matrix
from dask_nmf.simplex import closed
from dask_nmf.terms import Terms
from dask_nmf.types import Array, DaskArray, working_dtype
from dask_nmf.watch import compute


@dataclass(frozen=True)
class Constraints:
    """What the factors must be.

    rank : of the factors.
    rows : the first rows of H, (r, n) in float64; None if none is known.
    sum_to_one : whether each row of W does.
    """

    rank: int
    rows: Array | None = None
    sum_to_one: bool = False

    @property
    def fixed(self) -> int:
        """How many rows of H are known."""
        return 0 if self.rows is None else len(self.rows)

    @property
    def complete(self) -> bool:
        """Whether all of H is known."""
        return self.fixed == self.rank

    def within(self, terms: Terms) -> Terms:
        """The terms of both factors with these among them."""
        of_W = replace(terms.W, closed=self.sum_to_one)
        return Terms(of_W, replace(terms.H, fixed=self.fixed))

    def obeyed(
        self, W: DaskArray, H: Array, mean: float | None, transposed: bool
    ) -> tuple[DaskArray, Array]:
        """The start of V, or of V.T; W lazy as it was.

        mean : of V. Where W has rows that sum to one H must have V's size; None leaves it as it is.
        """
        r, dtype = self.fixed, H.dtype
        if self.sum_to_one and transposed:
            H = closed(H.T).T
            if mean is not None:
                W = W * (mean / max(float(compute(W.mean())[0]), np.finfo(dtype).tiny))
        elif self.sum_to_one:
            meta = np.empty((0, 0))
            W = W.map_blocks(closed, dtype=np.float64, meta=meta, token="nmf-closed")
            if mean is not None:
                H = H * (mean / max(float(H.mean()), np.finfo(dtype).tiny))
        if self.rows is not None and transposed:
            columns = da.from_array(self.rows.T, chunks=(W.chunks[0], r), name=False)
            W = da.concatenate([columns, W[:, r:]], axis=1).rechunk({1: -1})
        elif self.rows is not None:
            H = np.vstack([self.rows, H[r:]])
        return W.astype(dtype), np.ascontiguousarray(H, dtype=dtype)


def check_closed(sum_to_one: Any, loss: Loss) -> None:
    """Refuse rows that sum to one where there is no half-step for them."""
    if not isinstance(sum_to_one, (bool, np.bool_)):
        raise TypeError(f"sum_to_one must be True or False, got {sum_to_one!r}")
    if sum_to_one and not isinstance(loss, Frobenius):
        raise ValueError(
            "sum_to_one=True is for loss='frobenius' without weights or missing entries: drop it, "
            "or those"
        )


def make_constraints(
    fixed_H: Any, sum_to_one: Any, V: Matrix, rank: int, loss: Loss
) -> Constraints:
    """The constraints, checked; the rows of H are read.

    Raises
    ------
    TypeError, ValueError
    """
    check_closed(sum_to_one, loss)
    if fixed_H is None:
        return Constraints(rank, None, bool(sum_to_one))
    if isinstance(fixed_H, (list, tuple)):
        fixed_H = np.asarray(fixed_H)
    found = open_matrix(fixed_H, name="fixed_H")
    n = V.shape[1]
    if found.sparse or found.shape[1] != n or not 1 <= found.shape[0] <= rank:
        raise ValueError(
            f"fixed_H must be the first 1 to {rank} rows of H (rank {rank}), dense, with V's {n} "
            f"columns; got {'a sparse one of ' if found.sparse else ''}shape {found.shape}"
        )
    (rows,) = compute(found.blocks(Grid((found.shape[0],), (n,))))
    rows = np.array(rows, dtype=np.float64)
    if not rows.any(axis=1).all():
        row = int(np.flatnonzero(~rows.any(axis=1))[0])
        raise ValueError(
            f"fixed_H: its row {row} is all zeros, which explains nothing: leave it out"
        )
    info = np.finfo(working_dtype(V.dtype))
    low, high = float(info.tiny) ** 0.5, float(info.max) ** 0.5
    largest = rows.max(axis=1)
    if not ((largest > low) & (np.linalg.norm(rows / high, axis=1) < 1)).all():
        raise ValueError(
            f"fixed_H: its rows have largest entries from {largest.min():.3g} to "
            f"{largest.max():.3g}; products in {info.dtype} need them above {low:.1g}, and norms "
            f"below {high:.1g}: multiply V and fixed_H by constants"
        )
    return Constraints(rank, rows, bool(sum_to_one))
