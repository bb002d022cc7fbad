"""The first pass of a divergence: sums over the entries that have a weight, and some rows."""

from typing import Any

import dask.array as da
import numpy as np
from scipy.sparse import issparse, vstack

from dask_nmf.boxes import as_dense
from dask_nmf.csr import row_slabs
from dask_nmf.divergences import Beta
from dask_nmf.entrywise import hidden_values
from dask_nmf.firstpass import first_pass, take_rows
from dask_nmf.geometry import sample_height
from dask_nmf.matrix import Matrix
from dask_nmf.model import some_rows
from dask_nmf.planner import Job
from dask_nmf.tasks import inspect
from dask_nmf.types import Array, FirstPass, Sample, Sums
from dask_nmf.watch import compute

_SLAB_BYTES = 2**22  # of a block in float64, with some copies beside it
_MAXIMA, _MINIMUM = [2, 9], 4  # where they are in what is found of a block


def sums_of(job: Job, matrix: Matrix) -> Sums:
    """V's sums, of the first pass or to compare with it: one pass."""
    if isinstance(job.loss, Beta):
        return look_first(job, matrix).sums
    return first_pass(matrix.blocks(job.plan.grid)).sums


def look_first(job: Job, matrix: Matrix) -> FirstPass:
    """Sums over V's entries; and, for a start, some rows of V where the solver makes use of them.

    Raises
    ------
    ValueError
        If V has zeros and the loss cannot do with them, or if no entry has a weight.
    """
    V, M = matrix.observed(job.plan.grid)
    assert isinstance(job.loss, Beta)
    loss, rows = job.loss, None
    if job.from_sample:
        (m, n), k = V.shape, job.options.rank
        size = sample_height(m, n, k, matrix.sparse)
        rows = some_rows(m, size, job.options.seed)
    more = () if M is None else (M,)
    sizes = tuple((size,) * blocks for size, blocks in zip((1, 12), V.numblocks, strict=True))
    told: dict[str, Any] = {"dtype": np.float64, "chunks": sizes, "meta": np.empty((0, 0))}
    found = da.map_blocks(_inspected, V, *more, loss=loss, token="nmf-inspect", **told)
    sampled = [] if rows is None else [take_rows(X, rows).to_delayed() for X in (V, *more)]
    found, *sampled = compute(found, *(block for X in sampled for block in X.ravel()))
    sums = _sums(found.reshape(-1, 12))
    _check(sums, loss, V.dtype)
    if rows is None:
        return FirstPass(sums)
    values, weights = sampled[: V.numblocks[0]], sampled[V.numblocks[0] :]
    M_s = np.concatenate(weights) if weights else None
    if not matrix.sparse:
        return FirstPass(sums, sample=Sample(np.concatenate(values), weights=M_s))
    V_s: Any = vstack(values, format="csr")
    return FirstPass(sums, sample=Sample(V_s.data, V_s.indices, V_s.indptr, M_s))


def _inspected(V_b: Any, M_b: Array | None = None, *, loss: Beta, block_info: Any = None) -> Array:
    """What `inspect` finds in the entries that have a weight; then their own terms and weight.

    [[total, squares, maximum, mixed, minimum, own, weight, and of hidden entries: total, squares,
    maximum, own, number]]
    """
    with np.errstate(divide="ignore", over="ignore"):  # refused, or hidden
        return _found(V_b, M_b, loss, block_info)


def _found(V_b: Any, M_b: Array | None, loss: Beta, block_info: Any) -> Array:
    (top, _), columns = block_info[0]["array-location"]
    parts = []
    for slab in row_slabs(V_b if M_b is None else M_b, _SLAB_BYTES):
        V_s = V_b[slab]
        M_s = None if M_b is None else M_b[slab].astype(np.float64)
        place = {
            0: {"array-location": ((top + slab.start, top + slab.start + V_s.shape[0]), columns)}
        }
        parts.append(_of_all(V_s, loss, place) if M_s is None else _of_some(V_s, M_s, loss, place))
    found = np.array(parts)
    total = found.sum(axis=0)
    total[_MAXIMA], total[_MINIMUM] = found[:, _MAXIMA].max(axis=0), found[:, _MINIMUM].min()
    return np.asarray(total[np.newaxis])


def _of_all(V_s: Any, loss: Beta, place: Any) -> list[float]:
    data = V_s.data if issparse(V_s) else V_s
    low = float(data.min(initial=np.inf))
    if issparse(V_s) and V_s.nnz < V_s.shape[0] * V_s.shape[1]:
        low = 0.0
    own, size = float(loss.own(data.astype(np.float64)).sum()), float(np.prod(V_s.shape))
    return [*inspect(V_s, block_info=place)[0], low, own, size, *5 * [0.0]]


def _of_some(V_s: Any, M: Array, loss: Beta, place: Any) -> list[float]:
    v = as_dense(V_s).astype(np.float64)
    held, there = v[(M == 0) & hidden_values(v)], M > 0
    v = np.where(there, v, 0.0)
    mixed = inspect(v * M, block_info=place)[0, 3]
    low = float(v.min(where=there, initial=np.inf))
    own = float((loss.own(np.where(there, v, 1.0)) * M).sum())
    sums = [(v * M).sum(), (v * v * M).sum(), v.max(), mixed, low, own, M.sum()]
    of_held = float(loss.own(held).sum())
    return [*sums, held.sum(), (held * held).sum(), held.max(initial=0.0), of_held, held.size]


def _sums(found: Array) -> Sums:
    with np.errstate(over="ignore"):
        add = found.sum(axis=0)
    hidden = None
    if add[11]:
        total, squares, _, own, number = (float(x) for x in add[7:])
        hidden = Sums(total, squares, float(found[:, 9].max()), own=own, weight=number)
    return Sums(
        float(add[0]),
        float(add[1]),
        float(found[:, 2].max()),
        float(add[3]),
        minimum=float(found[:, 4].min()),
        own=float(add[5]),
        weight=float(add[6]),
        hidden=hidden,
    )


def _check(sums: Sums, loss: Beta, dtype: np.dtype[Any]) -> None:
    if not sums.weight:
        raise ValueError("no entry of V has a weight above 0: there is nothing to fit")
    loss.check_least(sums.minimum)
    info = np.finfo(dtype)
    if not (np.isfinite(sums.own) and sums.squares < float(info.max)):
        raise ValueError(
            f"V's entries, up to {sums.maximum:.3g}, leave the range of {dtype} in the sums of "
            "this loss: multiply V by a constant (the factors scale with it)"
        )
