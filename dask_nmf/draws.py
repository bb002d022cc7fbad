"""What is drawn for each entry of V, from a seed and its place alone: the same in any blocks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array, issparse

from dask_nmf.boxes import as_dense
from dask_nmf.csr import row_slabs
from dask_nmf.devices import on_host
from dask_nmf.types import Array

_ENTRIES = 2**17  # of a block at a time, with some copies beside them
_PERTURB, _HIDE = range(2)


@dataclass(frozen=True)
class Drawn:
    """How a run's V differs from V: by noise, and by entries that the run does not see.

    Attributes
    ----------
    seed : int
    perturb : float
        V_ij becomes V_ij (1 + perturb u), u uniform between -1 and 1.
    held_out : float
        The share of entries whose weight becomes 0.
    """

    seed: int
    perturb: float = 0.0
    held_out: float = 0.0


def uniform(seed: int, purpose: int, i: Array, j: Array) -> Array:
    """Numbers from 0 to 1 for the entries (i, j) of V; i and j are broadcast.

    Source: SplitMix64, Steele, Lea and Flood 2014, figure 17, at position i 2^32 + j.
    """
    key = np.random.Philox(key=np.array([seed, purpose], dtype=np.uint64)).random_raw()
    z = (i.astype(np.uint64) << np.uint64(32)) + j.astype(np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(key)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.asarray((z >> np.uint64(11)) * 2.0**-53)


def perturbed(V_b: Any, drawn: Drawn, flipped: bool, block_info: Any = None) -> Any:
    """A block of V, dense or sparse, with noise.

    Source: Alexandrov et al. 2013 and Nebgen et al. 2021 perturb V for each restart.
    """
    top, left = _corner(block_info)
    if issparse(V_b):
        data = np.empty_like(V_b.data)
        for start in range(0, V_b.nnz, _ENTRIES):
            part = np.arange(start, min(start + _ENTRIES, V_b.nnz))
            rows = top + np.searchsorted(V_b.indptr, part, side="right") - 1
            data[part] = V_b.data[part] * _noise(drawn, rows, left + V_b.indices[part], flipped)
        return csr_array((data, V_b.indices, V_b.indptr), shape=V_b.shape)
    V_b = on_host(V_b)
    out = np.empty_like(V_b)
    for slab, rows, columns in _slabs(V_b, top, left):
        out[slab] = V_b[slab] * _noise(drawn, rows, columns, flipped)
    return out


def shown(
    V_b: Any, M_b: Array | None, drawn: Drawn, flipped: bool, block_info: Any = None
) -> Array:
    """The weights of a block's entries, 0 where they are held out."""
    top, left = _corner(block_info)
    out = np.empty(V_b.shape, V_b.dtype) if issparse(V_b) else np.empty_like(V_b)
    for slab, rows, columns in _slabs(V_b, top, left):
        kept = _drawn(drawn, _HIDE, rows, columns, flipped) >= drawn.held_out
        out[slab] = kept if M_b is None else np.where(kept, M_b[slab], 0)
    return out


def without_unweighted(V_b: Any, M_b: Array) -> Array:
    """V_b as NaN where an entry has no weight: it is not held out, it is not there.

    Raises
    ------
    ValueError
        If V is sparse, which has no room for that.
    """
    there = M_b > 0
    if issparse(V_b) and not there.all():
        raise ValueError(
            "held_out needs weights above 0 where V is sparse: entries of weight 0 would count as "
            "held out"
        )
    return as_dense(V_b) if issparse(V_b) else np.where(there, V_b, np.nan).astype(V_b.dtype)


def _noise(drawn: Drawn, rows: Array, columns: Array, flipped: bool) -> Array:
    noise = _drawn(drawn, _PERTURB, rows, columns, flipped)
    return np.asarray(1 + drawn.perturb * (2 * noise - 1))


def _drawn(drawn: Drawn, purpose: int, rows: Array, columns: Array, flipped: bool) -> Array:
    """`uniform` for rows and columns of what is streamed: V, or V.T where it is flipped."""
    i, j = (columns, rows) if flipped else (rows, columns)
    return uniform(drawn.seed, purpose, i, j)


def _slabs(V_b: Any, top: int, left: int) -> Any:
    """Slabs of rows, and where their entries are: (s, 1) rows and (1, n) columns."""
    columns = left + np.arange(V_b.shape[1])[np.newaxis]
    for slab in row_slabs(V_b, 8 * _ENTRIES):
        rows = top + np.arange(V_b.shape[0])[slab, np.newaxis]
        yield slab, rows, columns


def _corner(block_info: Any) -> tuple[int, int]:
    """Of a block in what is streamed; dask asks for the type of what it makes without one."""
    if not block_info:
        return 0, 0
    (top, _), (left, _) = block_info[0]["array-location"]
    return top, left
