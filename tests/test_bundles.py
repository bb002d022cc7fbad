"""Bundles of tasks: fewer of them for a scheduler, and nothing else."""

import weakref
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st

import dask_nmf
from dask_nmf import bundles, loop
from dask_nmf.blocks import Grid
from dask_nmf.scheduler import Scheduler
from dask_nmf.stream import from_boxes, from_rows, gram, matmul, update_W
from dask_nmf.types import Array
from tests.conftest import counted, low_rank, push

BLOCKS, HEIGHT = 40, 6
V = low_rank(BLOCKS * HEIGHT, 20, 4)
FEW: dict[str, Any] = {"block_rows": HEIGHT, "tol": 0, "max_passes": 3}


@given(st.integers(1, 10**6), st.integers(1, 10**7), st.integers(1, 4000))
def test_as_few_blocks_as_make_the_tasks_few_enough(blocks: int, tasks: int, threads: int) -> None:
    size = bundles.size_of(blocks, tasks, threads)
    assert size in (1, 8, 64, 512, 4096, 32768)
    if tasks <= bundles.MOST_TASKS:
        assert size == 1
    if size > 1:
        assert blocks >= 8 * threads * size
    if size > 8:
        assert 3 * blocks / (size // 8) > bundles.MOST_TASKS - 3
    if 3 * blocks / size > bundles.MOST_TASKS and tasks > bundles.MOST_TASKS:
        assert blocks < 8 * threads * 8 * size  # larger ones would leave threads without work


def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tasks are many, and two bundles enough for a thread."""
    monkeypatch.setattr(bundles, "MOST_TASKS", 50)
    monkeypatch.setattr(bundles, "_EACH", 2)


class _Rows:
    """V's rows as boxes, which notes how many blocks there are at a time, and each read."""

    ndim, shape, dtype = 2, V.shape, V.dtype

    def __init__(self) -> None:
        self.alive = self.most = self.reads = 0

    def __getitem__(self, index: Any) -> Array:
        block: Array = V[index].copy()
        self.reads += 1
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(block, self._gone)
        return block

    def _gone(self) -> None:
        self.alive -= 1


def test_blocks_go_by_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    _few(monkeypatch)
    rows, H, W = _Rows(), low_rank(3, 20, 2), low_rank(len(V), 3, 2)
    X = from_rows(rows, (HEIGHT,) * BLOCKS)
    new_W = update_W(X, da.from_array(W, chunks=(HEIGHT, 3)), H)
    asked = matmul(new_W.T, X), gram(new_W)
    made, size = bundles.bundled(asked, lambda: 1)
    assert size == 8
    tasks = dict(made[0].__dask_graph__())
    names = [key[0] for key in tasks if isinstance(key, tuple)]
    assert sum(name.startswith(bundles.NAME) for name in names) == -(-BLOCKS // size)
    known = Grid((HEIGHT,) * BLOCKS, (20,)).tasks_in_bundles(size)
    assert len(tasks) == pytest.approx(known, abs=4)  # H, and what is small
    found = dask.compute(*made, scheduler="synchronous")
    assert (rows.reads, rows.most, rows.alive) == (BLOCKS, 1, 0)
    for one, other in zip(found, dask.compute(*asked, scheduler="synchronous"), strict=True):
        assert np.array_equal(one, other)


def test_so_do_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    _few(monkeypatch)
    tiles, H, W = _Rows(), low_rank(3, 20, 2), low_rank(len(V), 3, 2)
    X = from_boxes(tiles, ((HEIGHT,) * BLOCKS, (4,) * 5))
    made, _ = bundles.bundled([gram(update_W(X, W, H))], lambda: 1)
    (found,) = dask.compute(*made, scheduler="synchronous")
    assert (tiles.reads, tiles.most, tiles.alive) == (5 * BLOCKS, 1, 0)
    new_W = update_W(V, W, H)
    np.testing.assert_allclose(found, new_W.T @ new_W, rtol=1e-10)


def test_few_tasks_stay_as_they_are() -> None:
    asked = [gram(da.ones((100, 3), chunks=(10, 3)))]
    made, size = bundles.bundled(asked, lambda: 1)
    assert size == 1
    assert made[0] is asked[0]


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "auto": (V, {}),
    "mu, on disk": (V, {"solver": "mu", "out": "out.zarr"}),
    "hals": (V, {"solver": "hals"}),
    "kullback-leibler": (V, {"loss": "kullback-leibler"}),
    "weights": (V, {"weights": (V > 1.0) * 1.0}),
    "close": (low_rank(len(V), 20, 3, noise=0.0), {"max_passes": 8}),
}


@pytest.mark.parametrize("name", push(3, list(CASES)))
def test_the_same_bits_from_one_read(
    name: str, tmp_path: Path, cluster: str, nothing_kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, options = CASES[name]
    stored, store = counted(tmp_path / "V.zarr", X, (HEIGHT, 20))
    told = {**FEW, **options}

    def run(out: str) -> Any:
        place = {"out": tmp_path / out} if "out" in options else {}
        return dask_nmf.factorize(stored, 3, **{**told, **place})

    alone = run("alone.zarr")
    before = store.reads()
    store.reset()
    _few(monkeypatch)
    sizes, original = [], bundles.bundled

    def noted(*args: Any) -> Any:
        found = original(*args)
        sizes.append(found[1])
        return found

    monkeypatch.setattr("dask_nmf.watch.bundled", noted)
    with Client(cluster, set_as_default=True):
        found = run("bundled.zarr")
    assert max(sizes) == 8
    assert store.reads() == before
    assert found.history[-1].error == alone.history[-1].error
    assert np.array_equal(found.H, alone.H)
    assert np.array_equal(np.asarray(found.W), np.asarray(alone.W))


def test_the_plan_counts_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X = str(tmp_path / "V.zarr")
    zarr.create_array(X, data=V, chunks=(HEIGHT, 20))
    told: dict[str, Any] = {"out": "out.zarr", "block_rows": HEIGHT, "solver": "mu"}
    workers = Scheduler("tcp://127.0.0.1:1", 2, 1, remote=True)
    monkeypatch.setattr("dask_nmf.planner.active_scheduler", lambda: workers)
    many = dask_nmf.plan(X, 3, **told).tasks
    _few(monkeypatch)
    assert many > 4 * BLOCKS > 5 * dask_nmf.plan(X, 3, **told).tasks


def test_rows_of_a_bundle_are_named() -> None:
    plan = dask_nmf.plan(zarr.array(V, chunks=(HEIGHT, 20)), 3, block_rows=HEIGHT)
    key = f"{bundles.NAME}-0a1b", 8, 10
    assert "rows 48 to 54 or 54 to 60 of V" in loop._rows_of([key], plan)
