"""Any geometry gives the oracle's answer, and as many reads as its plan promises."""

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client

import dask_nmf
from dask_nmf import geometry, oracle
from dask_nmf.solvers import HALS, MU, Solver
from tests.conftest import Array, counted, low_rank, push

SWEEPS = 3
RANK = 3

LAYOUTS: dict[str, dict[str, Any]] = {
    "rows": {"chunks": (10, 60)},
    "squares": {"chunks": (16, 16)},
    "columns": {"chunks": (80, 7)},
    "one chunk": {"chunks": (80, 60)},
    "too small": {"chunks": (1, 3)},
    "shards": {"chunks": (5, 6), "shards": (20, 30)},
    "flat shards": {"chunks": (5, 60), "shards": (40, 60)},
}


pytestmark = pytest.mark.usefixtures("nothing_kept")


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that weighs nothing, so that limits of some kB decide."""
    monkeypatch.setattr(geometry, "BASE_BYTES", 0)
    monkeypatch.setattr(geometry, "WORKER_BYTES", 0)
    monkeypatch.setattr(geometry, "GRAPH_BYTES", 0)


def by_oracle(V: Array, W: Array, H: Array, solver: Solver) -> tuple[Array, Array, list[float]]:
    errors = []
    for _ in range(SWEEPS):
        if isinstance(solver, HALS):
            W = oracle.hals_W(V, W, H, solver.inner)
            H = oracle.hals_H(V, W, H, solver.inner)
        else:
            W = oracle.update_W(V, W, H)
            H = oracle.update_H(V, W, H)
        errors.append(oracle.error(V, W, H))
    return W, H, errors


def check(V: Any, dense: Array, solver: Solver, **options: Any) -> dask_nmf.Plan:
    """Three sweeps are the oracle's; returns the plan."""
    W, H = low_rank(len(dense), RANK, 2), low_rank(RANK, dense.shape[1], 2)
    plan = dask_nmf.plan(V, RANK, solver=solver, **options)
    passes = plan.passes_before + SWEEPS * plan.reads_per_sweep
    result = dask_nmf.factorize(
        V, RANK, solver=solver, init=(W, H), tol=0, max_passes=passes, **options
    )
    expected_W, expected_H, errors = by_oracle(dense, W, H, solver)
    assert result.plan is not None
    assert result.plan.grid == plan.grid
    assert [record.error for record in result.history] == pytest.approx(errors, rel=1e-9)
    np.testing.assert_allclose(result.W.compute(), expected_W, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.asarray(result.H), expected_H, rtol=1e-9, atol=1e-12)
    return plan


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "codec", "solver"),
    [
        ((80, 60), "auto", MU()),
        ((80, 60), None, HALS()),
        ((60, 80), "auto", HALS()),
        ((60, 80), None, MU()),
        ((83, 61), "auto", HALS()),
    ],
)
def test_every_layout_gives_the_oracles_answer(
    tmp_path: Path, layout: str, codec: Any, shape: tuple[int, int], solver: Solver
) -> None:
    dense = low_rank(*shape, 4)
    options = dict(LAYOUTS[layout])
    if shape == (60, 80):  # on its side
        options = {name: size[::-1] for name, size in options.items()}
    V = zarr.create_array(
        tmp_path / "V.zarr", shape=shape, dtype="f8", compressors=codec, **options
    )
    V[:] = dense
    plan = check(V, dense, solver)
    assert plan.reads_per_sweep == 1


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
@pytest.mark.parametrize("side", ["rows", "columns", "tiles"])
def test_on_rows_on_the_transpose_and_in_tiles(
    tmp_path: Path, tight: None, kind: str, side: str
) -> None:
    """The memory decides; reads are counted at the store."""
    shape = {"rows": (400, 50), "columns": (50, 400), "tiles": (300, 300)}[side]
    chunks = {"rows": (10, 25), "columns": (25, 10), "tiles": (30, 30)}[side]
    dense = low_rank(*shape, 4)
    V: Any = dense
    store = None
    if kind == "dask":
        V = da.from_array(dense, chunks=chunks)
    if kind == "zarr":
        V, store = counted(tmp_path / "V.zarr", dense, chunks)
    resident = dense.nbytes if kind == "numpy" else 0
    limit = resident + {"rows": 200_000, "columns": 200_000, "tiles": 220_000}[side]
    if kind == "numpy" and side == "tiles":
        limit = resident + 120_000
    with dask_threads(2):
        plan = check(V, dense, HALS(), memory=limit, out=tmp_path / "out.zarr")
    rows, columns = plan.block
    assert plan.peak_bytes <= limit
    assert (columns == shape[1]) == (side == "rows")
    assert (rows == shape[0]) == (side == "columns")
    assert plan.transposed == (side == "columns")
    assert plan.reads_per_sweep == (2 if side == "tiles" else 1)
    assert plan.blocks > 1
    if store is not None:
        passes = plan.passes_before + SWEEPS * plan.reads_per_sweep
        assert set(store.reads().values()) == {passes}
        assert len(store.reads()) == V.nchunks


def dask_threads(count: int) -> Any:
    import dask

    return dask.config.set(scheduler="threads", num_workers=count)


def test_W_is_not_held_in_memory_in_tiles_either(
    tmp_path: Path, tight: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something of the size of W is kept in memory")

    monkeypatch.setattr("dask.persist", held)
    dense = low_rank(300, 300, 4)
    V = zarr.create_array(tmp_path / "V.zarr", data=dense, chunks=(30, 30))
    with dask_threads(2):
        plan = check(V, dense, HALS(), memory=190_000, out=tmp_path / "out.zarr")
    assert plan.reads_per_sweep == 2


def test_a_start_that_needs_whole_rows_is_refused_in_tiles(tmp_path: Path, tight: None) -> None:
    V = zarr.create_array(tmp_path / "V.zarr", data=low_rank(300, 300, 4), chunks=(30, 30))
    with dask_threads(2), pytest.raises(ValueError, match="NNDSVD.* needs whole rows.*'random'"):
        dask_nmf.factorize(V, RANK, memory=240_000, init="nndsvda", out=tmp_path / "out.zarr")


@pytest.mark.parametrize("side", ["columns", "tiles"])
def test_reads_never_exceed_max_passes(tmp_path: Path, tight: None, side: str) -> None:
    shape, limit = {"columns": ((50, 400), 200_000), "tiles": ((300, 300), 190_000)}[side]
    V, store = counted(tmp_path / "V.zarr", low_rank(*shape, 4), (30, 30))
    given: dict[str, Any] = {"memory": limit, "solver": "hals"}
    with dask_threads(2):
        for most in (3, 4, 5, 6):
            store.reset()
            result = dask_nmf.factorize(V, RANK, tol=0, max_passes=most, **given)
            assert set(store.reads().values()) == {result.history[-1].passes}
            assert result.history[-1].passes in (most - (side == "tiles"), most)
        with pytest.raises(ValueError, match="max_passes must be at least 3 for this plan"):
            dask_nmf.factorize(V, RANK, max_passes=2, **given)


@pytest.mark.parametrize(
    ("kind", "side"),
    push(2, [("numpy", "columns"), ("zarr", "tiles"), ("numpy", "tiles"), ("dask", "tiles")]),
)
def test_on_a_cluster(tmp_path: Path, tight: None, cluster: str, kind: str, side: str) -> None:
    shape = {"columns": (50, 400), "tiles": (300, 300)}[side]
    limit = {"columns": 230_000, "tiles": 500_000 if kind == "numpy" else 220_000}[side]
    dense = low_rank(*shape, 4)
    V: Any = {"numpy": dense, "dask": da.from_array(dense, chunks=(25, 25))}.get(kind)
    if kind == "zarr":
        V = zarr.create_array(tmp_path / "V.zarr", data=dense, chunks=(25, 25))
    with Client(cluster):
        plan = check(V, dense, HALS(), memory=limit, out=tmp_path / "out.zarr")
    assert plan.processes == 2
    assert (plan.transposed, plan.reads_per_sweep) == (
        (True, 1) if side == "columns" else (False, 2)
    )
    assert plan.blocks > 1


def test_close_fits_are_measured_in_tiles_and_on_the_transpose(tmp_path: Path, tight: None) -> None:
    for shape, limit in (((50, 400), 100_000), ((300, 300), 80_000)):
        dense = low_rank(*shape, RANK, noise=1e-6).astype(np.float32)
        V = zarr.create_array(tmp_path / f"{shape[0]}.zarr", data=dense, chunks=(25, 25))
        with dask_threads(2):
            result = dask_nmf.factorize(V, RANK, memory=limit, tol=0, max_passes=60)
        assert result.plan is not None
        assert result.plan.transposed or result.plan.reads_per_sweep == 2
        W, H, exact = (x.astype(float) for x in (result.W.compute(), result.H, dense))
        true = np.linalg.norm(exact - W @ H) / np.linalg.norm(exact)
        assert result.error < 0.01
        assert result.error == pytest.approx(true, rel=1e-4)


@pytest.mark.parametrize("init", ["random", "nndsvda", "nndsvdar"])
def test_every_start_on_the_transpose(tmp_path: Path, init: str) -> None:
    """Random starts are the same numbers; NNDSVD's are as good."""
    dense = low_rank(40, 300, 4)
    rows = zarr.create_array(tmp_path / "rows.zarr", data=dense, chunks=(10, 300))
    columns = zarr.create_array(tmp_path / "columns.zarr", data=dense, chunks=(40, 30))
    found = [
        dask_nmf.factorize(V, RANK, solver="hals", init=init, max_passes=12, tol=0)
        for V in (rows, columns)
    ]
    assert [result.plan and result.plan.transposed for result in found] == [False, True]
    if init == "random":
        W = [result.W.compute() for result in found]
        shared = min(len(result.history) for result in found)
        errors = [[r.error for r in result.history[:shared]] for result in found]
        assert errors[0] == pytest.approx(errors[1], rel=1e-9)
        assert W[0].shape == W[1].shape
    else:
        assert found[0].error == pytest.approx(found[1].error, rel=0.02)


def test_a_bad_entry_is_named_by_its_place_in_V(tmp_path: Path, tight: None) -> None:
    for shape, chunks in (((50, 400), (50, 10)), ((300, 300), (30, 30))):
        dense = low_rank(*shape, 4)
        dense[41, 217] = np.nan
        V = zarr.create_array(tmp_path / f"{shape[0]}.zarr", data=dense, chunks=chunks)
        with dask_threads(2), pytest.raises(ValueError, match="row 41, column 217 holds nan"):
            dask_nmf.factorize(V, RANK, memory=220_000)
