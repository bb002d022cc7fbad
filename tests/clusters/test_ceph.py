"""S3 by Ceph's gateway: the tests of tests/test_s3*.py again, and keys that are really checked."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import zarr
from zarr.storage import StorePath

import dask_nmf
from tests.clusters import ceph
from tests.conftest import expected  # noqa: F401, not the other recipes'
from tests.s3 import CLIENTS, KEY, SECRET, Bucket, point_to, url
from tests.s3_runs import OPTIONS, V
from tests.test_s3 import (  # noqa: F401
    test_killed_and_resumed,
    test_no_such_bucket,
    test_on_a_cluster,
    test_one_of_many_creates_it,
    test_same_bits_as_on_a_disk,
    test_secrets_are_stored_nowhere,
    test_two_drivers,
)
from tests.test_s3_faults import (  # noqa: F401
    test_an_answer_that_is_lost,
    test_faults,
    through,
)

pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <coroutine")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """In place of moto's."""
    with ceph.serve(tmp_path_factory.mktemp("ceph")) as running:
        yield running


KEYS = {
    "of nobody": ("AKIAOFSOMEBODY", SECRET),
    "with another secret": (KEY, "another/secret+that+nothing/may+show"),
    "none": ("", ""),
}


@pytest.mark.parametrize("keys", KEYS)
def test_keys_that_do_not_open(stored: Bucket, monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    before = stored.everything()
    key, secret = KEYS[keys]
    for name, value in (("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    point_to(stored.url, monkeypatch)
    calls: tuple[Callable[[], object], ...] = (
        lambda: dask_nmf.factorize(url("V.zarr"), 3),
        lambda: dask_nmf.factorize(V, 3, out=url("out.zarr"), **OPTIONS),
        lambda: dask_nmf.open_result(url("out.zarr")),
    )
    for what, call in zip(("V.zarr", "out.zarr", "out.zarr"), calls, strict=True):
        with pytest.raises(PermissionError, match=f"{what}.*keys and permissions") as refused:
            call()
        assert not secret or secret not in repr(refused.getrepr(chain=True))
    assert stored.everything() == before


@pytest.mark.parametrize("client", CLIENTS)
def test_keys_of_stores_that_do_not_open(stored: Bucket, client: str) -> None:
    key, secret = KEYS["with another secret"]
    group = zarr.open_group(CLIENTS[client](stored.url), path="out.zarr", mode="a")
    store = CLIENTS[client](stored.url, key=key, secret=secret)
    closed = zarr.Group(replace(group._async_group, store_path=StorePath(store, "out.zarr")))
    with pytest.raises(PermissionError, match=r"out\.zarr.*keys and permissions") as refused:
        dask_nmf.factorize(V, 3, out=closed, **OPTIONS)
    assert secret not in repr(refused.getrepr(chain=True))
