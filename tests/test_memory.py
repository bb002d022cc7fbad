"""Peak memory of whole processes is as predicted, under a hard limit where one can be set."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import zarr

import dask_nmf
from tests.benchmarks.memory import CHUNKS, make, measure
from tests.conftest import low_rank, push

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc"
)


@contextmanager
def group_limit(limit: int) -> Iterator[Path | None]:
    """A control group (version 1) with that limit, or None where none can be made."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    paths = [line.split(":", 2)[2] for line in lines if ":memory:" in line]
    parent = Path("/sys/fs/cgroup/memory", *[path.lstrip("/") for path in paths])
    group = parent / f"dask_nmf-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit))
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def check(V: str, near: float = 1.5, **run: Any) -> dict[str, Any]:
    """The run within its predicted peak, and that not far from it."""
    found = measure(V=V, **{"rank": 20, "passes": 3, **run})
    assert found["measured"] <= found["predicted"] <= near * found["measured"], found
    return found


# Blocks of 2,000 rows, and three times as many as there are threads: more of them change no peak,
# which `test_memory_is_flat_in_rows_and_in_passes` sees to.
SHAPE = (12_000, 2_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory")


@pytest.mark.parametrize(
    ("chunks", "codec", "dtype", "run"),
    push(
        2,
        [
            ("shards", "zstd", "uint16", {}),
            ("rows", "lz4", "float32", {"processes": 1, "threads": 1, "block_rows": 2_000}),
            ("columns", "lz4", "float32", {"memory": "500MB"}),
            ("rows", "lz4", "float32", {}),
            ("rows", "none", "float32", {"threads": 4}),
            ("squares", "zstd", "float64", {}),
        ],
    ),
)
def test_measured_is_below_predicted_and_predicted_is_near(
    folder: Path, chunks: str, codec: str, dtype: str, run: dict[str, Any]
) -> None:
    V = make(folder / f"{chunks}-{codec}-{dtype}", *SHAPE, dtype, codec, CHUNKS[chunks])
    check(V, **{"memory": "466MB", **run})


def test_it_runs_under_a_hard_limit(folder: Path) -> None:
    """The process is killed if it takes more than the plan says."""
    V = make(folder / "rows-lz4-float32", *SHAPE, "float32", "lz4", CHUNKS["rows"])
    run: dict[str, Any] = {"memory": "366MB", "out": str(folder / "out"), "overwrite": True}
    plan = check(V, **run)
    with group_limit(plan["predicted"]) as group:
        if group is None:
            pytest.skip("no control group can be made here")
        found = measure(V=V, rank=20, passes=3, group=str(group), **run)
        assert found["measured"] <= plan["predicted"]
    with group_limit(plan["predicted"] // 2) as group, pytest.raises(RuntimeError, match="-9"):
        measure(V=V, rank=20, group=str(group), **run)  # the limit is a real one


def test_memory_is_flat_in_rows_and_in_passes(folder: Path) -> None:
    peaks = {}
    for rows, passes in ((6_000, 3), (24_000, 3), (6_000, 12)):
        V = make(folder / f"flat-{rows}", rows, 2_000, "float32", "lz4", {"chunks": (1_000, 2_000)})
        run: dict[str, Any] = {
            "memory": "316MB",
            "out": str(folder / "flat.zarr"),
            "overwrite": True,
            "solver": "hals",  # the model of "auto" grows with m k, as its plan says
        }
        peaks[rows, passes] = measure(V=V, rank=20, passes=passes, **run)["measured"]
    assert max(peaks.values()) < 1.1 * min(peaks.values()), peaks


def test_a_model_of_a_sample_of_rows_is_within_the_plan(folder: Path) -> None:
    V = make(folder / "tall", 240_000, 250, "float32", "lz4", {"chunks": (8_000, 250)})
    found = check(V, memory="326MB", out=str(folder / "tall-out.zarr"), overwrite=True)
    assert found["measured"] <= 326_000_000


@pytest.mark.parametrize("more", push(1, [{}, {"held_out": 0.1}, {"perturb": 0.1}]), ids=str)
def test_many_runs_in_a_stream_are_within_their_plan(folder: Path, more: dict[str, Any]) -> None:
    V = make(folder / "rows-lz4-float32", *SHAPE, "float32", "lz4", CHUNKS["rows"])
    check(V, near=3.0 if more else 1.5, restarts=3, rank=8, memory="2GB", **more)


def test_memory_smaller_than_a_process_or_a_row() -> None:
    V = np.ones((20, 10**6), dtype=np.float32)
    with pytest.raises(ValueError, match=r"memory=.* is too small: .*a process alone"):
        dask_nmf.factorize(V, 2, memory="50MB")
    with pytest.raises(
        ValueError, match=r"memory=.* is too small: blocks of .* need .* per process"
    ):
        dask_nmf.factorize(V, 200, memory="366MB")


def test_what_the_cluster_knows_is_constant_from_pass_to_pass(tmp_path: Path, cluster: str) -> None:
    """With W in a store, no future of one pass outlives the next."""
    from distributed import Client

    known: list[int] = []
    with Client(cluster) as client:

        def count(record: dask_nmf.SweepRecord) -> None:
            known.append(client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))

        V = make(tmp_path / "V", 2_000, 100, "float32", "lz4", {"chunks": (100, 100)})
        dask_nmf.factorize(
            V, 3, out=tmp_path / "out", tol=0, max_passes=14, block_rows=100, callback=count
        )
    assert len(known) == 13
    assert min(known[-6:]) <= max(known[:3])  # not max: some are let go a moment later


def test_W_larger_than_memory_is_refused_unless_it_has_a_place() -> None:
    V = low_rank(2_000_000, 2, 1)
    limit = V.nbytes + 290 * 2**20
    with pytest.raises(ValueError, match="too small: .*keep W on disk with out="):
        dask_nmf.plan(V, 20, memory=limit)
    assert dask_nmf.plan(V, 20, memory=limit, out="anywhere").large_factor == "out"
    assert not os.path.exists("anywhere")


@pytest.mark.parametrize(
    ("solver", "weighed"),
    push(1, [("mu", True), ("newton", True), ("mu", False), ("newton", False)]),
)
def test_other_losses_are_within_the_plan(folder: Path, solver: str, weighed: bool) -> None:
    V = make(folder / "rows-lz4-float32", *SHAPE, "float32", "lz4", CHUNKS["rows"])
    run: dict[str, Any] = {"loss": "kullback-leibler", "solver": solver, "passes": 2}
    if solver == "newton":  # which takes long at a large rank
        run["rank"] = 5
    if weighed:
        weights = folder / "weights"
        if not weights.exists():
            there = np.random.default_rng(0).random(SHAPE) < 0.8
            zarr.create_array(weights, data=there, chunks=(2_000, 2_000))
        run["weights"] = str(weights)
    found = check(V, near=1.6, memory="450MB", **run)
    assert found["measured"] <= 450e6


@pytest.mark.parametrize("solver", push(1, ["newton", "mu"]))
def test_sparse_losses_are_within_the_plan(folder: Path, solver: str) -> None:
    V = folder / "cells.zarr"
    if not V.exists():
        cells: Any = scipy.sparse.random(60_000, 2_000, 0.05, "csr", np.float32, random_state=0)
        group = zarr.create_group(V)
        told: Any = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
        group.attrs.update(told | {"shape": [60_000, 2_000]})
        for name in ("data", "indices", "indptr"):
            group.create_array(name, data=getattr(cells, name), chunks=(2**18,))
    run: dict[str, Any] = {"loss": "kullback-leibler", "solver": solver, "passes": 3}
    if solver == "newton":
        run["rank"] = 8
    found = check(str(V), near=1.75, memory="550MB", **run)
    assert found["measured"] <= 550e6
