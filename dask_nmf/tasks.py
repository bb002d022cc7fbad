"""The tasks of a pass: what is done to one block of V, with one BLAS thread.

A block is dense, a csr_array, or lies on a device; what is made of it is on the host.
"""

from typing import Any

import numpy as np
from scipy.sparse import issparse

from dask_nmf.blas import single_threaded
from dask_nmf.csr import row_slabs, transposed_product
from dask_nmf.devices import beside, cast, device_product, is_on_device, namespace, on_host
from dask_nmf.solvers import Solver, half_step
from dask_nmf.terms import NO_TERM, Term
from dask_nmf.types import AnyArray, Array

_GOLDEN = (5**0.5 - 1) / 2  # the parts after the point of its multiples are spread evenly
_FACTOR_SLAB = 2**18  # entries of W that are improved at once: some arrays stay in cache
_SLAB_BYTES = 2**20  # float64 residuals are formed in slabs of rows of this size, to stay in cache
_DEVICE_BYTES = 2**27  # on a device: fewer, as each is a launch


def aligned(x: Any) -> Any:
    """x, contiguous and aligned, copied only if it is not.

    Arrays that travelled between workers may lie at odd addresses, for which BLAS takes another
    path: the bits would depend on which worker ran the task. (scipy adds in one order anywhere.)
    """
    if issparse(x) or is_on_device(x):
        return x
    return x if x.flags.forc and x.flags.aligned else x.copy(order="A")


def factor_dtype(F: AnyArray) -> np.dtype[Any]:
    return np.result_type(F.dtype, np.float32)


@single_threaded
def product(A: Any, B: Any) -> Any:
    # What is infinite or overflows is found, and named, by `inspect` and by the error's value.
    with np.errstate(over="ignore", invalid="ignore"):
        if issparse(B):
            return transposed_product(aligned(A), B)
        if is_on_device(A) or is_on_device(B):
            return device_product(A, B)
        return aligned(A) @ aligned(B)


def partial_product(A: Array, B: Array) -> Any:
    return product(A, B)[np.newaxis]


def add(partial: Array, **kwargs: Any) -> Any:
    """The sum of partial products, which may be infinite: as in `product`."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sum(partial, dtype=np.float64, **kwargs)


@single_threaded
def partial_gram(F: Array) -> Any:
    F = aligned(F).astype(np.float64, copy=False)
    return (F.T @ F)[np.newaxis]


@single_threaded
def improve_block(
    F: Array, numer: Array, gram: Array, solver: Solver, term: Term = NO_TERM
) -> Array:
    F, numer, gram = aligned(F), aligned(numer), aligned(gram)
    improved = np.empty(F.shape, factor_dtype(F))
    rows = max(1, _FACTOR_SLAB // F.shape[1])
    for start in range(0, len(F), rows):
        slab = slice(start, start + rows)
        with np.errstate(over="ignore", invalid="ignore"):  # as in `product`
            improved[slab] = half_step(solver, F[slab], numer[slab], gram, term)
    return improved


def partial_sum(F: Array) -> Array:
    found: Array = np.asarray(F, np.float64).sum(axis=0)
    return found[np.newaxis]


@single_threaded
def partial_residual(V_b: Any, W_b: Array, H: Array) -> Array:
    """W_b.T @ R over sums of R^2 by column, with R = V_b - W_b @ H: (1, k + 1, n), float64."""
    V_b, W_b, xp = aligned(V_b), aligned(W_b), namespace(V_b)
    H_b = beside(aligned(H).astype(np.float64), V_b)
    out = np.zeros((1, H_b.shape[0] + 1, V_b.shape[1]))
    height, rows = V_b.shape[0], max(1, _slab_bytes(V_b) // (8 * V_b.shape[1]))
    for start in range(0, height, rows):
        slab = slice(start, min(start + rows, height))
        V_s = V_b[slab].toarray() if issparse(V_b) else V_b[slab, :]
        W_s = beside(W_b[slab].astype(np.float64), V_b)
        R = cast(V_s, np.float64) - W_s @ H_b
        out[0, :-1] += on_host(W_s.T @ R)
        out[0, -1] += on_host(xp.sum(R * R, axis=0))
    return out


def _slab_bytes(V_b: Any) -> int:
    return _DEVICE_BYTES if is_on_device(V_b) else _SLAB_BYTES


def chosen_rows(X_b: Any, rows: Array, block_info: Any = None) -> Any:
    """The rows of a block that are in the sample."""
    start, stop = block_info[0]["array-location"][0]
    first, last = np.searchsorted(rows, (start, stop))
    inside = rows[first:last] - start
    if is_on_device(X_b):
        return namespace(X_b).take(X_b, beside(inside, X_b), axis=0)
    return X_b[inside]


def write_rows(W_b: Array, target: Any, block_info: Any = None) -> Array:
    """W_b, once its rows are in the target: whole chunks of it, so no two tasks write one."""
    target[tuple(slice(*span) for span in block_info[0]["array-location"])] = W_b
    return W_b


@single_threaded
def inspect(V_b: Any, block_info: Any = None) -> Array:
    """[[sum, sum of squares, max, mixed sum]] of a block; its entries were checked when read."""
    by_row, by_column = (_weights(*span) for span in block_info[0]["array-location"])
    total = squares = mixed = 0.0
    xp = namespace(V_b)
    with np.errstate(over="ignore"):
        for rows in row_slabs(V_b, _slab_bytes(V_b)):
            slab = cast(V_b[rows, :], np.float64)
            entries = slab.data if issparse(slab) else slab
            total += float(xp.sum(entries))
            squares += float(xp.sum(entries * entries))
            mixed += float(by_row[rows] @ on_host(slab @ beside(by_column, V_b)))
    largest = V_b.max() if issparse(V_b) else xp.max(V_b)
    return np.array([[total, squares, float(largest), mixed]])


def _weights(start: int, stop: int) -> Array:
    """From 1 to 2, no two alike; the same for rows and columns, so the same for V.T."""
    return 1 + np.arange(start, stop) * _GOLDEN % 1.0
