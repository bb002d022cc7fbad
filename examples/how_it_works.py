"""How it works, in numpy: python how_it_works.py

V (m, n) is too large for memory, and reading it is what costs. So the question is: how much can be
done with each read? This page builds the answer in three steps, on a small matrix in four blocks of
rows, and counts the reads. The engine does the same with dask, zarr and float32 in mind; the
formulas with all their ifs are in dask_nmf/DESIGN.md.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dask_nmf
from dask_nmf import HALS, oracle

Array = NDArray[Any]
RANK, BLOCK = 6, 250


class Stored:
    """V as it lies on a disk: it comes block by block, and each time round is a read."""

    def __init__(self, V: Array) -> None:
        self._V, self.reads = V, 0

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        self.reads += 1
        for first in range(0, len(self._V), BLOCK):
            rows = slice(first, first + BLOCK)
            yield rows, self._V[rows]


def mixtures(m: int = 1_000, n: int = 100) -> Array:
    """Smooth spectra that look alike, mixed, with 5 % of noise: slow for any plain method."""
    random = np.random.default_rng(0)
    centre, width = random.random((2, RANK, 1))
    H = np.exp(-(((np.linspace(0, 1, n) - centre) / (0.1 + 0.2 * width)) ** 2))
    V = random.gamma(0.5, size=(m, RANK)) @ H
    return np.asarray(V + 0.05 * V.mean() * random.random((m, n)))


# ---------------------------------------------------------------------- 1. one read per sweep
def sweep(V: Stored, W: Array, H: Array, solver: Any) -> tuple[Array, Array, float]:
    """W and H improved, and their error, from one read.

    A row of W depends on the same row of V, and on H. So while a block of V is in memory its rows
    of W are improved, and what H's own update needs of that block is added up: W'V and W'W, which
    are as small as H. A textbook reads V for W, again for H, and again for the error.
    """
    W, HHt = W.copy(), H @ H.T
    WtV, WtW, squares = np.zeros_like(H), np.zeros_like(HHt), 0.0
    for rows, V_b in V.blocks():
        W[rows] = solver.improve(W[rows], V_b @ H.T, HHt)
        WtV += W[rows].T @ V_b
        WtW += W[rows].T @ W[rows]
        squares += np.vdot(V_b, V_b)
    H = solver.improve(H.T, WtV.T, WtW).T
    # ||V - WH||^2 written out: the sums above are all that it needs.
    rest = squares - 2 * np.vdot(WtV, H) + np.vdot(WtW, H @ H.T)
    return W, H, float(np.sqrt(max(rest, 0) / squares))


def show_one_sweep(V: Array, W: Array, H: Array) -> None:
    stored = Stored(V)
    W1, H1, error = sweep(stored, W, H, HALS(inner=1))
    W2 = oracle.hals_W(V, W, H)  # the textbook, on all of V at once
    H2 = oracle.hals_H(V, W2, H)
    print("1. A sweep with one read, and the textbook's with three:")
    print(f"   largest differences: W {np.abs(W1 - W2).max():.0e}, H {np.abs(H1 - H2).max():.0e}")
    print(f"   error {error:.6f}, the textbook's {oracle.error(V, W2, H2):.6f}")
    print(f"   reads {stored.reads}")


# ------------------------------------------------------------------- 2. sweeps without a read
def show_inner_sweeps(V: Array, W: Array, H: Array, best: float) -> None:
    """V @ H.T stays true while H is fixed, so W may be improved again and again without V."""
    print("\n2. More arithmetic for each read; reads to within 5 % of the best error:")
    for name, solver in {
        "multiplicative update": dask_nmf.MU(),
        "HALS, 1 inner sweep": HALS(inner=1),
        "HALS, 10 inner sweeps": HALS(inner=10),
    }.items():
        stored, W_now, H_now, error = Stored(V), W, H, 1.0
        while error > 1.05 * best and stored.reads < 100:
            W_now, H_now, error = sweep(stored, W_now, H_now, solver)
        print(f"   {name:<22} {stored.reads if error <= 1.05 * best else 'more than 100'}")


# -------------------------------------------------------- 3. a model of V between two reads
def sketch(V: Stored, columns: int) -> tuple[Array, Array]:
    """Y = V G and Y'V, with random G, from one read: almost all that V is, in few columns."""
    Y, YtV = [], 0.0
    G = None
    for _, V_b in V.blocks():
        if G is None:
            G = np.random.default_rng(1).standard_normal((V_b.shape[1], columns))
        Y.append(V_b @ G)
        YtV = YtV + Y[-1].T @ V_b
    return np.vstack(Y), np.asarray(YtV)


def show_model(V: Array, W: Array, H: Array, best: float) -> None:
    """Sweeps on the model M = Y (Y'Y)^+ Y'V, which is never formed: M H' costs what Y costs."""
    stored = Stored(V)
    Y, YtV = sketch(stored, 3 * RANK + 10)
    P = np.linalg.pinv(Y.T @ Y) @ YtV  # M = Y @ P
    for _ in range(500):
        W = HALS(inner=5).improve(W, Y @ (P @ H.T), H @ H.T)
        H = HALS(inner=5).improve(H.T, P.T @ (Y.T @ W), W.T @ W).T
    _, _, error = sweep(stored, W, H, HALS(inner=10))
    print("\n3. 500 sweeps on a sketch of V, and one on V, which tells the error that counts:")
    print(f"   {100 * (error / best - 1):.1f} % above the best error after {stored.reads} reads")


def main() -> None:
    V = mixtures()
    random = np.random.default_rng(2)
    W, H = random.random((len(V), RANK)), random.random((RANK, V.shape[1]))
    runs = [dask_nmf.factorize(V, RANK, seed=seed) for seed in range(3)]
    best = min(run.error for run in runs)
    show_one_sweep(V, W, H)
    show_inner_sweeps(V, W, H, best)
    show_model(V, W, H, best)

    # The engine goes on: each pass brings V H' and W'V along, which make the model right where it
    # matters, at the factors at hand; Newton steps on it take the place of thousands of sweeps; and
    # a pass whose error is not better than the one before is dropped.
    run = dask_nmf.factorize(V, RANK)
    print(f"\ndask_nmf, best error {best:.6f}:")
    for record in run.history:
        above = 100 * (record.error / best - 1)
        print(f"   after read {record.passes}: {record.error:.6f}, {above:.2f} % above")


if __name__ == "__main__":
    main()
