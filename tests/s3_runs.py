"""A small run on S3, by URLs or by stores, and the exception that kills it."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import zarr

import dask_nmf
from tests.conftest import low_rank
from tests.s3 import CLIENTS, Bucket, Proxy, url

V = low_rank(60, 8, 3)
OPTIONS: dict[str, Any] = {"tol": 0, "max_passes": 5, "block_rows": 20, "checkpoint_every": 1}


class Killed(Exception):
    """What ends a run, and is nobody else's."""


def run(way: str, server: Bucket | Proxy, **kwargs: Any) -> dask_nmf.Result:
    """V and out by URLs, or as arrays and groups of a store, which the caller has opened."""
    out: Any = url("out.zarr")
    with server.calm() if isinstance(server, Proxy) else nullcontext():
        if way == "url":
            array = zarr.open_array(url("V.zarr"), mode="r")
        else:
            store = CLIENTS[way](server.url)
            array = zarr.open_array(store, path="V.zarr", mode="r")
            out = zarr.open_group(store, path="out.zarr", mode="a")
    return dask_nmf.factorize(array, 3, out=out, **OPTIONS, **kwargs)


def kill_at(sweep: int) -> Callable[[dask_nmf.SweepRecord], None]:
    def callback(record: dask_nmf.SweepRecord) -> None:
        if record.sweep == sweep:
            raise Killed

    return callback
