"""Peak memory of a process, predicted and measured, over shapes, dtypes, chunks, codecs and ranks.

Each run is a process of its own (or a cluster of them). Aims: measured <= predicted, and predicted
<= 1.5 times measured.
"""

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

from dask_nmf import factorize
from dask_nmf.options import parse_memory
from dask_nmf.streams import peak_bytes as stream_bytes
from dask_nmf.streams import steps_at_once
from dask_nmf.types import ConvergenceWarning
from tests.benchmarks.common import arguments, table

CODECS: dict[str, Any] = {
    "none": None,
    "lz4": BloscCodec(cname="lz4", shuffle="shuffle"),
    "zstd": ZstdCodec(level=1),
}
CHUNKS: dict[str, dict[str, Any]] = {
    "rows": {"chunks": (2_000, 2_000)},
    "small rows": {"chunks": (100, 2_000)},
    "squares": {"chunks": (1_000, 500)},
    "columns": {"chunks": (40_000, 100)},
    "shards": {"chunks": (100, 500), "shards": (2_000, 2_000)},
}


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def make(path: Path, m: int, n: int, dtype: str, codec: str, layout: dict[str, Any]) -> str:
    """V of small counts, about 30 % of its size under lz4."""
    if not path.exists():
        V = zarr.create_array(
            path.with_suffix(".part"),
            shape=(m, n),
            dtype=dtype,
            compressors=CODECS[codec],
            overwrite=True,
            **layout,
        )
        rows = min(m, (layout.get("shards") or layout["chunks"])[0])
        counts = np.random.default_rng(0).poisson(3, (rows, n))
        for start in range(0, m, rows):  # the same counts in other columns: they take long to draw
            V[start : start + rows] = np.roll(counts, start // rows, axis=1)[: m - start]
        path.with_suffix(".part").rename(path)
    return str(path)


def measure(group: str | None = None, **run: Any) -> dict[str, Any]:
    """Predicted and measured peak of a run in a new process; see `child` for its keys.

    The process joins the control group (version 1) at `group`, if one is given.
    """

    def join() -> None:
        Path(f"{group}/cgroup.procs").write_text("0")

    command = [sys.executable, "-m", "tests.benchmarks.memory", json.dumps(run)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=join if group else None,
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(
    V: str, rank: int, threads: int = 2, processes: int = 0, passes: int = 4, **options: Any
) -> dict[str, Any]:
    """Factor, and say what was predicted and what it took; processes=0 is threads alone."""
    warnings.simplefilter("ignore", ConvergenceWarning)

    def run() -> Any:
        return factorize(V, rank, tol=0, max_passes=passes, **options)

    if processes:
        from distributed import Client, LocalCluster

        with (
            LocalCluster(
                n_workers=processes,
                threads_per_worker=threads,
                processes=True,
                dashboard_address="127.0.0.1:0",
                memory_limit=options["memory"],
            ) as cluster,
            Client(cluster) as client,
        ):
            plan, peak = run().plan, max(client.run(peak_bytes).values())
    else:
        with dask.config.set(scheduler="threads", num_workers=threads):
            plan, peak = run().plan, peak_bytes()
    runs, alike = [(rank, i) for i in range(options.get("restarts", 1))], "perturb" not in options
    predicted = plan.peak_bytes
    if len(runs) > 1:
        told = runs, {rank: plan}, alike
        predicted = stream_bytes(*told, steps_at_once(*told, parse_memory(options["memory"])))
    return {"predicted": predicted, "measured": peak, "plan": plan.to_json()}


def grid() -> Iterator[tuple[str, str, str, int, dict[str, Any]]]:
    """What is varied around 40,000 x 2,000 float32 in rows, lz4, rank 20, two threads."""
    for name in CHUNKS:
        for codec in CODECS:
            yield name, codec, "float32", 20, {}
    for dtype in ("float64", "uint16"):
        yield "rows", "lz4", dtype, 20, {}
        yield "squares", "none", dtype, 20, {}
    for rank in (2, 100):
        yield "rows", "lz4", "float32", rank, {}
    for threads in (1, 4):
        yield "rows", "lz4", "float32", 20, {"threads": threads}
    yield "rows", "lz4", "float32", 20, {"out": "out.zarr"}
    yield "rows", "lz4", "float32", 20, {"solver": "mu"}
    yield "rows", "lz4", "float32", 20, {"init": "nndsvd", "passes": 6}
    for memory in ("260MB", "500MB"):
        yield "rows", "lz4", "float32", 20, {"memory": memory}
        yield "squares", "zstd", "float32", 20, {"memory": memory}
    for processes, threads in ((2, 1), (1, 2)):
        for name in ("rows", "squares", "columns"):
            more = {"processes": processes, "threads": threads}
            if name != "columns":  # enough blocks for a worker to hold as many as it ever does
                more["block_rows"] = 2_000
            yield name, "lz4", "float32", 20, more


def main() -> None:
    folder, _ = arguments(__doc__, rounds=1)
    rows = []
    for chunks, codec, dtype, rank, more in grid():
        path = folder / f"memory-{chunks.replace(' ', '-')}-{codec}-{dtype}.zarr"
        V = make(path, 40_000, 2_000, dtype, codec, CHUNKS[chunks])
        options = {"memory": "500MB" if "processes" in more else "400MB", **more}
        if "out" in options:
            options |= {"out": str(folder / "out.zarr"), "overwrite": True}
        found = measure(V=V, rank=rank, **options)
        predicted, measured = found["predicted"], found["measured"]
        block = "{} x {}".format(*found["plan"]["block"])
        label = f"{chunks}, {codec}, {dtype}, rank {rank}, {more or ''}"
        rows.append([label, block, predicted / 1e6, measured / 1e6, predicted / measured])
        print(*rows[-1], flush=True)
    table(
        "Peak memory of a process in MB: V of 40,000 x 2,000",
        ["", "block", "predicted", "measured", "ratio"],
        rows,
    )


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        print(json.dumps(child(**json.loads(sys.argv[1]))))
    else:
        main()
