"""A factorization inside a task of another dask job: python dask_task.py [folder]

A pipeline that is itself dask tasks needs no second cluster: what runs in a task finds the client
of its worker. There are two ways.

* As it is: the blocks of V become tasks of the same cluster, and the task that waits for them makes
  room for others meanwhile. For a large V.
* Under the synchronous scheduler: all of it in this one task. For many small V, one task each.

With `out` a task that dask runs again, since its worker was lost, goes on from the last commit.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr
from distributed import Client, LocalCluster

import dask_nmf


def make_V(path: str, seed: int) -> str:
    random = np.random.default_rng(seed)
    V = random.random((2_000, 3)) @ random.random((3, 40)) + 0.1 * random.random((2_000, 40))
    zarr.create_array(path, data=V, chunks=(250, 40), overwrite=True)
    return path


def over_the_cluster(V: str, out: str) -> dict[str, Any]:
    return dask_nmf.factorize(V, 3, out=out, tol=1e-3, block_rows=250).summary()


def in_this_task(V: str, out: str) -> dict[str, Any]:
    with dask.config.set(scheduler="synchronous"):
        return dask_nmf.factorize(V, 3, out=out, tol=1e-3).summary()


def main(folder: Path, client: Client) -> None:
    names = [(str(folder / f"V-{i}.zarr"), str(folder / f"out-{i}.zarr")) for i in range(4)]
    made = [client.submit(make_V, V, seed) for seed, (V, _) in enumerate(names)]
    outs = [out for _, out in names]
    first = client.submit(over_the_cluster, made[0], outs[0])
    for found in client.gather([first, *client.map(in_this_task, made[1:], outs[1:])]):
        where = "one task" if found["scheduler"] == "synchronous" else "the whole cluster"
        print(f"error {found['error']:.4f} in {found['passes']} passes, in {where}")


if __name__ == "__main__":
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with (
        tempfile.TemporaryDirectory() as temporary,
        LocalCluster(**options) as cluster,
        Client(cluster) as running,
    ):
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary), running)
