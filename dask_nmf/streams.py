"""Runs over one V in streams: each stream shares its reads, and has as many runs as fit."""

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import zarr
from dask.utils import format_bytes

from dask_nmf.fitting import limit_of
from dask_nmf.init import Given, make_start
from dask_nmf.io import absolute
from dask_nmf.lockstep import in_lockstep
from dask_nmf.matrix import Matrix, Shared
from dask_nmf.options import parse_memory
from dask_nmf.output import make_scan_places
from dask_nmf.planner import plan
from dask_nmf.plans import Plan
from dask_nmf.result import Result
from dask_nmf.scheduler import active_scheduler
from dask_nmf.types import ConvergenceWarning
from dask_nmf.watch import release

logger = logging.getLogger("dask_nmf")

_EACH = ("drawn", "sums", "graph", "W", "H", "model")  # parts of a plan that each run has alone
_THREAD_BYTES = 2**22
_IN_A_PASS = ("blocks", "half-steps", "sums")  # those of which nothing is left between passes
_OF_RANK = ("sketch",)  # those that runs of a rank share, of a V that they see alike
_PLANNED = (
    *("loss", "solver", "init", "max_passes", "block_rows", "fixed_H", "sum_to_one", "perturb"),
    "held_out",
)


def in_streams(
    run: Callable[..., Result],
    V: Matrix,
    ranks: Sequence[int],
    seeds: Sequence[int],
    out: Any,
    options: dict[str, Any],
) -> dict[int, list[Result]]:
    """By rank, what `run` makes of each seed; at `out` in groups such as "rank-005/seed-0".

    options : as for `factorize`, but for what is in V.
    """
    memory = options.get("memory")
    same = isinstance(make_start(options.get("init", "random")), Given)
    if same and len(seeds) > 1 and not (options.get("perturb") or options.get("held_out")):
        raise ValueError(
            "restarts must be 1 for an init of (W0, H0), where each run would begin: give perturb= "
            "or held_out=, which depend on the seed, or another init"
        )
    shared = Shared()
    matrix = replace(V, shared=shared)
    if matrix.weights is not None:
        matrix = replace(matrix, weights=replace(matrix.weights, shared=shared))
    planned = {name: options[name] for name in _PLANNED if name in options}
    plans = {k: plan(matrix, k, out=out and "out", memory=memory, **planned) for k in ranks}
    found: dict[int, list[Result]] = {k: [] for k in ranks}
    if out is not None:
        make_scan_places(out, ranks, matrix.uri)
    alike = not options.get("perturb")
    runs = [(k, seed) for k in ranks for seed in seeds]
    limit = limit_of(None if memory is None else parse_memory(memory), active_scheduler())
    streams = _streams(runs, plans, limit, alike)
    try:
        for number, stream in enumerate(streams, 1):
            at_once = steps_at_once(stream, plans, alike, limit)
            most = format_bytes(peak_bytes(stream, plans, alike, at_once))
            told = number, len(streams), len(stream), most
            logger.info("stream %d of %d: %d runs, up to %s per process", *told)
            calls = [
                partial(run, matrix, k, seed=seed, out=_place(out, k, seed), **options)
                for k, seed in stream
            ]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the status says it
                results = in_lockstep(calls, shared.passing, at_once)
            for (k, _), result in zip(stream, results, strict=True):
                found[k].append(result)
    finally:
        for held in shared.held.values():
            release(held.source)
    return found


def _place(out: Any, rank: int, seed: int) -> Any:
    """Where a run's results go."""
    if out is None:
        return None
    below = f"rank-{rank:03d}/seed-{seed}"
    if isinstance(out, zarr.Group):
        return out.require_group(below)
    return f"{absolute(os.fspath(out)).rstrip('/')}/{below}"


def _streams(
    calls: list[tuple[int, int]], plans: dict[int, Plan], limit: int | None, alike: bool
) -> list[list[tuple[int, int]]]:
    """The calls in as many streams as the limit on memory asks for."""
    streams: list[list[tuple[int, int]]] = [[]]
    for call in calls:
        longer = [*streams[-1], call]
        if streams[-1] and limit is not None and peak_bytes(longer, plans, alike) > limit:
            streams.append([call])
        else:
            streams[-1] = longer
    return streams


def peak_bytes(
    calls: list[tuple[int, int]], plans: dict[int, Plan], alike: bool, at_once: int = 1
) -> int:
    """Predicted peak of one process with these runs in one stream.

    alike : whether they see the same V, and so have the same sketch.
    at_once : how many make steps on a model beside each other, in the room of a pass at first.
    """
    parts = [plans[k].parts for k, _ in calls]
    ranks = {k: plans[k].parts for k, _ in calls}.values() if alike else parts
    peak = sum(part[name] for part in parts for name in _EACH)
    # What the pass before has added to the sketch is still there; and what its thread keeps.
    peak += sum(part["model"] + _THREAD_BYTES for part in parts)
    peak += sum(part[name] for part in ranks for name in _OF_RANK)
    once = [name for name in parts[0] if name not in _EACH + _OF_RANK]
    step = max(plans[k].step_bytes for k, _ in calls)
    room = min(sum(part[name] for name in _IN_A_PASS) for part in parts)
    beside = max(0, at_once * step - max(step, room))
    return peak + sum(max(part[name] for part in parts) for name in once) + beside


def steps_at_once(
    calls: list[tuple[int, int]], plans: dict[int, Plan], alike: bool, limit: int | None
) -> int:
    """How many runs may make steps on a model beside each other."""
    most = max(limit or 0, peak_bytes(calls, plans, alike))
    numbers = range(2, (os.cpu_count() or 1) + 1)
    return max((n for n in numbers if peak_bytes(calls, plans, alike, n) <= most), default=1)
