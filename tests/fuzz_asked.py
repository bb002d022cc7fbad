"""Calls of `tests.fuzz` that ask for more: losses, weights, penalties, constraints, sparse V."""

from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import scipy.sparse
import zarr
from zarr.storage import MemoryStore

import dask_nmf
from dask_nmf import HALS, MU, oracle
from tests.conftest import Array
from tests.fuzz_checks import check_form, demand, factors
from tests.fuzz_draw import Call, Draw

BETAS = {"frobenius": 2.0, "kullback-leibler": 1.0, "itakura-saito": 0.0}
LOSSES = ("kullback-leibler", "kullback-leibler", 1.0, 1.5, "itakura-saito", 0.5, 0, 3.0, -1, 2)


def ask(draw: Draw, call: Call) -> None:
    """Draw such a call of a good one, where V's numbers are of a size that leaves room for it."""
    V = call.dense
    if call.refused or call.doubtful & {"V"} or V is None or V.ndim != 2 or not V.any():
        return
    if V.max() > 1e5 or V[V > 0].min() < 1e-5:
        return
    call.asked = True
    options, random = call.options, draw.random
    rank, beta = int(options["rank"]), 2.0
    if draw.chance(0.3) and not call.tight:
        _as_sparse(draw, call)
    if draw.chance(0.5):
        options["loss"] = loss = draw.one(*LOSSES)
        beta = float(BETAS.get(loss, loss) if isinstance(loss, str) else loss)
    partial = draw.chance(0.35)
    if partial:
        _weigh(draw, call)
    plain = beta == 2 and not partial
    if draw.chance(0.35):
        size = float(V.mean()) * draw.one(1e-3, 0.01, 0.1, 10.0)
        options["alpha_W"] = draw.one(0.0, size, size)
        options["alpha_H"] = draw.one("same", 0.0, size, 2 * size)
        options["l1_ratio"] = draw.one(0.0, 0.5, 1.0, 1)
    if draw.chance(0.25):
        r = draw.integer(1, rank)
        options["fixed_H"] = random.random((r, V.shape[1])) * np.sqrt(V.mean()) + 0.01
        if draw.chance(0.2):
            options["fixed_H"] = da.from_array(options["fixed_H"], chunks=-1)
    if draw.chance(0.2):
        options["sum_to_one"] = True
        if not plain:
            call.wrong.add("sum_to_one")
    _solve(draw, call, plain, beta)
    if partial and _needs_all(options["init"]):
        call.wrong.add("init")
    if beta <= 0 and (V[_weights(call) > 0] == 0).any():
        call.late.add("V")
    if not plain:
        call.doubtful |= {"memory"} if call.tight else set()
    elif options.get("fixed_H") is not None and call.tight:
        call.doubtful.add("max_passes")


def _needs_all(init: Any) -> bool:
    return isinstance(init, dask_nmf.NNDSVD) or (isinstance(init, str) and init.startswith("nn"))


def _solve(draw: Draw, call: Call, plain: bool, beta: float) -> None:
    """A solver that can do it, or one that cannot."""
    options, penalized = call.options, _penalized(call)
    if plain:
        if penalized and type(options["solver"]).__name__ == "Own":
            call.wrong.add("solver|alpha_W")
        return
    able: list[Any] = ["auto", "auto", "mu", MU(inner=2)]
    unable: list[Any] = []
    (able if 1 <= beta <= 2 else unable).append("newton")
    (able if beta == 2 else unable).append(HALS(inner=2))
    options["solver"] = draw.one(*able)
    if unable and draw.chance(0.05):
        options["solver"] = draw.one(*unable)
        call.wrong.add("solver")


def _penalized(call: Call) -> bool:
    alpha_W, alpha_H = call.options.get("alpha_W", 0.0), call.options.get("alpha_H", "same")
    return bool(alpha_W or (alpha_H != "same" and alpha_H))


def _as_sparse(draw: Draw, call: Call) -> None:
    assert call.dense is not None
    dense = call.dense.astype(call.dtype)
    m, n = dense.shape
    how = draw.one("csr", "csc", "coo", "csr_array", "group", "group", "dask")
    call.kind += f" sparse {how}"
    options = call.options
    if "block_rows" in options:
        options["block_rows"] = draw.integer(1, m + 5)
        call.doubtful.add("block_rows")
    if options["missing"] != "error":
        options["missing"] = "error"
    if how in ("csr", "csc", "coo", "csr_array"):
        call.V = getattr(scipy.sparse, f"{how}_matrix" if how != "csr_array" else how)(dense)
    elif how == "dask":
        rows = tuple(size for size in draw.cut(m) if size)
        call.V = da.from_array(dense, chunks=(rows, -1)).map_blocks(
            scipy.sparse.csr_array, dtype=dense.dtype, meta=scipy.sparse.csr_array((0, 0))
        )
    else:
        X: Any = scipy.sparse.csr_matrix(dense)
        group = zarr.create_group(call.folder / "cells.zarr")
        told: Any = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [m, n]}
        group.attrs.update(told)
        for name in ("data", "indices", "indptr"):
            values = getattr(X, name)
            chunks = (draw.integer(1, max(1, len(values))),) if len(values) else (1,)
            filled: Any = {"config": {"write_empty_chunks": True}}
            group.create_array(name, data=values, chunks=chunks, **filled)
        call.V = str(call.folder / "cells.zarr")


def _weigh(draw: Draw, call: Call) -> None:
    assert call.dense is not None
    M: Array = draw.random.random(call.dense.shape) < draw.one(0.5, 0.9)
    M.flat[draw.integer(0, M.size - 1)] = True
    if draw.chance(0.2):
        M[draw.integer(0, len(M) - 1)] = False
    if not (call.dense[M] > 0).any():
        M[:] = True
    weights: Any = M
    if draw.chance(0.4):
        weights = M * (0.5 + draw.random.random(M.shape))
    call.weights = np.asarray(weights, float)
    float_numpy = isinstance(call.V, np.ndarray) and call.V.dtype.kind == "f"
    if float_numpy and call.V.dtype.isnative and draw.chance(0.5):
        call.V = np.where(M, call.V, draw.one(np.nan, np.inf, -1.0, 1e300)).astype(call.V.dtype)
        call.kind += " with anything where it is hidden"
    how = draw.one("numpy", "dask", "zarr")
    if how == "dask":
        chunks = call.V.chunks if isinstance(call.V, da.Array) else (draw.cut(len(M)), -1)
        weights = da.from_array(weights, chunks=chunks)
    if how == "zarr":
        weights = zarr.create_array(MemoryStore(), data=weights)
    call.options["weights"] = weights


def _weights(call: Call) -> Array:
    assert call.dense is not None
    return np.ones(call.dense.shape) if call.weights is None else call.weights


# ------------------------------------------------------------------------------------ answers
def check_asked(call: Call, result: dask_nmf.Result) -> None:
    """The documented form, the true objective, one that never rises, and what was asked for."""
    assert call.dense is not None
    check_form(call, result)
    W, H = (x.astype(float) for x in factors(result))
    options, (m, n), M = call.options, call.shape, _weights(call)
    loss = options.get("loss", "frobenius")
    beta = float(BETAS.get(loss, loss) if isinstance(loss, str) else loss)
    V = np.where(M > 0, call.dense, 1.0)
    value = oracle.divergence(V, W @ H, beta, M)
    r, alpha_W = float(options.get("l1_ratio", 0.0)), float(options.get("alpha_W", 0.0))
    alpha_H = options.get("alpha_H", "same")
    of_H = alpha_W if alpha_H == "same" else float(alpha_H)
    true = value
    for F, size in ((W, n * alpha_W), (H, m * of_H)):
        true += size * (r * F.sum() + (1 - r) / 2 * np.sum(F**2))
    single = call.dtype == np.float32
    scale = float(np.sum(M * (V**beta if beta > 0 else np.ones_like(V))))
    last = result.history[-1]
    demand(last.objective is not None and np.isfinite(last.objective), f"{last} has no objective")
    far = abs((last.objective or 0.0) - true)
    plain = beta == 2 and call.weights is None
    near = (1e-3 if plain else 1e-6) * true + (1e-7 if single else 1e-10) * scale
    demand(far <= near, f"objective {last.objective!r}, in truth {true!r}")
    for a, b in pairwise(result.history):
        rise = (b.objective or 0.0) - (a.objective or 0.0)
        demand(rise <= 1e-9 * true + (1e-6 if single else 1e-12) * scale, f"it rises: {a}, {b}")
    if (fixed := options.get("fixed_H")) is not None:
        known = np.asarray(fixed).astype(call.dtype)
        demand(np.array_equal(factors(result)[1][: len(known)], known), "known rows of H moved")
    if options.get("sum_to_one"):
        off = np.abs(W.sum(axis=1) - 1).max()
        demand(off < (1e-5 if single else 1e-12), f"rows of W are off one by {off}")
    if call.weights is not None and result.plan and not result.plan.transposed:
        hidden = ~M.any(axis=1)
        demand(not W[hidden].any(), "W has something to say about rows without weight")
