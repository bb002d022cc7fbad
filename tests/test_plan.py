"""The plan says what the run does: blocks, reads, bytes, place of W; and what would be better."""

import json
import re
import shutil
from collections import namedtuple
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, GzipCodec

import dask_nmf
from tests.benchmarks.sweep import TaskCount
from tests.conftest import counted, low_rank

MiB = 2**20


def stored(path: Path, m: int, n: int, chunks: tuple[int, int], **options: Any) -> str:
    V = zarr.create_array(path, shape=(m, n), chunks=chunks, dtype="f4", **options)
    V[:] = np.random.default_rng(0).poisson(3, (m, n))
    return str(path)


def promised(m: int, n: int, chunks: tuple[int, int], **options: Any) -> zarr.Array[Any]:
    """Metadata alone: a plan needs no more."""
    return zarr.create_array(
        zarr.storage.MemoryStore(), shape=(m, n), chunks=chunks, dtype="f4", **options
    )


def test_a_plan_reads_nothing_and_writes_nothing(tmp_path: Path) -> None:
    V, store = counted(tmp_path / "V.zarr", low_rank(60, 20, 2), (10, 20))
    before = sorted(tmp_path.rglob("*"))
    plan = dask_nmf.plan(V, 3, out=tmp_path / "out.zarr")
    assert not store.reads()
    assert sorted(tmp_path.rglob("*")) == before
    assert plan.blocks == 1
    dask_nmf.plan(V, 3, probe=True)
    assert set(store.reads().values()) == {1}


@pytest.mark.parametrize("kind", ["rows", "columns", "numpy", "dask"])
def test_factorize_follows_its_plan(tmp_path: Path, kind: str, nothing_kept: None) -> None:
    chunks = {"rows": (50, 90), "columns": (400, 9)}.get(kind, (50, 90))
    dense = low_rank(400, 90, 3)
    V: Any = {"numpy": dense, "dask": da.from_array(dense, chunks=chunks)}.get(kind)
    if V is None:
        V, _ = counted(tmp_path / "V.zarr", dense, chunks)
    options: dict[str, Any] = {"out": tmp_path / "out.zarr", "memory": "1GiB", "max_passes": 6}
    if kind == "rows":
        options |= {"block_rows": 100}
    plan = dask_nmf.plan(V, 3, **options)
    result = dask_nmf.factorize(V, 3, tol=0, **options)
    assert result.plan == plan
    again = dask_nmf.open_result(options["out"])
    assert again.plan == plan
    assert plan.grid.transposed == plan.transposed == (kind == "columns")
    assert result.history[0].passes == plan.passes_before + plan.reads_per_sweep
    assert plan.output_bytes == result.W.nbytes + result.H.nbytes
    assert json.loads(json.dumps(plan.to_json())) == plan.to_json()
    assert dask_nmf.Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_tasks_are_as_counted(tmp_path: Path, nothing_kept: None) -> None:
    V = stored(tmp_path / "V.zarr", 4_000, 20, (100, 20))
    counts: list[int] = []
    with dask.config.set(scheduler="threads"), TaskCount() as tasks:
        result = dask_nmf.factorize(
            V, 3, tol=0, max_passes=4, callback=lambda _: counts.append(tasks.tasks), block_rows=100
        )
    assert result.plan is not None
    assert result.plan.blocks == 40
    assert counts[2] - counts[1] == pytest.approx(result.plan.tasks, abs=5)


def test_it_prints_as_a_table_and_in_notebooks(tmp_path: Path) -> None:
    V = stored(tmp_path / "V.zarr", 4_000, 100, (500, 100), compressors=BloscCodec(cname="lz4"))
    plan = dask_nmf.plan(V, 5, memory="2GiB", probe=True)
    text, html = repr(plan), plan._repr_html_()
    for said in (
        "4,000 x 100 float32, 1.53 MiB",
        "500 x 100, blosc-lz4",
        "1 per sweep, 1 before the first",
        "memory limit",
        "2.00 GiB",
        "a pass takes",
    ):
        assert said in text
    assert html.startswith("<table>")
    assert html.count("<tr>") == len(plan.rows())
    dangerous = replace(plan, codec="<script>", advice=("a < b",))
    assert "<script>" not in dangerous._repr_html_()
    assert "a &lt; b" in dangerous._repr_html_()
    assert "advice: a < b" in repr(dangerous)
    assert plan.seconds is not None
    assert 0 < plan.seconds < 60


# -------------------------------------------------------------------------- what is kept
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_blocks_that_fit_stay_in_memory_and_are_read_once(
    tmp_path: Path, scheduler: str, share: float
) -> None:
    dense = low_rank(1_000, 100, 3)
    V, store = counted(tmp_path / "V.zarr", dense, (100, 100))
    options: dict[str, Any] = {"block_rows": 100, "tol": 0, "max_passes": 5}
    alone = dask_nmf.plan(V, 3, memory="10GiB", block_rows=100)
    fixed = sum(size for name, size in alone.parts.items() if name != "kept")
    block, processes = 100 * 100 * 8, alone.processes
    uneven = 1.3 if processes > 1 else 1.0  # workers may not get the same number
    memory = int((fixed + ceil(share * 10 / processes * uneven) * block) / 0.9) + 1_000
    result = dask_nmf.factorize(V, 3, memory=memory, **options)
    kept = int(share * 10)
    assert result.plan is not None
    assert result.plan.kept_blocks == kept
    reads = store.reads()
    assert sorted(reads.values()) == [1] * kept + [5] * (10 - kept)
    assert result.history[-1].bytes_read == sum(reads.values()) * block
    expected = dask_nmf.factorize(dense, 3, **options)
    assert result.H.tobytes() == expected.H.tobytes()
    assert result.W.compute().tobytes() == expected.W.compute().tobytes()


def test_what_the_page_cache_keeps_is_not_kept_twice(tmp_path: Path) -> None:
    raw = stored(tmp_path / "raw.zarr", 4_000, 100, (500, 100), compressors=None)
    packed = stored(tmp_path / "packed.zarr", 4_000, 100, (500, 100))
    assert dask_nmf.plan(raw, 3, memory="2GiB").kept_blocks == 0
    assert dask_nmf.plan(packed, 3, memory="2GiB").kept_blocks == 1
    assert dask_nmf.plan(low_rank(40, 30, 2), 3).kept_blocks == 0


# -------------------------------------------------------------------------- default memory
def test_the_default_memory_is_a_share_of_what_there_is(
    monkeypatch: pytest.MonkeyPatch, cluster: str
) -> None:
    monkeypatch.setattr("dask_nmf.limits.process_limit", lambda: 1000 * MiB)
    V = low_rank(40, 30, 2)
    assert dask_nmf.plan(V, 3).memory == 600 * MiB
    monkeypatch.setattr("dask_nmf.limits.process_limit", lambda: 100 * MiB)
    with pytest.raises(ValueError, match="too small"):
        dask_nmf.plan(V, 3)
    from distributed import Client

    with Client(cluster) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        least = min(worker["memory_limit"] for worker in workers)
        assert dask_nmf.plan(V, 3).memory == int(0.6 * least)


def test_fewer_threads_where_all_do_not_fit() -> None:
    V = promised(100_000, 2_000, (20_000, 2_000))
    with dask.config.set(scheduler="threads", num_workers=8):
        roomy = dask_nmf.plan(V, 5, memory="8GiB", out="o")
        tight = dask_nmf.plan(V, 5, memory="900MiB", out="o")
    assert (roomy.threads, tight.threads) == (8, 1)
    assert any("of 8 threads fit in 900.00 MiB: raise memory=" in text for text in tight.advice)
    needs = next(text for text in tight.advice if "raise memory=" in text)
    raised = needs.split("raise memory= to ")[1].split(" for")[0]
    with dask.config.set(scheduler="threads", num_workers=8):
        assert dask_nmf.plan(V, 5, memory=raised, out="o").threads == 8


# ----------------------------------------------------------------------------------- advice
def advised(V: Any, **options: Any) -> str:
    with dask.config.set(scheduler="threads", num_workers=2):
        return "\n".join(
            dask_nmf.plan(
                V, 20, out="out", **{"memory": "4GiB", "solver": "hals", **options}
            ).advice
        )


def test_no_advice_where_there_is_nothing_to_gain() -> None:
    lz4 = BloscCodec(cname="lz4")
    V = promised(10**6, 2_000, (2_000, 2_000), compressors=lz4)
    assert advised(V, memory="500MiB") == ""


@pytest.mark.parametrize(
    ("V", "options", "text"),
    [
        (
            promised(10**6, 2_000, (100, 80), shards=(2_000, 2_000)),
            {},
            r"250,000 chunks of 31.25 kiB cost about .* a pass .*rechunk",
        ),
        (
            promised(10**6, 1_000, (10**6, 1_000)),
            {"memory": "40GiB"},
            "in 1 block.*rechunk.*to rows",
        ),
        (
            promised(10**6, 1_000, (2_000, 1_000), compressors=GzipCodec()),
            {},
            "gzip decodes slowly",
        ),
        (
            promised(10**6, 10**6, (1_000, 1_000)),
            {"memory": "6GiB"},
            "neither a row nor a column of chunks fits in 6.00 GiB: .* once instead",
        ),
        (
            promised(10**5, 2_000, (2_000, 2_000)),
            {"memory": "700MiB"},
            "all of V would be read only once",
        ),
    ],
)
def test_advice(V: Any, options: dict[str, Any], text: str) -> None:
    found = advised(V, **options)
    assert re.search(text, found), found


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with dask.config.set(scheduler="threads", num_workers=16):
        plan = dask_nmf.plan(low_rank(40, 30, 2), 3, memory="8GiB")
    assert any("16 threads on 2 cores" in text for text in plan.advice)


# ------------------------------------------------------------------------------- bad input
def test_a_disk_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    V = low_rank(400, 90, 3)
    text = r"out: the factors, and .*, need .* but only 0.98 kiB|1000 B are free"
    with pytest.raises(OSError, match=text):
        dask_nmf.factorize(V, 3, out=tmp_path / "deep" / "out.zarr")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="rank"):
        dask_nmf.plan(V, 0)
    with pytest.raises(ValueError, match="memory must be bytes"):
        dask_nmf.plan(V, 3, memory="lots")
