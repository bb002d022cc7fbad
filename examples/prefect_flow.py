"""A factorization in a Prefect flow: pip install prefect; python prefect_flow.py [folder]

The task may be killed and retried at any time: the same call goes on from its last commit. It
hands on a small summary, and the path of the results rather than the results. Without a Prefect
server this runs in Prefect's own temporary one.

What dask_nmf logs (a line per sweep, to the logger `dask_nmf`) is shown in Prefect with
PREFECT_LOGGING_EXTRA_LOGGERS=dask_nmf in the environment.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from prefect import flow, task
from prefect.runtime import task_run

import dask_nmf


@task
def make_V(path: str) -> str:
    random = np.random.default_rng(0)
    V = random.random((3_000, 4)) @ random.random((4, 50)) + 0.1 * random.random((3_000, 50))
    zarr.create_array(path, data=V, chunks=(500, 50), overwrite=True)
    return path


@task(retries=2, retry_delay_seconds=0)
def factorize(V: str, out: str, rank: int, dies: bool = False) -> dict[str, Any]:
    """`dies`: the first try is lost after two sweeps, as by a worker that goes away."""

    def lost(record: dask_nmf.SweepRecord) -> None:
        if dies and task_run.run_count == 1 and record.sweep == 2:
            raise ConnectionError("the machine went away")

    # checkpoint_every: V is tiny here, and by default commits are as rare as 5 % of the time asks.
    options = {"tol": 1e-3, "checkpoint_every": 1, "callback": lost}
    return dask_nmf.factorize(V, rank, out=out, **options).summary()


@task
def report(summary: dict[str, Any]) -> str:
    result = dask_nmf.open_result(summary["out"])  # W is lazy
    share = result.W.sum(axis=0).compute() * result.H.sum(axis=1)
    return " ".join(f"{part:.0%}" for part in share / share.sum())


@flow
def nmf(folder: str, rank: int = 4) -> dict[str, Any]:
    V = make_V(f"{folder}/V.zarr")
    summary: dict[str, Any] = factorize(V, f"{folder}/factors.zarr", rank, dies=True)
    print(f"error {summary['error']:.4f}, gone on after pass {summary['resumed_from']}")
    print(f"shares of the components: {report(summary)}")
    return summary


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        nmf(str(Path(sys.argv[1] if len(sys.argv) > 1 else temporary).resolve()))
