"""W of new rows for an H that is known, and what the factors say that V is: both lazy."""

from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np

from dask_nmf.blas import single_threaded
from dask_nmf.blocks import Grid, block_height, even
from dask_nmf.boxes import as_dense
from dask_nmf.constraints import check_closed
from dask_nmf.csr import CSR
from dask_nmf.divergences import Beta
from dask_nmf.entrywise import Problem, solve_rows
from dask_nmf.fitting import limit_of
from dask_nmf.io import check_reachable, open_weighted
from dask_nmf.labels import (
    check_same_columns,
    column_names,
    dataset,
    maps,
    names_of_columns,
    of_library,
)
from dask_nmf.losses import Frobenius, Loss, make_loss
from dask_nmf.matrix import Missing
from dask_nmf.newton import Newton
from dask_nmf.options import parse_memory
from dask_nmf.scheduler import active_scheduler
from dask_nmf.solvers import MU, Settled, half_step
from dask_nmf.stream import blockwise, whole
from dask_nmf.survey import geometry
from dask_nmf.tasks import aligned, product
from dask_nmf.terms import Term, Terms, check_alpha, scaled
from dask_nmf.types import AnyArray, Array, DaskArray, working_dtype


def transform(
    V: Any,
    H: Any,
    *,
    loss: str | float | Loss = "frobenius",
    weights: Any = None,
    alpha_W: float = 0.0,
    l1_ratio: float = 0.0,
    sum_to_one: bool = False,
    missing: Missing = "error",
    layer: str | None = None,
    feature_dim: Any = None,
    memory: int | str | None = None,
) -> Any:
    """The best non-negative W for V ≈ W @ H, row by row: lazy, in blocks of rows.

    Each row is solved by itself until it settles, so any slice of rows gives that slice of W.

    Parameters
    ----------
    V : as for `factorize`; (m, n)
        New rows, or those that were factored.
    H : Result, or (k, n) array
        Of a result; or such as its H. Where both V and H name their columns (a Result, a
        DataArray, a DataFrame), they have to be the same.
    loss, weights, alpha_W, l1_ratio, sum_to_one, missing, layer, feature_dim
        As for `factorize`.
    memory : int or str, optional
        Limit for each worker process, by which the blocks are chosen. A dask array V keeps its
        blocks.

    Returns
    -------
    (m, k) dask array
        For a DataArray V a lazy DataArray (*dims, component), with V's coordinates.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range; when computed, if V has a NaN, infinite or negative entry.

    Notes
    -----
    Cost: one pass over V when computed. For Frobenius a row costs some 2 k^2 flops for each of some
    tens of sweeps; for other losses some tens of steps of 4 n k flops, or n k^2 of Newton's.

    Examples
    --------
    >>> import numpy as np
    >>> H = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]])
    >>> W = transform(np.array([[2.0, 5.0, 1.0]]), H)
    >>> bool(np.allclose(W.compute(), [[2.0, 1.0]]))
    True
    """
    loss = make_loss(loss)
    check_alpha(alpha_W, "same", l1_ratio)
    matrix = open_weighted(V, missing, weights, layer, feature_dim)
    term = replace(scaled(matrix.shape, alpha_W, 0.0, l1_ratio).W, closed=bool(sum_to_one))
    names = names_of_columns(H)
    H = getattr(H, "H", H)
    if not (hasattr(H, "__array__") or isinstance(H, (list, tuple))):
        raise TypeError(
            f"H must be a Result, or an array (k, {matrix.shape[1]}) such as result.H, got "
            f"{type(H).__name__}"
        )
    H = np.asarray(H)
    if H.ndim != 2 or H.shape[1] != matrix.shape[1] or H.dtype.kind not in "fiub":
        raise ValueError(
            f"H must be a real array (k, {matrix.shape[1]}) for V {matrix.shape}, got {H.dtype} "
            f"{H.shape}"
        )
    check_same_columns(column_names(matrix.labels), names)
    H = H.astype(np.float64)
    if not (np.isfinite(H).all() and (H >= 0).all()):
        raise ValueError("H must be finite and non-negative")
    if isinstance(matrix.source, CSR) and matrix.source.of_transpose:
        raise ValueError("V must not be a CSC matrix: its rows cannot be read; convert it to CSR")
    if matrix.partial and isinstance(loss, Frobenius):
        loss = Beta(2.0)
    check_closed(sum_to_one, loss)
    products = isinstance(loss, Frobenius)
    scheduler = active_scheduler()
    check_reachable("V", getattr(matrix.source, "store", None), scheduler.remote)
    if isinstance(matrix.source, da.Array):
        heights = matrix.source.chunks[0]
    else:
        about = geometry(
            matrix,
            len(H),
            scheduler,
            entrywise=not products,
            weight_bytes=matrix.weight_bytes,
        )
        limit = limit_of(None if memory is None else parse_memory(memory), scheduler)
        rows = block_height(about, limit)
        if not rows:
            raise ValueError(f"memory={memory} is too small for a block of whole rows of V")
        heights = even(matrix.shape[0], rows)
    grid = Grid(heights, (matrix.shape[1],))
    V_blocks, M = (matrix.blocks(grid), None) if products else matrix.observed(grid)
    dtype = working_dtype(matrix.dtype)
    data = (V_blocks,) if M is None else (V_blocks, M)
    W: DaskArray = blockwise(
        _solve_block,
        "ik",
        *(whole(H), None, loss, None, term, None, dtype, None),
        *(x for X in data for x in (X, "ik")),
        dtype=dtype,
        align_arrays=False,
        adjust_chunks={"k": len(H)},
    )
    if matrix.labels is None or not (of_library(V, "xarray") or feature_dim is not None):
        return W
    return dataset({"W": maps(W, matrix.labels)}, matrix.labels, {})["W"]


@single_threaded
def _solve_block(
    H: Array, loss: Loss, term: Term, dtype: Any, V_b: AnyArray, M_b: Array | None = None
) -> Array:
    V_b, H = aligned(V_b), aligned(H)
    if isinstance(loss, Frobenius):
        numer = product(V_b, H.T).astype(np.float64, copy=False)
        return half_step(Settled(), np.ones_like(numer), numer, H @ H.T, term).astype(dtype)
    solver = Newton() if loss.convex else MU()
    if loss.beta <= 0:
        seen = V_b if M_b is None else np.where(M_b > 0, as_dense(V_b), 1)
        loss.check_least(float(seen.min()))
    problem = Problem(loss, solver, replace(Terms(), W=term), 0.0)
    return solve_rows(V_b, M_b, H, problem).astype(dtype)
