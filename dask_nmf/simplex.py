"""The half-step for rows that sum to one, such as the shares of materials in a pixel."""

import numpy as np

from dask_nmf.types import Array

_SETTLED = 1e-9  # of the gradient's largest entry: so little is left between two components
_SLAB = 2**15  # entries of F that are at work at once: some arrays stay in cache
_TINY = np.finfo(np.float64).tiny


def on_simplex(F: Array, numer: Array, gram: Array, sweeps: int) -> Array:
    """F (b, k) >= 0 with rows that sum to one, and less f G f' / 2 - f n' in each row.

    Each step moves weight between two components of a row, as far as the row's quadratic falls: to
    the one that asks for most from the one whose loss gains most by it. Rows that are settled stay.

    Parameters
    ----------
    F : (b, k) array
        Where to begin; its rows are brought to sum to one.
    numer, gram : (b, k) and (k, k) arrays
    sweeps : int
        At most, of k steps each.

    Notes
    -----
    Cost: some 8 b k flops a step.
    Source: Platt 1998 (two at a time); Fan, Chen and Lin 2005, section 2.3 (which two).
    """
    found, rows = np.empty(F.shape), max(1, _SLAB // F.shape[1])
    for start in range(0, len(F), rows):
        slab = slice(start, start + rows)
        found[slab] = _moved(closed(F[slab]), numer[slab].astype(np.float64), gram, sweeps)
    return found


def _moved(F: Array, numer: Array, gram: Array, sweeps: int) -> Array:
    k = F.shape[1]
    diagonal = np.diag(gram)
    bends = np.maximum(diagonal + diagonal[:, None] - 2 * gram, _TINY)
    f, g, at = F.copy(), F @ gram - numer, np.arange(len(F))
    least = _SETTLED * np.abs(g).max(axis=1, initial=0.0)
    for _ in range(sweeps):
        rows = np.arange(len(at))
        for _ in range(k):
            to = g.argmin(axis=1)
            gap = g - g[rows, to][:, None]
            gap[f <= 0] = 0.0
            bend = bends[to]
            away = (gap * gap / bend).argmax(axis=1)
            there = f[rows, away]
            move = np.minimum(gap[rows, away] / bend[rows, away], there)
            f[rows, away] = there - move
            f[rows, to] += move
            g += move[:, None] * (gram[to] - gram[away])
        F[at] = f
        far = gap.max(axis=1) > least
        if not far.any():
            break
        f, g, at, least = f[far], g[far], at[far], least[far]
    return closed(F)


def closed(F: Array) -> Array:
    """F with rows that sum to one; a row of zeros becomes even."""
    F = F.astype(np.float64)
    sums = F.sum(axis=1, keepdims=True)
    even = np.full_like(F, 1 / F.shape[1])
    return np.asarray(np.divide(F, sums, out=even, where=sums > 0))
