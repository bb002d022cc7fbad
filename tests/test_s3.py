"""Runs on S3: the bits are those of a disk, whatever the server does in between."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore, StorePath

import dask_nmf
from dask_nmf import commits
from tests.conftest import low_rank
from tests.damage import Bits, bits
from tests.s3 import BUCKET, CLIENTS, SECRET, Bucket, Proxy, by_s3fs, url

V = low_rank(60, 8, 3)
OPTIONS: dict[str, Any] = {"tol": 0, "max_passes": 5, "block_rows": 20, "checkpoint_every": 1}
WAYS = ["url", "s3fs", "obstore"]


class Killed(Exception):
    """What ends a run, and is nobody else's."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Bits:
    """Of the run on a disk."""
    folder = tmp_path_factory.mktemp("disk")
    zarr.create_array(folder / "V.zarr", data=V, chunks=(20, 8))
    return bits(dask_nmf.factorize(folder / "V.zarr", 3, out=folder / "out.zarr", **OPTIONS))


@pytest.fixture
def stored(bucket: Bucket) -> Bucket:
    """The bucket, with V in it."""
    zarr.create_array(url("V.zarr"), data=V, chunks=(20, 8))
    return bucket


@pytest.fixture
def through(stored: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Proxy]]:
    """Makes a proxy, through which all clients then go to the server."""
    S3FileSystem: Any = pytest.importorskip("s3fs").S3FileSystem
    proxies = []

    def make(**faults: Any) -> Proxy:
        proxy = Proxy(stored.port, **faults)
        proxies.append(proxy.__enter__())
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        S3FileSystem.clear_instance_cache()
        return proxy

    yield make
    for proxy in proxies:
        proxy.__exit__()


def run(way: str, server: Bucket | Proxy, **kwargs: Any) -> dask_nmf.Result:
    """V and out by URLs, or as arrays and groups of a store, which the caller has opened."""
    if way == "url":
        return dask_nmf.factorize(url("V.zarr"), 3, out=url("out.zarr"), **OPTIONS, **kwargs)
    store = CLIENTS[way](server.url)
    with server.calm() if isinstance(server, Proxy) else nullcontext():
        array = zarr.open_array(store, path="V.zarr", mode="r")
        group = zarr.open_group(store, path="out.zarr", mode="a")
    return dask_nmf.factorize(array, 3, out=group, **OPTIONS, **kwargs)


def kill_at(sweep: int) -> Callable[[dask_nmf.SweepRecord], None]:
    def callback(record: dask_nmf.SweepRecord) -> None:
        if record.sweep == sweep:
            raise Killed

    return callback


@pytest.mark.parametrize("way", WAYS)
def test_same_bits_as_on_a_disk(stored: Bucket, expected: Bits, way: str, tmp_path: Path) -> None:
    result = run(way, stored)
    assert bits(result) == expected
    assert bits(dask_nmf.open_result(url("out.zarr"))) == expected
    dask_nmf.factorize(V, 3, out=tmp_path / "out.zarr", **OPTIONS)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert set(stored.keys("out.zarr/")) == files  # nothing of the run is left


@pytest.mark.parametrize("way", WAYS)
def test_killed_and_resumed(stored: Bucket, expected: Bits, way: str) -> None:
    for sweep in (1, 3):
        with pytest.raises(Killed):
            run(way, stored, callback=kill_at(sweep))
    result = run(way, stored)
    assert result.resumed_from is not None
    assert bits(result) == expected


# --------------------------------------------------------------------------- create-only
def _stores(where: str, server: str, folder: Path, count: int) -> list[Any]:
    if where == "disk":
        return [LocalStore(folder) for _ in range(count)]
    if where == "memory":
        return [MemoryStore()] * count
    return [CLIENTS[where](server) for _ in range(count)]


@pytest.mark.parametrize("where", ["disk", "memory", *CLIENTS])
def test_one_of_many_creates_it(request: pytest.FixtureRequest, tmp_path: Path, where: str) -> None:
    server = request.getfixturevalue("bucket").url if where in CLIENTS else ""
    stores = _stores(where, server, tmp_path, 4)
    for number in range(4):
        start, made = threading.Barrier(16), list[int]()

        def create(who: int, start: threading.Barrier, made: list[int], number: int) -> None:
            start.wait()
            place = StorePath(stores[who % len(stores)], f"commit-{number}")
            if commits.create(place, {"nonce": who}):
                made.append(who)

        threads = [
            threading.Thread(target=create, args=(who, start, made, number)) for who in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 1
        for store in stores:
            assert commits.read(StorePath(store, f"commit-{number}")) == {"nonce": made[0]}


@pytest.mark.parametrize("client", CLIENTS)
def test_an_answer_that_is_lost(bucket: Bucket, client: str) -> None:
    """The client asks again, and is told that something exists: its own."""
    with Proxy(bucket.port, only="PUT", most=1, lost=1.0) as proxy:
        place = StorePath(CLIENTS[client](proxy.url), "commit")
        assert commits.create(place, {"nonce": 1})
        assert not commits.create(place, {"nonce": 2})
        assert proxy.done == {"lost": 1}


@pytest.mark.parametrize("client", CLIENTS)
def test_servers_that_do_not_say_which_condition(bucket: Bucket, client: str) -> None:
    """Some answer 412 with no more than its code: no reason to ask five times."""
    place = StorePath(CLIENTS[client](bucket.url), "commit")
    assert commits.create(place, {"nonce": 1})
    with Proxy(bucket.port, only="PUT", refused=1.0) as proxy:
        place = StorePath(CLIENTS[client](proxy.url), "commit")
        assert not commits.create(place, {"nonce": 2})
        assert proxy.done == {"refused": 1}


# -------------------------------------------------------------------------------- faults
FAULTS: dict[str, dict[str, float]] = {
    "busy": {"slow": 0.1},
    "cut": {"cut": 0.1},
    "lost": {"lost": 0.3},
    "all": {"slow": 0.05, "cut": 0.05, "lost": 0.1, "late": 0.1},
}


@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize("client", CLIENTS)
def test_faults(through: Callable[..., Proxy], expected: Bits, client: str, faults: str) -> None:
    way = "url" if client == "s3fs" else client
    proxy = through(seed=len(faults), **FAULTS[faults])
    for _ in range(8):
        try:
            result = run(way, proxy)
            break
        except dask_nmf.StorageFailed as error:
            assert "again" in str(error)
    assert bits(result) == expected
    assert proxy.done.keys() == FAULTS[faults].keys()
    assert bits(dask_nmf.open_result(url("out.zarr"))) == expected


@pytest.mark.parametrize("only", ["/V.zarr/c/", "PUT .*/W-", "/state-", "commit-"])
@pytest.mark.parametrize("client", CLIENTS)
def test_an_outage_in_the_middle(
    through: Callable[..., Proxy], expected: Bits, nothing_kept: None, client: str, only: str
) -> None:
    way = "url" if client == "s3fs" else client
    proxy = through()
    outage = {"only": only, "shares": {"slow": 1.0}}

    def begins(record: dask_nmf.SweepRecord) -> None:
        vars(proxy).update(outage)

    with pytest.raises(dask_nmf.StorageFailed, match="again") as failed:
        run(way, proxy, callback=begins)
    assert "\n" not in str(failed.value)
    proxy.shares = {}
    assert bits(run(way, proxy)) == expected


@pytest.mark.parametrize("client", CLIENTS)
def test_an_outage_at_the_beginning_and_at_the_end(
    through: Callable[..., Proxy], expected: Bits, client: str
) -> None:
    way = "url" if client == "s3fs" else client
    proxy = through()
    for only in ("epoch-", "run/zarr.json", "out.zarr/W/", "out.zarr/error/"):
        vars(proxy).update(only=only, shares={"slow": 1.0})
        with pytest.raises(dask_nmf.StorageFailed, match="again"):
            run(way, proxy)
    proxy.shares = {}
    assert bits(run(way, proxy)) == expected
