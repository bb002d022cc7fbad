"""What would go wrong on a cluster, found out before the run: `dask-nmf doctor`."""

import importlib.metadata
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask
import zarr
from dask.utils import format_bytes, parse_timedelta
from threadpoolctl import threadpool_info
from zarr.core.sync import sync

from dask_nmf.commits import create
from dask_nmf.geometry import TARGET_BYTES, WORKER_BYTES
from dask_nmf.io import absolute, open_matrix

OK, WARNING, WRONG = "ok", "warning", "wrong"

_PACKAGES = ("dask_nmf", "dask", "distributed", "numpy", "scipy", "zarr")
_MOST_OFF = 30.0  # seconds between two clocks: logs are read side by side; S3 refuses at 15 min
_LEAST_FAILURES = 10  # a task may be on so many dying workers without being their killer
_LONGEST_SILENCE, _LONGEST_WAIT = 120.0, 3600.0  # seconds: of a worker, and for the first one


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; advice : how to mend it, where it is not as it should be."""

    level: str
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8} {self.what}" + (f"\n{'':9}-> {self.advice}" if self.advice else "")


def examine(client: Any, V: Any = None, out: Any = None) -> Iterator[Finding]:
    """What is found on the cluster of a `distributed.Client`, one thing after the other.

    V, out : paths or URLs, which the workers are then asked to read and write; below `out` an
    object is made, and removed.
    """
    yield from _query_planning()
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        yield Finding(
            WRONG,
            f"{client.scheduler.address} has no workers",
            "start some: dask worker ADDRESS --nthreads 1 --memory-limit 4GiB",
        )
        return
    versions = _installed(client)
    yield from _compared(versions)
    if _missing(versions["dask_nmf"]):
        return  # what follows sends our own functions there
    yield from _sizes(workers)
    yield from _blas(client, workers)
    yield from _settings(client)
    yield from _clocks(client)
    if V is not None:
        yield from _readable(client, V)
    if out is not None:
        yield from _writable(client, out)


# ------------------------------------------------------------------------------ what is installed
def _query_planning() -> Iterator[Finding]:
    if dask.config.get("array.query-planning", None):
        yield Finding(
            WRONG,
            "dask's array query planning is on",
            "set array.query-planning to False before dask.array is imported: "
            "DASK_ARRAY__QUERY_PLANNING=False",
        )
    else:
        yield Finding(OK, "dask's array query planning is off")


def _installed(client: Any) -> dict[str, dict[str, Any]]:
    """Versions by package and place, or the error in asking for one.

    Asked for by functions of the standard library, which are there whatever else is missing.
    """
    found = {"Python": _on_all(client, platform.python_version)}
    for name in _PACKAGES:
        found[name] = _on_all(client, partial(importlib.metadata.version, name))
    return found


def _compared(versions: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    for name, by_place in versions.items():
        if missing := _missing(by_place):
            yield Finding(
                WRONG,
                f"{name} is not installed at {', '.join(missing)}",
                "install it there: scheduler and workers import what the client sends by name",
            )
            continue
        found = {str(version) for version in by_place.values()}
        if len({v.rsplit(".", 1)[0] for v in found} if name == "Python" else found) > 1:
            told = ", ".join(f"{place} {version}" for place, version in by_place.items())
            yield Finding(
                WRONG if name in ("dask_nmf", "dask", "distributed", "Python") else WARNING,
                f"{name} differs: {told}",
                f"install the same version of {name} everywhere",
            )
        else:
            yield Finding(OK, f"{name} {', '.join(sorted(found))} everywhere")


def _missing(by_place: Mapping[str, Any]) -> list[str]:
    return [place for place, version in by_place.items() if isinstance(version, Exception)]


def _on_all(client: Any, call: Callable[[], Any]) -> dict[str, Any]:
    """What a call gives at each place, or the error that it ends with."""
    found = {"client": _asked(call), "scheduler": _asked(partial(client.run_on_scheduler, call))}
    return found | dict(client.run(call, on_error="return"))


def _asked(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return error


# ------------------------------------------------------------------------------- how they are set
def _sizes(workers: Mapping[str, Any]) -> Iterator[Finding]:
    threads = sorted(worker["nthreads"] for worker in workers.values())
    limits = sorted(worker["memory_limit"] or 0 for worker in workers.values())
    told = f"{len(workers)} worker(s), threads {_span(threads)}, memory "
    told += "without a limit" if not limits[-1] else _span([format_bytes(x) for x in limits])
    if not limits[0]:
        yield Finding(
            WARNING,
            told,
            "start each with --memory-limit: without it a run plans with no limit unless it is "
            "given memory=",
        )
    elif 0.6 * limits[0] < WORKER_BYTES + 4 * threads[-1] * TARGET_BYTES:
        yield Finding(
            WARNING,
            told,
            "little for each thread: blocks of V will be small; fewer threads (--nthreads 1) or "
            "a higher --memory-limit",
        )
    else:
        yield Finding(OK, told)
    if len({*threads}) > 1 or limits[-1] > 1.2 * limits[0]:
        yield Finding(
            WARNING,
            "the workers differ",
            "a run is planned for the least memory and the most threads among them",
        )
    bare = [address for address, worker in workers.items() if not worker.get("nanny")]
    if bare:
        yield Finding(
            WARNING,
            f"without a nanny: {', '.join(bare[:3])}{' and more' if len(bare) > 3 else ''}",
            "start them without --no-nanny: it restarts a worker that dies, and sets one BLAS "
            "thread and an allocator that gives memory back",
        )


def _span(values: list[Any]) -> str:
    return str(values[0]) if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def _blas(client: Any, workers: Mapping[str, Any]) -> Iterator[Finding]:
    """Products run in one BLAS thread whatever is set; the rest of a process may not."""
    found: dict[str, Any] = client.run(_blas_threads, on_error="return")
    counts = [x for x in found.values() if not isinstance(x, Exception)]
    threads = max(worker["nthreads"] for worker in workers.values())
    most = max(counts, default=1)
    if most > 1 and threads > 1:
        yield Finding(
            WARNING,
            f"BLAS takes up to {most} threads in workers of {threads} threads",
            "set OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 where workers are "
            "started (dask_nmf's own products take one in any case)",
        )
    else:
        yield Finding(OK, f"BLAS threads per worker: {_span(sorted(counts or [1]))}")


def _blas_threads() -> int:
    return max((x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"), default=1)


def _settings(client: Any) -> Iterator[Finding]:
    """What the scheduler alone reads."""

    def get(key: str) -> Any:
        ask = partial(dask.config.get, f"distributed.scheduler.{key}")
        return client.run_on_scheduler(ask)

    failures = int(get("allowed-failures"))
    if failures < _LEAST_FAILURES:
        yield Finding(
            WARNING,
            f"allowed-failures is {failures}",
            "start the scheduler with DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=100: where "
            "workers come and go, a task that was on some of them counts as their killer",
        )
    else:
        yield Finding(OK, f"allowed-failures is {failures}")
    lost = "a worker that hangs counts as lost only after so long"
    none = "after the last worker is lost a run would wait so long for another"
    for key, longest, good, why in (
        ("worker-ttl", _LONGEST_SILENCE, "60s", lost),
        ("no-workers-timeout", _LONGEST_WAIT, "10m", none),
    ):
        value = get(key)
        if value is None or parse_timedelta(value) > longest:
            name = f"DASK_DISTRIBUTED__SCHEDULER__{key.upper().replace('-', '_')}"
            yield Finding(
                WARNING,
                f"{key} is {value or 'endless'}",
                f"start the scheduler with {name}={good}: {why}",
            )
        else:
            yield Finding(OK, f"{key} is {value}")


def _clocks(client: Any) -> Iterator[Finding]:
    before = time.time()
    there = _on_all(client, time.time)
    after = time.time()
    off = {
        place: max(before - now, now - after, 0.0)
        for place, now in there.items()
        if not isinstance(now, Exception)
    }
    worst = max(off, key=lambda place: off[place])
    if off[worst] > _MOST_OFF:
        yield Finding(
            WARNING,
            f"the clock at {worst} is {off[worst]:.0f} s off the client's",
            "run an NTP client there: object stores refuse requests that are 15 minutes off",
        )
    else:
        yield Finding(OK, f"clocks agree within {max(off[worst], after - before):.1f} s")


# ------------------------------------------------------------------------------------ the storage
def _readable(client: Any, V: Any) -> Iterator[Finding]:
    ask = partial(_shape, V if _is_url(V) else absolute(os.fspath(V)))
    found = {"client": _asked(ask)} | dict(client.run(ask, on_error="return"))
    failed = {place: x for place, x in found.items() if isinstance(x, Exception)}
    yield _reached(f"V at {V}", "opened", failed)


def _shape(V: Any) -> tuple[int, int]:
    return open_matrix(V).shape


def _writable(client: Any, out: Any) -> Iterator[Finding]:
    place = out if _is_url(out) else absolute(os.fspath(out))
    found = client.run(_created_once, place, on_error="return")
    failed = {p: x for p, x in found.items() if isinstance(x, Exception)}
    twice = [p for p, x in found.items() if x is False]
    yield _reached(f"out at {out}", "written", failed)
    if twice:
        yield Finding(
            WRONG,
            f"out at {out} replaces what it is asked to create",
            "take a store with conditional writes (a disk, S3, GCS, Azure, Ceph): "
            "else two calls at one out could both think that it is theirs",
        )
    elif not failed:
        yield Finding(OK, f"out at {out} refuses to create what is there")


def _created_once(out: str) -> bool:
    """Whether a second object under one name is refused; beside `out`, and removed."""
    group = zarr.open_group(f"{out.rstrip('/')}.doctor-{secrets.token_hex(8)}", mode="w")
    try:
        create(group.store_path / "once", {"by": "the first"})
        return not create(group.store_path / "once", {"by": "the second"})
    finally:
        sync(group.store_path.delete_dir())


def _reached(what: str, how: str, failed: Mapping[str, Exception]) -> Finding:
    if not failed:
        return Finding(OK, f"{what}: {how} everywhere")
    place, error = next(iter(failed.items()))
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    return Finding(
        WRONG,
        f"{what}: not {how} at {place}{more}: {type(error).__name__}: {error}",
        "take a path that client and workers share, or a URL; credentials go into the environment "
        "of the workers",
    )


def _is_url(place: Any) -> bool:
    return isinstance(place, str) and "://" in place
