"""Runs on S3: the bits are those of a disk, whatever the server does in between."""

import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dask
import dask.callbacks
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore, StorePath

import dask_nmf
from dask_nmf import commits
from tests.conftest import push
from tests.damage import Bits, bits
from tests.s3 import CLIENTS, KEY, SECRET, Bucket, Proxy, point_to, url
from tests.s3_runs import OPTIONS, Killed, V, kill_at, run

# zarr leaves what it has not begun to write, when another of its writes fails.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <coroutine")

WAYS = ["url", "obstore", "s3fs"]


@pytest.mark.parametrize("way", push(2, WAYS))
def test_same_bits_as_on_a_disk(stored: Bucket, expected: Bits, way: str, tmp_path: Path) -> None:
    result = run(way, stored)
    assert bits(result) == expected
    assert bits(dask_nmf.open_result(url("out.zarr"))) == expected
    dask_nmf.factorize(V, 3, out=tmp_path / "out.zarr", **OPTIONS)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert set(stored.names("out.zarr/")) == files  # nothing of the run is left


@pytest.mark.parametrize("way", push(1, ["url", "obstore"]))
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


# ------------------------------------------------------------------------- keys and buckets
def _wrong(what: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "no keys":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    else:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOFSOMEBODY")


@pytest.mark.parametrize("what", ["no keys", "wrong keys"])
def test_keys_that_do_not_open(stored: Bucket, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    before = stored.everything()
    with Proxy(stored.port, denied=1.0) as proxy:
        point_to(proxy.url, monkeypatch)
        _wrong(what, stored, monkeypatch)
        with pytest.raises(PermissionError, match=r"out\.zarr.*keys and permissions"):
            dask_nmf.factorize(V, 3, out=url("out.zarr"), **OPTIONS)
        with pytest.raises(PermissionError, match=r"out\.zarr.*keys and permissions"):
            dask_nmf.open_result(url("out.zarr"))
    assert stored.everything() == before


def test_keys_of_obstore_that_do_not_open(stored: Bucket) -> None:
    with Proxy(stored.port, denied=1.0) as proxy:
        group = zarr.open_group(CLIENTS["obstore"](stored.url), path="out.zarr", mode="a")
        store = CLIENTS["obstore"](proxy.url, key="AKIAOFSOMEBODY")
        closed = zarr.Group(replace(group._async_group, store_path=StorePath(store, "out.zarr")))
        with pytest.raises(PermissionError, match=r"out\.zarr.*keys and permissions"):
            dask_nmf.factorize(V, 3, out=closed, **OPTIONS)


def test_keys_that_do_not_open_V(stored: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(stored.port, denied=1.0) as proxy:
        point_to(proxy.url, monkeypatch)
        _wrong("wrong keys", stored, monkeypatch)
        with pytest.raises(PermissionError, match=r"V.*V\.zarr.*keys and permissions"):
            dask_nmf.factorize(url("V.zarr"), 3)


def test_out_must_not_lie_in_V(stored: Bucket) -> None:
    before = stored.everything()
    with pytest.raises(ValueError, match="out must lie apart from V"):
        dask_nmf.factorize(url("V.zarr"), 3, out=url("V.zarr/out.zarr"), **OPTIONS)
    assert stored.everything() == before


def test_no_such_bucket(bucket: Bucket) -> None:
    with pytest.raises(FileNotFoundError, match="out: cannot write to s3://nowhere/out.zarr"):
        dask_nmf.factorize(V, 3, out="s3://nowhere/out.zarr", **OPTIONS)
    with pytest.raises(FileNotFoundError, match="V: there is no zarr array at 's3://nowhere/V"):
        dask_nmf.factorize("s3://nowhere/V.zarr", 3)


@pytest.mark.parametrize("way", push(1, WAYS))
def test_secrets_are_stored_nowhere(
    stored: Bucket, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    caplog.set_level("DEBUG", "dask_nmf")
    with pytest.raises(Killed):
        run(way, stored, callback=kill_at(2))
    found = stored.everything()
    result = run(way, stored)
    found |= stored.everything()
    assert len(found) > 30
    for key, body in found.items():
        assert SECRET.encode() not in body, key
        assert KEY.encode() not in body, key
    keys = map(str, result.W.__dask_graph__())
    for text in (caplog.text, repr(result), str(result.plan), str(result.summary()), *keys):
        assert SECRET not in text


def test_passwords_in_urls_are_stored_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    zarr.create_array(tmp_path / "V.zarr", data=V, chunks=(20, 8))
    caplog.set_level("DEBUG", "dask_nmf")
    handler, keys, told = partial(Silent, directory=str(tmp_path)), set[Any](), list[str]()
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        dask.callbacks.Callback(pretask=lambda key, *_: keys.add(key)),
    ):
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        address = f"{server.server_address[1]}/V.zarr"
        found, out = (
            f"http://reader:{SECRET.replace('/', '')}@127.0.0.1:{address}",
            tmp_path / "out.zarr",
        )
        with pytest.raises(Killed):
            dask_nmf.factorize(found, 3, out=out, callback=kill_at(2), **OPTIONS)
        written = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        result = dask_nmf.factorize(found, 3, out=out, **OPTIONS)
        for wrong in (f"{found}/none", found.replace("V.zarr", "none")):
            with pytest.raises(FileNotFoundError) as refused:
                dask_nmf.factorize(wrong, 3)
            told.append(str(refused.value))
        server.shutdown()
    written |= {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert result.plan is not None
    assert result.plan.V.removeprefix("http://127.0.0.1:") == address
    assert keys
    texts = [caplog.text, repr(result), str(result.plan), str(result.summary()), str(keys), *told]
    for text in (*texts, *map(repr, written.values()), *map(str, result.W.__dask_graph__())):
        assert "that+nothing" not in text


# -------------------------------------------------------------------- several processes
def test_on_a_cluster(stored: Bucket, expected: Bits) -> None:
    from distributed import Client, LocalCluster

    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    with LocalCluster(dashboard_address="127.0.0.1:0", **options) as cluster, Client(cluster):
        with pytest.raises(Killed):
            run("url", stored, callback=kill_at(2))
        assert bits(run("url", stored)) == expected
        assert not [key for key in stored.names() if "/run/" in key]


_OTHER = """
import dask_nmf.fitting
dask_nmf.fitting._SPARE = 0
result = dask_nmf.factorize({V!r}, 3, out={out!r}, **{options!r})
print(result.resumed_from)
"""


@pytest.mark.parametrize("way", push(1, ["obstore", "url"]))
def test_two_drivers(stored: Bucket, expected: Bits, way: str) -> None:
    """What the second commits is seen by the first, whatever that one has listed before."""

    def other(record: dask_nmf.SweepRecord) -> None:
        if record.sweep == 2:
            text = _OTHER.format(V=url("V.zarr"), out=url("out.zarr"), options=OPTIONS)
            done = subprocess.run(
                [sys.executable, "-c", text], capture_output=True, text=True, check=False
            )
            told.append(done.stdout.strip() or done.stderr)

    told: list[str] = []
    with pytest.raises(dask_nmf.RunTakenOver, match="this call stops, nothing is lost"):
        run(way, stored, callback=other)
    assert told == ["3"]
    assert bits(dask_nmf.open_result(url("out.zarr"))) == expected
    assert bits(run(way, stored)) == expected


def test_a_result_is_seen_once_it_is_there(stored: Bucket, expected: Bits) -> None:
    """A client that has looked before, and found nothing or something unfinished."""
    with pytest.raises(FileNotFoundError, match="there is no dask_nmf result"):
        dask_nmf.open_result(url("out.zarr"))

    def look(record: dask_nmf.SweepRecord) -> None:
        with pytest.raises(ValueError, match="has not finished"):
            dask_nmf.open_result(url("out.zarr"))

    run("s3fs", stored, callback=look)  # by another client than that of URLs
    assert bits(dask_nmf.open_result(url("out.zarr"))) == expected
