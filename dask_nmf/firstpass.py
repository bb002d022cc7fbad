"""The first pass: V's sums, and a sketch of it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dask_nmf.stream import matmul
from dask_nmf.tasks import chosen_rows, inspect
from dask_nmf.types import Array, DaskArray, FirstPass, Sketch, Sums
from dask_nmf.watch import compute


def first_pass(
    V: DaskArray,
    G: Array | None = None,
    rows: Array | None = None,
    in_pass: Callable[[Any, Callable[[], Any]], Any] = lambda _, make: make(),
) -> FirstPass:
    """Sum V; with G (n, l), sketch V or those rows of it: one pass.

    in_pass : gives what has been made under a key in this pass, by another run.

    Raises
    ------
    ValueError
        When V's squares overflow.
    """
    found = in_pass((V.name, "sums"), lambda: _inspected(V))
    sketched: tuple[DaskArray, ...] = ()
    if G is not None:
        sketched = in_pass((V.name, G.shape), lambda: _sketch(take_rows(V, rows), G))
    answers = compute(found, *sketched)
    key = V.name, None if G is None else G.shape, "found"
    first: FirstPass = in_pass(key, lambda: _found(answers, V, rows))
    return first


def _inspected(V: DaskArray) -> DaskArray:
    """What `inspect` tells of each block."""
    sizes = tuple((size,) * blocks for size, blocks in zip((1, 4), V.numblocks, strict=True))
    return V.map_blocks(
        inspect, dtype=np.float64, chunks=sizes, meta=np.empty((0, 0)), token="nmf-inspect"
    )


def _found(answers: tuple[Array, ...], V: DaskArray, rows: Array | None) -> FirstPass:
    found, *sketched = answers
    found = found.reshape(-1, 4)
    with np.errstate(over="ignore"):
        total, squares, mixed = (float(x) for x in found[:, [0, 1, 3]].sum(axis=0))
    sums = Sums(total, squares, float(found[:, 2].max()), mixed)
    _check_range(sums, V.dtype)
    if not sketched:
        return FirstPass(sums)
    Y, YtV = (x.astype(np.float64) for x in sketched)
    return FirstPass(sums, Sketch(rows, len(Y) / V.shape[0], Y, YtV))


def _sketch(V: DaskArray, G: Array) -> tuple[DaskArray, DaskArray]:
    """Y = V @ G and Y.T @ V."""
    Y = matmul(V, G)
    return Y, matmul(Y.T, V)


def _check_range(sums: Sums, dtype: np.dtype[Any]) -> None:
    """Refuse V so large or small that the products of the half-steps leave the dtype's range."""
    info = np.finfo(dtype)
    norm = np.sqrt(sums.squares)
    low, high = float(info.tiny) ** 0.5, float(info.max) ** 0.5
    if sums.maximum and not (norm < high and sums.maximum > low):
        raise ValueError(
            f"V's norm is {norm:.3g} and its largest entry {sums.maximum:.3g}; products in {dtype} "
            f"need a norm below {high:.1g} and an entry above {low:.1g}: multiply V by a constant "
            "(the factors scale with it)"
        )


def take_rows(X: DaskArray, rows: Array | None) -> DaskArray:
    """Those rows of X, all for None; in the blocks that they lie in."""
    if rows is None:
        return X
    edges = np.cumsum([0, *X.chunks[0]])
    counts = np.diff(np.searchsorted(rows, edges))
    chunks = (tuple(counts.tolist()), *X.chunks[1:])
    return X.map_blocks(
        chosen_rows, rows, dtype=X.dtype, chunks=chunks, meta=X._meta, token="nmf-chosen-rows"
    )
