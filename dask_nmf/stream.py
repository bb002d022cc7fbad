"""The pass: V's row blocks go by once, and serve both half-steps.

The half-steps are matrix products of dask arrays,

    W = W * (V @ H.T) / (W @ (H @ H.T))
    H = H * (W.T @ V) / ((W.T @ W) @ H)

and `sweep` asks for the products of both in one compute, so that dask reads each block once. A
block is then held by at most three tasks in a row: V_b; W_b from V_b @ H.T; W_b.T @ V_b.
"""

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from scipy.sparse import csr_array, issparse

from dask_nmf.geometry import FAN_IN
from dask_nmf.reader import Reader
from dask_nmf.solvers import MU, Solver
from dask_nmf.sparse import regrouped
from dask_nmf.tasks import (
    add,
    factor_dtype,
    improve_block,
    partial_gram,
    partial_product,
    partial_residual,
    partial_sum,
    product,
    write_rows,
)
from dask_nmf.terms import NO_TERM, Term
from dask_nmf.types import AnyArray, Array, DaskArray, Products, Seen
from dask_nmf.watch import active_client, compute, hold

_SMALL = 2**23  # bytes that go to a cluster with a graph, without its warning


# ------------------------------------------------------------------ products of dask arrays
def matmul(A: AnyArray, B: AnyArray) -> AnyArray:
    """A @ B, as dask array products if either is one.

    A small numpy B multiplies each row block of A, in the dtype of A @ B. Two dask arrays are
    multiplied block by block, and the products summed by a tree of fixed shape in float64, which
    is then the dtype.

    Parameters
    ----------
    A, B : (i, j) and (j, k) numpy or dask arrays, any chunks; or B sparse

    Returns
    -------
    (i, k) array; a dask array if A or B is one, lazy
    """
    if not (isinstance(A, da.Array) or isinstance(B, da.Array)):
        return product(A, B)
    dtype = np.result_type(A.dtype, B.dtype)
    if isinstance(B, np.ndarray) and A.numblocks[1] == 1:
        size = {"k": B.shape[1]}
        return blockwise(product, "ik", A, "ik", whole(B), None, dtype=dtype, adjust_chunks=size)
    _, (A, B) = da.core.unify_chunks(_to_dask(A), "ij", _to_dask(B), "jk")
    one = {"j": 1}
    return sum_blocks(
        blockwise(partial_product, "jik", A, "ij", B, "jk", dtype=dtype, adjust_chunks=one)
    )


def gram(F: AnyArray) -> AnyArray:
    """F.T @ F in float64, (k, k), for a tall (m, k) numpy or dask array."""
    if not isinstance(F, da.Array):
        return partial_gram(F)[0]
    F = F.rechunk({1: -1})
    one, k = {"i": 1}, {"l": F.shape[1]}
    return sum_blocks(blockwise(partial_gram, "ikl", F, "ik", adjust_chunks=one, new_axes=k))


def total(F: DaskArray) -> DaskArray:
    """The sums of F's columns in float64, (k,)."""
    if not isinstance(F, da.Array):
        return partial_sum(F)[0]
    return sum_blocks(blockwise(partial_sum, "ik", F, "ik", adjust_chunks={"i": 1}))


def update_W(V: AnyArray, W: AnyArray, H: AnyArray, solver: Solver | None = None) -> AnyArray:
    """The half-step for W: W * (V @ H.T) / (W @ (H @ H.T)).

    Parameters
    ----------
    V : (m, n) numpy or dask array, any 2-D chunks; or sparse, as for `factorize`
    W : (m, k) numpy or dask array
    H : (k, n) numpy or dask array
    solver : MU or HALS, optional
        The multiplicative update when None.

    Returns
    -------
    (m, k) array of W's dtype
        A dask array if any input is one: lazy, with row blocks like V's.

    Notes
    -----
    Cost: one pass over V when computed; m k numbers are made.
    Source: Lee and Seung 2001, equation 4.

    Examples
    --------
    >>> import dask.array as da
    >>> V = da.random.default_rng(0).random((100, 40), chunks=(25, 20))
    >>> W, H = np.ones((100, 3)), np.arange(1.0, 121).reshape(3, 40)
    >>> update_W(V, W, H).chunks
    ((25, 25, 25, 25), (3,))
    """
    V, W, H = _checked(V, W, H)
    return _improve(solver or MU(), W, matmul(V, H.T), gram(H.T))


def update_H(V: AnyArray, W: AnyArray, H: AnyArray, solver: Solver | None = None) -> AnyArray:
    """The half-step for H: H * (W.T @ V) / ((W.T @ W) @ H).

    Parameters
    ----------
    V, W, H, solver : as for `update_W`

    Returns
    -------
    (k, n) array of H's dtype
        A dask array if any input is one: lazy.

    Notes
    -----
    Cost: one pass over V when computed. `factorize` computes the products of both half-steps
    together, in one pass.
    Source: Lee and Seung 2001, equation 4.

    Examples
    --------
    >>> V, W, H = np.full((4, 3), 2.0), np.ones((4, 1)), np.ones((1, 3))
    >>> update_H(V, W, H)
    array([[2., 2., 2.]])
    """
    V, W, H = _checked(V, W, H)
    return _improve(solver or MU(), H.T, matmul(W.T, V).T, gram(W)).T


# --------------------------------------------------------------------------- passes over V
def sweep(
    V: DaskArray,
    W: DaskArray,
    H: Array,
    solver: Solver,
    *,
    again: DaskArray | None = None,
    residual: bool = False,
    target: Any = None,
    term: Term = NO_TERM,
    collect: bool = False,
) -> tuple[DaskArray, Seen]:
    """One sweep's visit to V: the new W, and the products for H's half-step.

    Parameters
    ----------
    V : (m, n) dask array
        Row blocks; or tiles, where rows are too long for the memory. Where V is at hand in one
        piece it is that, and W a numpy array, too: no graph is made then.
    W : (m, k) dask array, the same row blocks
    H : (k, n) array
    again : (m, n) dask array, optional
        V under other keys: it is read a second time then, as it has to be in tiles, of which
        nothing may wait in memory for its second use.
    residual : bool
        Take R = V - W @ H block by block too, with the new W: one more product in float64.
    target : Writer, optional
        Where the new W is written, chunk by chunk; None keeps it in the workers' memory.
    term : Term
        Of W; with an l1 the sum of W is made, too.
    collect : bool
        Bring V @ H.T and the new W here, for the model.

    Returns
    -------
    The new W as a dask array, read from the target where there is one; and what was seen.

    Notes
    -----
    Cost: one read of V in row blocks, two in tiles: a row of tiles gives W its update, and only
    then can each tile give its share of H's. Per block and sweep 4 tasks and a share of
    two trees.
    """
    numer = matmul(V, H.T)
    W = _improve(solver, W, numer, gram(H.T), term)
    if target is not None:
        W = W.map_blocks(write_rows, target, dtype=W.dtype, meta=W._meta, token="nmf-write")
    collected: list[Any] = [numer, W] if collect else []
    of_W = [gram(W), *([total(W)] if term.l1 else [])]
    if again is not None:  # W first: held, or written and then read
        W, found = done(W, target, *of_W, *collected)
        (over_V,) = compute(_over(again, W, H, residual))
    else:  # one graph: each block of V is read once
        W, (over_V, *rest) = done(W, target, _over(V, W, H, residual), *of_W, *collected)
        found = tuple(rest)
    WtW, seen = found[0], found[len(of_W) :]
    W_total = float(found[1].sum()) if term.l1 else 0.0
    if residual:
        WtR, squares = over_V[:-1], over_V[-1]
        WtV = WtR + WtW @ H.astype(np.float64)
        made = Products(WtV, WtW, WtR, float(squares.sum()), W_total)
    else:
        made = Products(WtV=over_V, WtW=WtW, W_total=W_total)
    return W, Seen(H, made, *seen)


def _over(V: DaskArray, W: DaskArray, H: Array, residual: bool) -> DaskArray:
    return _residual_products(V, W, H) if residual else matmul(W.T, V)


def done(W: DaskArray, target: Any, *sums: DaskArray) -> tuple[DaskArray, tuple[Array, ...]]:
    """W, held by the workers or to be read from the target, and the sums, from one compute.

    A small W comes here from a cluster: held there, it would tie all passes before it to itself,
    which the scheduler would remember, and make again when a worker is lost.
    """
    if isinstance(W, np.ndarray):  # V is at hand, in one piece
        return W, tuple(np.asarray(x, dtype=np.float64) for x in sums)
    if target is None:
        W, found = hold(W, *sums)
        if active_client() is not None and W.nbytes <= _SMALL:
            W = da.from_array(compute(W)[0], chunks=W.chunks, name=False)
        return W, found
    return from_rows(Reader(target.array, W.dtype), W.chunks[0]), compute(*sums)


def products(V: DaskArray, W: DaskArray) -> Products:
    """W.T @ V and W.T @ W: one pass."""
    WtV, WtW = compute(matmul(W.T, V), gram(W))
    return Products(WtV=WtV, WtW=WtW)


def squared_residual(V: DaskArray, W: DaskArray, H: Array) -> float:
    """||V - W @ H||^2 in float64, block by block: one pass."""
    (over_V,) = compute(_residual_products(V, W, H))
    return float(over_V[-1].sum())


# ------------------------------------------------------------------------------ graph building
def from_boxes(boxes: Any, chunks: tuple[Sequence[int], Sequence[int]]) -> DaskArray:
    """A dask array whose blocks are slices of `boxes`, read inside the task that needs them."""
    return da.from_array(
        boxes,
        chunks=tuple(tuple(sizes) for sizes in chunks),
        name=False,
        inline_array=True,
        asarray=False,
        fancy=False,
        meta=np.empty((0, 0), boxes.dtype),
    )


def from_rows(rows: Any, heights: Sequence[int]) -> DaskArray:
    """The same in row blocks."""
    return from_boxes(rows, (heights, (rows.shape[1],)))


def constant(x: Array) -> DaskArray:
    """A small array as one block under a unique key, sent to each worker once."""
    return da.from_array(x, chunks=x.shape, name=False)


def _to_dask(x: AnyArray) -> DaskArray:
    return x if isinstance(x, da.Array) else constant(x)


def whole(x: AnyArray) -> Any:
    """x in one piece beside the blocks: dask fuses tasks only if they sum over no index."""
    return _to_dask(x).rechunk(-1).to_delayed(optimize_graph=False).item()


def blockwise(function: Any, out: str, *args: Any, dtype: Any = np.float64, **kwargs: Any) -> Any:
    meta = np.empty((0,) * len(out), dtype=dtype)
    token = f"nmf-{function.__name__.replace('_', '-')}"  # the name of its tasks on a dashboard
    return da.blockwise(function, out, *args, meta=meta, token=token, **kwargs)


def sum_blocks(partial: DaskArray) -> DaskArray:
    meta = np.empty((0,) * (partial.ndim - 1))
    how: Any = {"axis": 0, "dtype": np.float64, "split_every": FAN_IN, "meta": meta}
    # A partial is not made float64 before it travels.
    return da.reduction(partial, _alone, add, combine=add, name="nmf-sum", **how)


def _alone(partial: Array, **_: Any) -> Array:
    return partial


def _improve(
    solver: Solver, F: AnyArray, numer: AnyArray, gram: AnyArray, term: Term = NO_TERM
) -> AnyArray:
    if not any(isinstance(x, da.Array) for x in (F, numer, gram)):
        return improve_block(F, numer, gram, solver, term)
    F, numer = (_to_dask(x).rechunk({1: -1}) for x in (F, numer))
    blocks, dtype = (F, "ik", numer, "ik"), factor_dtype(F)
    more = whole(gram), None, solver, None, term, None
    return blockwise(improve_block, "ik", *blocks, *more, dtype=dtype)


def _residual_products(V: DaskArray, W: DaskArray, H: Array) -> DaskArray:
    """The sum over blocks of `partial_residual`: (k + 1, n)."""
    if not isinstance(V, da.Array):
        return partial_residual(V, W, H)[0]
    size = {"i": 1, "k": len(H) + 1}
    H_args = (
        (whole(H), None) if V.numblocks[1] == 1 else (constant(H).rechunk((-1, V.chunks[1])), "kn")
    )
    return sum_blocks(
        blockwise(partial_residual, "ikn", V, "in", W, "ik", *H_args, adjust_chunks=size)
    )


def _checked(V: AnyArray, W: AnyArray, H: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
    """The arrays, without empty chunks: dask would repeat an array of size 1 for each of them."""
    for name, x in (("V", V), ("W", W), ("H", H)):
        sparse = name == "V" and issparse(x)
        if not isinstance(x, (np.ndarray, da.Array)) and not sparse:
            raise TypeError(f"{name} must be a numpy or dask array, got {type(x).__name__}")
        if x.dtype.kind not in "fiub":
            raise TypeError(f"{name} must hold real numbers, got dtype {x.dtype}")
    shapes = V.shape, W.shape, H.shape
    fits = all(len(s) == 2 for s in shapes) and W.shape == (V.shape[0], H.shape[0])
    if not fits or H.shape[1] != V.shape[1]:
        raise ValueError(
            f"shapes must be V (m, n), W (m, k), H (k, n); got {V.shape}, {W.shape}, {H.shape}"
        )
    lazy = isinstance(W, da.Array) or isinstance(H, da.Array)
    return _rows_of_sparse(V, lazy), _solid(W), _solid(H)


def _rows_of_sparse(V: AnyArray, lazy: bool) -> AnyArray:
    """V; if it is sparse, as a csr_array or in row blocks that are."""
    if issparse(V):
        V = csr_array(V)
        if not lazy:
            return V
        V = da.from_array(V, chunks=V.shape, asarray=False, name=False)
    V = _solid(V)
    if isinstance(V, da.Array) and not isinstance(V._meta, np.ndarray):
        return regrouped(V, V.chunks[0], factor_dtype(V), checked=False)
    return V


def _solid(x: AnyArray) -> AnyArray:
    if not isinstance(x, da.Array):
        return x
    return x.rechunk(tuple(tuple(size for size in sizes if size) or sizes for sizes in x.chunks))
