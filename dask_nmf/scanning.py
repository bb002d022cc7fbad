"""Many runs over one V, ranks x restarts, that share each read of it."""

import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import zarr

from dask_nmf.driver import factorize
from dask_nmf.fitting import limit_of
from dask_nmf.io import absolute, open_weighted
from dask_nmf.lockstep import in_lockstep
from dask_nmf.matrix import Matrix, Missing, Shared
from dask_nmf.options import check_int, parse_memory
from dask_nmf.planner import plan
from dask_nmf.plans import Plan
from dask_nmf.result import Result
from dask_nmf.scans import Scan
from dask_nmf.scheduler import active_scheduler
from dask_nmf.transforming import transform
from dask_nmf.types import ConvergenceWarning
from dask_nmf.watch import release

_EACH = ("sums", "graph", "W", "H", "model")  # parts of a plan that each run has for itself
_PLANNED = ("loss", "solver", "init", "max_passes", "block_rows", "fixed_H", "sum_to_one")
_REFIT = ("loss", "alpha_W", "l1_ratio", "sum_to_one")
_OURS = {"rank", "seed", "out", "callback", "memory", "weights", "missing"}


def scan(
    V: Any,
    ranks: int | Iterable[int],
    *,
    restarts: int = 10,
    seed: int = 0,
    out: Any = None,
    memory: int | str | None = None,
    weights: Any = None,
    missing: Missing = "error",
    **options: Any,
) -> Scan:
    """Factor V at several ranks, from several starts each, with one read of V per sweep for all.

    Each run is what `factorize` with that rank and seed gives, to the bit: it only shares its reads
    with the others, and leaves the stream when it has converged.

    Parameters
    ----------
    V, weights, missing
        As for `factorize`.
    ranks : int or iterable of int
    restarts : int
        Runs of each rank, with the seeds `seed`, `seed` + 1 and so on.
    out : path, URL or zarr group, optional
        Where the results go: each run's at "rank-005/seed-0" and so on, as `factorize` writes them.
        The same call made again returns what is finished, and goes on with what is not.
    memory : int or str, optional
        Limit for each worker process. Runs that do not fit beside each other make one stream after
        another.
    **options
        As for `factorize`: loss, solver, init, alpha_W, tol, max_passes and so on.

    Returns
    -------
    Scan

    Raises
    ------
    TypeError, ValueError, FileExistsError, RuntimeError, RunStopped
        As `factorize` does, for any of the runs; what the others have committed stays.

    Notes
    -----
    Cost: as many passes as the longest of the runs in a stream; products and steps of each run.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> V = rng.random((60, 3)) @ rng.random((3, 20))
    >>> found = scan(V, ranks=(2, 3), restarts=2, max_passes=40)
    >>> [len(results) for results in found.results.values()]
    [2, 2]
    >>> found.best(3).error < found.best(2).error
    True
    """
    if clash := sorted(_OURS & set(options)):
        raise TypeError(f"scan does not take {', '.join(clash)}: see ranks=, restarts=, seed=")
    seed = check_int("seed", seed, 0)
    seeds = range(seed, seed + check_int("restarts", restarts, 1))
    wanted = _ranks(ranks)
    shared = Shared()
    opened = open_weighted(V, missing, weights)
    matrix = replace(opened, shared=shared)
    if matrix.weights is not None:
        matrix = replace(matrix, weights=replace(matrix.weights, shared=shared))
    told: dict[str, Any] = {"memory": memory, **options}
    planned = {"out": out and "out", "memory": memory, **_some(options, _PLANNED)}
    plans = {k: plan(matrix, k, **planned) for k in wanted}
    found: dict[int, list[Result]] = {k: [] for k in wanted}
    try:
        for stream in _streams([(k, s) for k in wanted for s in seeds], plans, memory):
            calls = [partial(_run, matrix, k, s, _place(out, k, s), told) for k, s in stream]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the table says it
                results = in_lockstep(calls, shared.passing)
            for (k, _), result in zip(stream, results, strict=True):
                found[k].append(result)
    finally:
        for held in shared.held.values():
            release(held.source)
    refit = partial(transform, opened, memory=memory, **_some(options, _REFIT))
    return Scan({k: tuple(results) for k, results in found.items()}, refit)


def _some(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


def _run(V: Matrix, rank: int, seed: int, out: Any, options: dict[str, Any]) -> Result:
    return factorize(V, rank, seed=seed, out=out, **options)


def _ranks(ranks: Any) -> list[int]:
    if isinstance(ranks, (str, bytes)) or not isinstance(ranks, (int, Iterable)):
        raise TypeError(f"ranks must be ints, such as range(2, 11), got {ranks!r}")
    wanted = [ranks] if isinstance(ranks, int) else list(ranks)
    if not wanted:
        raise ValueError("ranks must hold at least one rank")
    checked = [check_int("ranks", k, 1) for k in wanted]
    if len(set(checked)) < len(checked):
        raise ValueError(f"ranks must all be different, got {checked}")
    return checked


def _place(out: Any, rank: int, seed: int) -> Any:
    """Where a run's results go."""
    if out is None:
        return None
    below = f"rank-{rank:03d}/seed-{seed}"
    if isinstance(out, zarr.Group):
        return out.require_group(below)
    return f"{absolute(os.fspath(out)).rstrip('/')}/{below}"


def _streams(
    calls: list[tuple[int, int]], plans: dict[int, Plan], memory: Any
) -> list[list[tuple[int, int]]]:
    """The calls in as many streams as the memory asks for."""
    limit = limit_of(None if memory is None else parse_memory(memory), active_scheduler())
    streams: list[list[tuple[int, int]]] = [[]]
    for call in calls:
        longer = [*streams[-1], call]
        if streams[-1] and limit is not None and peak_bytes(longer, plans) > limit:
            streams.append([call])
        else:
            streams[-1] = longer
    return streams


def peak_bytes(calls: list[tuple[int, int]], plans: dict[int, Plan]) -> int:
    """Predicted peak of one process with these runs in one stream."""
    parts = [plans[k].parts for k, _ in calls]
    each = sum(part[name] for part in parts for name in _EACH)
    return each + sum(max(part[name] for part in parts) for name in parts[0] if name not in _EACH)
