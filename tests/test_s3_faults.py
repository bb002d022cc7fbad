"""A server that fails now and then, or for a while: the same bits, or an error that says so."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zarr
from zarr.storage import StorePath

import dask_nmf
from dask_nmf import commits
from tests.conftest import push
from tests.damage import Bits, bits
from tests.s3 import CLIENTS, Bucket, Proxy, point_to, url
from tests.s3_runs import OPTIONS, run

# zarr leaves what it has not begun to write, when another of its writes fails.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <coroutine")


@pytest.fixture
def through(stored: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Proxy]]:
    """Makes a proxy, through which all clients then go to the server."""
    proxies = []

    def make(**faults: Any) -> Proxy:
        proxy = Proxy(stored.port, **faults)
        proxies.append(proxy.__enter__())
        point_to(proxy.url, monkeypatch)
        return proxy

    yield make
    for proxy in proxies:
        proxy.__exit__()


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


@pytest.mark.parametrize("way", push(1, ["url", "obstore"]))
def test_a_server_that_overlooks_conditions(
    through: Callable[..., Proxy], expected: Bits, way: str
) -> None:
    """Two calls at once could not be told apart there: said at the start, and no more than said."""
    proxy, seen = through(blind=1.0), list[int]()

    def look(record: dask_nmf.SweepRecord) -> None:
        seen.append(len(warned))

    with pytest.warns(UserWarning, match="out: .* replaces what it is asked to create") as warned:
        result = run(way, proxy, callback=look)
    assert bits(result) == expected
    assert seen[0] == len(warned) == 1


FAULTS: dict[str, dict[str, float]] = {
    "cut": {"cut": 0.1},
    "lost": {"lost": 0.3},
    "all": {"slow": 0.05, "cut": 0.05, "lost": 0.1, "late": 0.1},
}


@pytest.mark.parametrize(
    ("way", "faults"),
    push(2, [("url", "all"), ("obstore", "lost"), ("url", "cut"), ("obstore", "all")]),
)
def test_faults(through: Callable[..., Proxy], expected: Bits, way: str, faults: str) -> None:
    proxy, told = through(seed=len(faults), **FAULTS[faults]), list[str]()
    for _ in range(8):
        try:
            result = run(way, proxy)
            break
        except dask_nmf.StorageFailed as error:
            told.append(str(error))
    with proxy.calm():
        assert bits(result) == expected
        assert bits(dask_nmf.open_result(url("out.zarr"))) == expected
    assert all("again" in text for text in told)
    assert proxy.done.keys() == FAULTS[faults].keys()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_that_does_not_answer(stored: Bucket, expected: Bits, client: str) -> None:
    """Now and then, until the client's own patience ends; the request may have been heeded."""
    only = "GET .*V.zarr/c/|PUT .*/(W-|state-|commit-)"
    with Proxy(stored.port, only=only) as proxy:
        store = CLIENTS[client](proxy.url, patience=1.0)
        array = zarr.open_array(store, path="V.zarr", mode="r")
        out = zarr.open_group(store, path="out.zarr", mode="a")
        vars(proxy).update(shares={"silent": 0.3}, most=2)
        result = dask_nmf.factorize(array, 3, out=out, **OPTIONS)
        assert proxy.done == {"silent": 2}
        assert bits(result) == expected


@pytest.mark.parametrize(
    ("way", "only"),
    push(
        3,
        [
            ("obstore", "/V.zarr/c/"),
            ("url", "commit-"),
            ("url", "PUT .*/W-"),
            ("obstore", "/state-"),
            ("obstore", "commit-"),
            ("url", "/V.zarr/c/"),
        ],
    ),
)
def test_an_outage_in_the_middle(
    through: Callable[..., Proxy], expected: Bits, way: str, only: str
) -> None:
    proxy = through()

    def begins(record: dask_nmf.SweepRecord) -> None:
        vars(proxy).update(only=only, shares={"slow": 1.0})

    with pytest.raises(dask_nmf.StorageFailed, match="again") as failed:
        run(way, proxy, callback=begins)
    assert "\n" not in str(failed.value)
    proxy.shares = {}
    result = run(way, proxy)
    assert result.resumed_from is not None
    assert bits(result) == expected


@pytest.mark.parametrize("way", push(1, ["obstore", "url"]))
def test_an_outage_at_the_beginning_and_at_the_end(
    through: Callable[..., Proxy], expected: Bits, way: str
) -> None:
    proxy = through()
    for only in ("epoch-", "run/zarr.json", "out.zarr/W/", "out.zarr/error/"):
        vars(proxy).update(only=only, shares={"slow": 1.0})
        with pytest.raises(dask_nmf.StorageFailed, match="again"):
            run(way, proxy)
    proxy.shares = {}
    assert bits(run(way, proxy)) == expected
