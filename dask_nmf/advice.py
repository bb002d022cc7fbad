"""What could be better about a plan, each with what it gains."""

from collections.abc import Iterator

from dask.utils import format_bytes, format_time

from dask_nmf.blocks import MAX_BLOCKS
from dask_nmf.bundles import MOST_TASKS
from dask_nmf.geometry import Geometry
from dask_nmf.matrix import Matrix
from dask_nmf.plans import Plan

CHUNK_SECONDS = {"local": 60e-6, "remote": 2e-3}
"""Per chunk (or inner chunk) beside its decoding: opened and mapped, or asked for ten at a time."""

DECODING = {
    "blosc-lz4": 2e9,
    "blosc-zstd": 1e9,
    "zstd": 0.9e9,
    "gzip": 0.25e9,
    "zlib": 0.25e9,
    "bz2": 0.03e9,
    "lzma": 0.1e9,
}
"""Bytes per second and thread, about: measured on float32 counts."""

_LEAST_GAIN = 0.05  # seconds per pass: less is not worth a line
_LEAST_SHARE = 0.2  # of a pass, likewise


def advise(plan: Plan, geometry: Geometry, matrix: Matrix, cores: int) -> Iterator[str]:
    """Each piece of advice, the most useful first; `geometry` is that of V, with all threads."""
    if plan.rank > min(plan.shape):
        yield (
            f"rank {plan.rank:,} is above the {min(plan.shape):,} {_shorter(plan)} of V, which "
            "reproduce it exactly: take a smaller one"
        )
    yield from _more_memory(plan, geometry)
    if matrix.stored:
        if matrix.sparse:
            yield from _smaller_chunks(plan, matrix)
        else:
            yield from _other_chunks(plan, geometry, matrix)
        yield from _other_codec(plan)
    if plan.blocks > MAX_BLOCKS and plan.tasks > MOST_TASKS:
        yield (
            f"{plan.tasks:,} tasks a pass keep dask's scheduler busy for "
            f"{format_time(plan.tasks * 7e-4)}: take larger blocks, or rechunk V (dask-nmf rechunk)"
        )
    if plan.processes == 1 and geometry.threads > cores:
        yield (
            f"{geometry.threads} threads on {cores} cores: set "
            f"dask.config.set(num_workers={cores}), which needs less memory and is no slower"
        )


def _shorter(plan: Plan) -> str:
    return "rows" if plan.shape[0] < plan.shape[1] else "columns"


def _more_memory(plan: Plan, geometry: Geometry) -> Iterator[str]:
    if plan.reads_per_sweep > 1:
        needs = min(side.peak_bytes(side.piece[0]) for side in (geometry, geometry.T))
        yield (
            f"neither a row nor a column of chunks fits in {format_bytes(plan.memory or 0)}: with "
            f"memory= of {format_bytes(needs)}, or V rechunked to whole rows (dask-nmf rechunk), "
            "each sweep reads V once instead of twice"
        )
    if plan.threads < geometry.threads:
        needs = (
            geometry.peak_bytes(plan.block[0])
            if not plan.transposed
            else geometry.T.peak_bytes(plan.block[1])
        )
        yield (
            f"only {plan.threads} of {geometry.threads} threads fit in "
            f"{format_bytes(plan.memory or 0)}: raise memory= to {format_bytes(int(1.01 * needs))} "
            "for all"
        )
    if 0 < plan.kept_blocks < plan.blocks:
        all_of_it = plan.peak_bytes + (plan.blocks - plan.kept_blocks) * (
            geometry.block_bytes(*plan.block[:: -1 if plan.transposed else 1]) // plan.processes
        )
        needs = format_bytes(int(all_of_it / 0.9))
        yield f"with memory= of {needs} all of V would be read only once"


def _other_chunks(plan: Plan, geometry: Geometry, matrix: Matrix) -> Iterator[str]:
    source = matrix.source
    inner = source.chunks
    count = -(-plan.shape[0] // inner[0]) * -(-plan.shape[1] // inner[1])
    where = "local" if "file://" in plan.V else "remote"
    workers = min(plan.blocks, plan.processes * plan.threads)
    lost = count * CHUNK_SECONDS[where] / workers
    size = inner[0] * inner[1] * geometry.stored
    if size < 2**20 and lost > _LEAST_GAIN:
        yield (
            f"{count:,} chunks of {format_bytes(size)} cost about {format_time(lost)} a pass "
            "beside their decoding: rechunk V to chunks of some 16 MiB (dask-nmf rechunk), or "
            "switch on zarr's codec pipeline zarrs"
        )
    at_once = plan.processes * geometry.threads
    if (
        plan.blocks < at_once
        and plan.decoded_bytes > at_once * 2**22
        and geometry.n * geometry.itemsize < 2**24
    ):
        rows = plan.shape[0] // at_once // inner[0] * inner[0]
        how = f"pass block_rows={rows}" if rows else "rechunk it to rows (dask-nmf rechunk)"
        yield (
            f"V is had in {plan.blocks} block(s), too few for {at_once} threads: {how}: up to "
            f"{at_once / plan.blocks:.0f} times faster"
        )


def _smaller_chunks(plan: Plan, matrix: Matrix) -> Iterator[str]:
    size = matrix.source.shared_bytes
    twice = (plan.blocks - 1) * size
    if twice > _LEAST_SHARE * plan.decoded_bytes:
        yield (
            f"blocks begin within chunks, and two of them decode one: {format_bytes(twice)} more a "
            f"pass. Write V's data and indices in chunks of some 1 MiB (now {format_bytes(size)})"
        )


def _other_codec(plan: Plan) -> Iterator[str]:
    name = next((name for name in DECODING if name in plan.codec.split(" + ")), None)
    if name is None:
        return
    workers = min(plan.blocks, plan.processes * plan.threads)
    now, best = (plan.decoded_bytes / DECODING[codec] / workers for codec in (name, "blosc-lz4"))
    if now > 2 * best and now - best > _LEAST_GAIN:
        yield (
            f"{name} decodes slowly: about {format_time(now)} a pass; blosc-lz4 would take about "
            f"{format_time(best)} (dask-nmf rechunk)"
        )
