"""Shared by all tests: matrices, stores that count, a real cluster of two processes."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, settings

import dask_nmf
from tests import s3
from tests.damage import Bits, bits
from tests.stores import CountingStore

# Schedulers and workers take a fifth of a core to look at themselves: not here, nor in processes
# that tests start.
for name in ("WORKER__PROFILE__ENABLED=False", "ADMIN__SYSTEM_MONITOR__INTERVAL=10s"):
    os.environ.setdefault(*f"DASK_DISTRIBUTED__{name}".split("="))
dask.config.refresh()

# The same cases on every run, and no deadline: a first dask graph takes longer than the others.
settings.register_profile(
    "push",
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("nightly", settings.get_profile("push"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "push"))

Array = np.ndarray[Any, np.dtype[Any]]

DATA = Path(
    os.environ.get("DASK_NMF_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


def push(first: int, cases: Iterable[Any]) -> list[Any]:
    """The cases of a test, of which all but the first few are for `pytest -m nightly`."""
    marked = []
    for number, case in enumerate(cases):
        values = case if isinstance(case, tuple) else (case,)
        marks = [pytest.mark.nightly] if number >= first else []
        marked.append(pytest.param(*values, marks=marks))
    return marked


def low_rank(m: int, n: int, rank: int, noise: float = 0.1, seed: int = 0) -> Array:
    """A non-negative (m, n) matrix of that rank, with uniform noise added."""
    random = np.random.default_rng(seed)
    V = random.random((m, rank)) @ random.random((rank, n))
    return np.asarray(V + noise * random.random((m, n)))


def counted(path: Path, V: Array, chunks: tuple[int, int], **kwargs: Any) -> tuple[Any, Any]:
    """V as a zarr array behind a store that counts the reads of its chunks."""
    zarr.create_array(path, data=V, chunks=chunks, **kwargs)
    store = CountingStore(zarr.storage.LocalStore(path), path.with_suffix(".log"))
    return zarr.open_array(store, mode="r"), store


@pytest.fixture
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No block of V stays in memory between passes, so that reads can be counted."""
    monkeypatch.setattr("dask_nmf.fitting._SPARE", 0)


@pytest.fixture(scope="session")
def server() -> Iterator[s3.Bucket]:
    """An S3 server with a bucket."""
    with s3.serve() as running:
        yield running


@pytest.fixture
def bucket(server: s3.Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Bucket]:
    """The bucket, empty, and the environment in which clients find it and do not wait long."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setattr("dask_nmf.retrying._PAUSES", (0.01, 0.01, 0.01, 0.1))
    with s3.environment(monkeypatch):
        yield server
    for key in server.names():
        server.delete(key)


@pytest.fixture
def stored(bucket: s3.Bucket, nothing_kept: None) -> s3.Bucket:
    """The bucket, with the V of tests/s3_runs.py in it."""
    from tests.s3_runs import V

    zarr.create_array(s3.url("V.zarr"), data=V, chunks=(20, 8))
    return bucket


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Bits:
    """The bits of that run on a disk."""
    from tests.s3_runs import OPTIONS, V

    folder = tmp_path_factory.mktemp("disk")
    zarr.create_array(folder / "V.zarr", data=V, chunks=(20, 8))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dask_nmf.fitting._SPARE", 0)
        return bits(dask_nmf.factorize(folder / "V.zarr", 3, out=folder / "out.zarr", **OPTIONS))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """The address of a scheduler with two worker processes of one thread each."""
    from distributed import LocalCluster

    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    with LocalCluster(dashboard_address="127.0.0.1:0", **options) as running:
        yield running.scheduler_address


@pytest.fixture(params=push(2, ["threads", "cluster", "synchronous"]))
def scheduler(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test runs once under each of dask's schedulers."""
    if request.param == "cluster":
        from distributed import Client

        with Client(request.getfixturevalue("cluster")):
            yield request.param
    else:
        with dask.config.set(scheduler=request.param):
            yield request.param


def data(name: str) -> Any:
    """A file of the real data sets; the test is skipped where they are not at hand."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {path}: set DASK_NMF_DATA to the folder of the real data sets")
    return np.load(path)
