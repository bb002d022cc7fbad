"""The same bits and one read per chunk and sweep, on threads, in sequence and on a cluster."""

from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster
from threadpoolctl import threadpool_info

import dask_nmf
from dask_nmf import stream, tasks
from dask_nmf.blas import one_blas_thread
from tests.conftest import Array, counted, low_rank, push

pytestmark = pytest.mark.usefixtures("nothing_kept")

CHUNKS = {"rows": (500, 300), "grid": (700, 64), "columns": (3000, 41), "whole": (3000, 300)}


def _result(V: Any, **options: Any) -> dask_nmf.Result:
    settings: dict[str, Any] = {"max_passes": 6, "tol": 0, "seed": 3}
    return dask_nmf.factorize(V, 7, **settings | options)


@pytest.fixture(scope="session")
def V(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for a BLAS with two threads to split its products otherwise."""
    path = tmp_path_factory.mktemp("bits") / "V.zarr"
    zarr.create_array(path, data=low_rank(3000, 300, 7), chunks=(500, 300))
    return path


@pytest.fixture(scope="session")
def in_sequence(V: Path) -> dict[str, dask_nmf.Result]:
    with dask.config.set(scheduler="synchronous"):
        return {
            solver: _result(V, solver=solver, block_rows=500) for solver in ("mu", "hals", "auto")
        }


@pytest.mark.parametrize("solver", ["mu", "hals", "auto"])
def test_same_bits(
    V: Path, in_sequence: dict[str, dask_nmf.Result], scheduler: str, solver: str
) -> None:
    result, expected = _result(V, solver=solver, block_rows=500), in_sequence[solver]
    assert result.W.numblocks == (6, 1)
    assert result.W.compute().tobytes() == expected.W.compute().tobytes()
    assert result.H.tobytes() == expected.H.tobytes()
    assert [r.error for r in result.history] == [r.error for r in expected.history]


@pytest.mark.parametrize(("workers", "threads"), push(1, [(3, 1), (1, 4)]))
def test_same_bits_on_any_cluster(
    V: Path, in_sequence: dict[str, dask_nmf.Result], workers: int, threads: int
) -> None:
    """Without block_rows, too: what is chosen does not depend on the cluster."""
    options: dict[str, Any] = {"n_workers": workers, "threads_per_worker": threads}
    options |= {"dashboard_address": "127.0.0.1:0", "processes": True}
    with LocalCluster(**options) as running, Client(running):
        result, free = _result(V, solver="auto", block_rows=500), _result(V, solver="hals")
    expected = in_sequence["auto"]
    assert result.H.tobytes() == expected.H.tobytes()
    assert [r.error for r in result.history] == [r.error for r in expected.history]
    with dask.config.set(scheduler="threads"):
        assert free.H.tobytes() == _result(V, solver="hals").H.tobytes()


@pytest.mark.parametrize("kind", ["numpy", "dask", "persisted", "zarr v2"])
def test_same_bits_whatever_V_is(
    V: Path, in_sequence: dict[str, dask_nmf.Result], tmp_path: Path, scheduler: str, kind: str
) -> None:
    matrix: Any = zarr.open_array(V, mode="r")[:]
    if kind in ("dask", "persisted"):
        matrix = da.from_array(matrix, chunks=(500, 120))
    if kind == "persisted":
        matrix = matrix.persist()
    if kind == "zarr v2":
        matrix = zarr.create_array(tmp_path / "V", data=matrix, chunks=(100, 70), zarr_format=2)
    result = _result(matrix, solver="hals", block_rows=500)
    assert result.H.tobytes() == in_sequence["hals"].H.tobytes()
    assert result.W.compute().tobytes() == in_sequence["hals"].W.compute().tobytes()


def _job(V: Path) -> tuple[float, str]:
    result = _result(V, solver="hals", block_rows=500)
    return result.error, result.parameters["scheduler"]


def test_inside_a_task_of_another_job(
    V: Path, in_sequence: dict[str, dask_nmf.Result], cluster: str
) -> None:
    with Client(cluster) as client:
        assert client.submit(_job, V).result(timeout=60) == (in_sequence["hals"].error, cluster)


@pytest.mark.parametrize("solver", push(1, ["auto", "hals"]))
@pytest.mark.parametrize("chunks", CHUNKS)
def test_one_read_per_chunk_and_sweep(
    tmp_path: Path, scheduler: str, chunks: str, solver: str
) -> None:
    V, store = counted(tmp_path / "V.zarr", low_rank(3000, 300, 7), CHUNKS[chunks])
    block_rows = min(CHUNKS[chunks][0], 1000)
    rows = block_rows if chunks in ("rows", "grid") else None
    result = _result(V, block_rows=rows, solver=solver)
    sweeps = len(result.history)
    reads = store.reads()
    assert result.plan is not None
    assert result.plan.transposed == (chunks == "columns")
    # The first pass; on the transpose HALS needs the small factor's products, too.
    before = 1 + (result.plan.transposed and solver == "hals")
    assert sweeps == 6 - before
    assert len(reads) == V.nchunks
    assert set(reads.values()) == {before + sweeps}, scheduler  # and then one per sweep
    assert result.history[-1].passes == before + sweeps


def test_reads_of_float32_and_shards(tmp_path: Path) -> None:
    V = low_rank(600, 40, 3).astype("f4")
    array, store = counted(tmp_path / "V.zarr", V, (50, 20), shards=(100, 40))
    result = _result(array, block_rows=200)
    assert set(store.reads().values()) == {1 + len(result.history)}
    assert len(store.reads()) == 6  # whole shards, not the chunks inside them


def test_reads_of_a_start_are_counted(tmp_path: Path) -> None:
    V, store = counted(tmp_path / "V.zarr", low_rank(600, 40, 3), (100, 40))
    result = _result(V, init="nndsvda", block_rows=100)
    assert set(store.reads().values()) == {result.history[-1].passes} == {6}
    assert result.history[0].passes == 1 + dask_nmf.NNDSVD().passes + 1


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_close_fit_costs_one_pass_more_once(tmp_path: Path, dtype: str) -> None:
    """The sums of a pass cannot tell the error of a very close fit: it is measured, at a read."""
    random = np.random.default_rng(0)
    W, H = random.random((600, 2)).astype(dtype), random.random((2, 40)).astype(dtype)
    V, store = counted(tmp_path / "V.zarr", W @ H, (100, 40))
    result = dask_nmf.factorize(V, 2, init=(W, H), tol=0, max_passes=6)
    assert result.error < 1e-6
    assert [r.passes for r in result.history] == [3, 4, 5, 6]
    assert set(store.reads().values()) == {6}


def test_blas_threads_are_as_before(V: Path) -> None:
    def threads() -> list[int]:
        return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]

    before = threads()
    with one_blas_thread, one_blas_thread:
        assert set(threads()) == {1}
    assert threads() == before
    _result(V)
    assert threads() == before


def _misaligned(x: Array) -> Array:
    copy = np.zeros(x.nbytes + 1, dtype="u1")[1:].view(x.dtype).reshape(x.shape)
    copy[:] = x
    assert not copy.flags.aligned
    return copy


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(64, 40, 7), (1000, 64, 20), (500, 300, 7), (9, 1001, 3)]
)
def test_bits_do_not_depend_on_alignment(dtype: str, m: int, n: int, k: int) -> None:
    """An array that came over a wire may lie at an odd address; BLAS then sums otherwise.

    Which of these shapes show it depends on the processor; on most, some do.
    """
    V, W, H = (low_rank(*shape, 3).astype(dtype) for shape in ((m, n), (m, k), (k, n)))
    cases: list[tuple[Any, tuple[Array, ...]]] = [
        (tasks.product, (V, H.T)),
        (tasks.partial_product, (W.T, V)),
        (tasks.partial_gram, (W,)),
        (tasks.partial_residual, (V, W, H)),
    ]
    for task, operands in cases:
        moved = [_misaligned(x) for x in operands]
        found, expected = task(*moved), task(*(x.copy() for x in operands))
        assert found.tobytes() == expected.tobytes(), task.__name__


def test_config_and_other_futures_are_left_alone(cluster: str, V: Path) -> None:
    with Client(cluster) as client, Client(cluster, set_as_default=False) as other:
        theirs = other.submit(sum, [1, 2, 3], pure=False)
        before = dict(dask.config.config)
        result = _result(V, block_rows=500)
        assert dask.config.config == before
        assert theirs.result() == 6
        del result
        assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.clients)) >= 2


def test_a_large_H_is_sent_without_a_warning(cluster: str) -> None:
    """Warnings are errors here, and distributed has one for graphs above 10 MB."""
    H_bytes = 50 * 30_000 * 8
    assert H_bytes > 10**7
    with Client(cluster) as client:
        V = da.random.default_rng(0).random((60, 30_000), chunks=(20, -1)).persist()
        before = _received(client)
        options: dict[str, Any] = {"tol": 0, "solver": "mu", "block_rows": 20}
        few = dask_nmf.factorize(V, 50, max_passes=3, **options).history[-1]
        between = _received(client)
        more = dask_nmf.factorize(V, 50, max_passes=5, **options).history[-1]
        moved = (_received(client) - between) - (between - before)
        assert more.passes - few.passes == 2
    # From worker to worker, in two passes: H, and partial sums of W.T @ V, which are as large.
    assert moved <= 2 * (2 + 3) * H_bytes


def _received(client: Client) -> int:
    """Bytes that workers had from each other."""
    logs = client.run(lambda dask_worker: list(dask_worker.transfer_incoming_log))
    return sum(entry["total"] for log in logs.values() for entry in log)


def test_tasks_per_block_and_sweep() -> None:
    """A pass costs dask's scheduler at most five tasks per block."""
    V = stream.constant(low_rank(640, 20, 3)).rechunk((10, 20))
    H = low_rank(3, 20, 3)
    W = stream.update_W(V, stream.constant(low_rank(640, 3, 3)).rechunk((10, 3)), H)
    outputs = dask.optimize(W, stream.matmul(W.T, V), stream.gram(W))
    keys = {key for output in outputs for key in dict(output.__dask_graph__())}
    sources = {key for key in keys if "getitem" in str(key) or "rechunk" in str(key)}
    assert len(keys - sources) / 64 <= 4.5
