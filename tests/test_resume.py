"""A run that was stopped anywhere goes on to the same bits."""

from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr

import dask_nmf
from dask_nmf import checkpoint, errors, packing
from dask_nmf.types import Ahead, Products, Seen, State, SweepRecord, Trust
from tests.conftest import Array, counted, low_rank, push
from tests.resuming import DATA, FEW, Killed, assert_same, killing, until_done


@pytest.fixture
def V(tmp_path: Path) -> Path:
    zarr.create_array(tmp_path / "V.zarr", data=DATA, chunks=(70, 60))
    return tmp_path / "V.zarr"


@pytest.fixture(scope="module")
def undisturbed() -> dask_nmf.Result:
    """The run of FEW on DATA that nobody kills."""
    return dask_nmf.factorize(DATA, 5, **FEW)


@pytest.fixture(params=["memory", "out"])
def large_factor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where W lies between passes."""
    if request.param == "out":
        monkeypatch.setattr("dask_nmf.fitting._SPARE", 0)
    return str(request.param)


@pytest.mark.parametrize(
    ("solver", "init"),
    push(2, [("auto", "random"), ("hals", "nndsvda"), ("auto", "nndsvda"), ("mu", "random")]),
)
def test_killed_and_resumed_is_the_same(
    V: Path, tmp_path: Path, scheduler: str, solver: str, init: str
) -> None:
    options = {**FEW, "solver": solver, "init": init}
    with dask.config.set(scheduler="synchronous"):
        expected = dask_nmf.factorize(V, 5, **options)
    found = until_done(V, 5, killing(1, 2, 4), out=tmp_path / "out.zarr", **options)
    assert_same(found, expected)
    assert found.resumed_from == found.history[3].passes, scheduler
    assert expected.resumed_from is None
    assert "run" not in zarr.open_group(tmp_path / "out.zarr", mode="r")


@pytest.mark.parametrize("solver", ["auto", "hals"])
@pytest.mark.parametrize(
    ("shape", "chunks", "memory"),
    [((60, 700), (60, 70), None), ((2100, 2100), (300, 300), "258MB")],
    ids=["columns", "tiles"],
)
def test_on_the_transpose_and_in_tiles(
    tmp_path: Path, solver: str, shape: tuple[int, int], chunks: tuple[int, int], memory: Any
) -> None:
    zarr.create_array(tmp_path / "V.zarr", data=low_rank(*shape, 3), chunks=chunks)
    options: dict[str, Any] = {"tol": 0, "max_passes": 7, "solver": solver, "memory": memory}
    expected = dask_nmf.factorize(tmp_path / "V.zarr", 3, **options)
    found = until_done(tmp_path / "V.zarr", 3, killing(1, 2), out=tmp_path / "out", **options)
    assert_same(found, expected)
    assert found.plan is not None
    assert found.plan.transposed or found.plan.reads_per_sweep == 2 or memory


@pytest.mark.parametrize("solver", ["auto", "hals"])
def test_reads_of_a_resumed_run(tmp_path: Path, nothing_kept: None, solver: str) -> None:
    """What was committed is not read again: at most the sweep that was under way."""
    V, store = counted(tmp_path / "V.zarr", DATA, (70, 60))
    run = {"out": tmp_path / "out.zarr", "solver": solver, **FEW}
    found = until_done(V, 5, killing(1, 3, 5), **run)
    assert set(store.reads().values()) == {found.history[-1].passes} == {8}
    store.reset()
    again = dask_nmf.factorize(V, 5, **run)
    assert not store.reads()  # finished: returned at once
    assert_same(again, found)
    assert again.resumed_from == 8


class Fuse:
    """Dies at a call of `Run`'s method, before or after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, number: int, after: bool):
        original, self.calls = getattr(checkpoint.Run, name), 0

        def method(run: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == number and not after:
                raise Killed
            result = original(run, *args, **kwargs)
            if self.calls == number and after:
                raise Killed
            return result

        monkeypatch.setattr(checkpoint.Run, name, method)


@pytest.mark.parametrize(
    ("method", "number", "after"),
    push(
        10,
        [
            ("once", 1, True),
            ("stored", 1, False),
            ("new_W", 1, False),
            ("new_W", 3, True),
            ("save", 1, True),
            ("save", 4, False),
            ("_commit", 1, False),
            ("_commit", 3, True),
            ("_collect", 2, False),
            ("delete", 1, True),
            ("once", 1, False),
            ("stored", 1, True),
            ("new_W", 1, True),
            ("new_W", 3, False),
            ("save", 1, False),
            ("save", 4, True),
            ("_commit", 1, True),
            ("_commit", 3, False),
            ("_collect", 2, True),
            ("delete", 1, False),
        ],
    ),
)
def test_between_any_two_steps(
    V: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    large_factor: str,
    undisturbed: dask_nmf.Result,
    method: str,
    number: int,
    after: bool,
) -> None:
    fuse = Fuse(monkeypatch, method, number, after)
    with pytest.raises(Killed), dask.config.set(scheduler="synchronous"):
        dask_nmf.factorize(V, 5, out=tmp_path / "out.zarr", **FEW)
    assert fuse.calls == number
    found = dask_nmf.factorize(V, 5, out=tmp_path / "out.zarr", **FEW)
    assert found.plan is not None
    assert found.plan.large_factor == large_factor
    assert_same(found, undisturbed)
    assert not (tmp_path / "out.zarr" / "run").exists()


@pytest.mark.parametrize("step", ["nndsvd-1", "nndsvd-2", "products", "first"])
def test_at_most_one_pass_before_the_start_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_kept: None, step: str
) -> None:
    """Killed right after one of the passes that make the start."""
    V, store = counted(tmp_path / "V.zarr", low_rank(60, 700, 3), (60, 70))
    options: dict[str, Any] = {"tol": 0, "max_passes": 9, "init": "nndsvda", "solver": "hals"}
    expected = dask_nmf.factorize(V, 3, **options)
    assert expected.plan is not None
    assert expected.plan.transposed
    store.reset()
    original = checkpoint.Run.once

    def once(run: Any, name: str, kind: Any, make: Any) -> Any:
        found = original(run, name, kind, make)
        if name == step and not run.recalled:
            raise Killed
        return found

    monkeypatch.setattr(checkpoint.Run, "once", once)
    with pytest.raises(Killed):
        dask_nmf.factorize(V, 3, out=tmp_path / "out.zarr", **options)
    found = dask_nmf.factorize(V, 3, out=tmp_path / "out.zarr", **options)
    assert_same(found, expected)
    assert max(store.reads().values()) <= expected.history[-1].passes + 1


def test_a_damaged_generation_costs_a_pass(
    V: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, expected = tmp_path / "out.zarr", dask_nmf.factorize(V, 5, **FEW)
    with pytest.raises(Killed):
        dask_nmf.factorize(V, 5, out=out, callback=killing(4), **FEW)
    (newest,) = (out / "run").glob("*/commit-000004")
    run = newest.parent
    assert len(list(run.glob("commit-*"))) == 2
    (W,) = run.glob("W-000004-*")
    chunk = W / "c" / "2" / "0"
    spoilt = bytearray(chunk.read_bytes())
    spoilt[9] ^= 1
    chunk.write_bytes(spoilt)
    found = dask_nmf.factorize(V, 5, out=out, **FEW)
    assert found.resumed_from == found.history[2].passes
    assert "going on from the pass before it" in caplog.text
    assert_same(found, expected)


def test_disk_use_is_bounded(V: Path, tmp_path: Path, large_factor: str) -> None:
    """Three generations of W at most, whatever was killed; nothing of it in the end."""
    out, sizes, W_bytes = tmp_path / "out.zarr", [], 700 * 5 * 8
    kill = killing(2, 5, 7, 11, 12)

    def watch(record: SweepRecord) -> None:
        folder = out / "run"
        assert len(list(folder.glob("*/W-*"))) <= 3
        assert len(list(folder.glob("*/commit-*"))) <= 2
        sizes.append(sum(f.stat().st_size for f in folder.glob("*/W-*/c/*/*")))
        kill(record)

    options = {**FEW, "max_passes": 20, "solver": "hals"}
    until_done(V, 5, watch, out=out, **options)
    assert max(sizes) <= 3 * W_bytes * 1.05
    assert not (out / "run").exists()


def test_W_in_memory_is_written_at_commits_only(
    V: Path, tmp_path: Path, large_factor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = Fuse(monkeypatch, "new_W", 10**6, False)
    options = {**FEW, "checkpoint_every": 3, "solver": "hals"}
    found = dask_nmf.factorize(V, 5, out=tmp_path / "out.zarr", **options)
    sweeps = len(found.history)
    assert sweeps == 7
    # The start, sweeps 3 and 6, the end; or each.
    assert writes.calls == (4 if large_factor == "memory" else 1 + sweeps)
    assert_same(found, dask_nmf.factorize(V, 5, **FEW, solver="hals"))


def test_commits_on_demand(V: Path, tmp_path: Path, large_factor: str) -> None:
    options = {**FEW, "checkpoint_every": 3}
    with pytest.raises(Killed):
        dask_nmf.factorize(V, 5, out=tmp_path / "out.zarr", callback=killing(5), **options)
    found = dask_nmf.factorize(V, 5, out=tmp_path / "out.zarr", **options)
    assert found.resumed_from == found.history[2].passes
    assert_same(found, dask_nmf.factorize(V, 5, **FEW))
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1, got 0"):
        dask_nmf.factorize(V, 5, out=tmp_path / "out.zarr", **{**FEW, "checkpoint_every": 0})


def test_states_come_back_as_they_were() -> None:
    random = np.random.default_rng(0)

    def some(*shape: int) -> Array:
        return random.random(shape)

    numer = some(7, 2)
    seen = Seen(some(2, 5), Products(some(2, 5), some(2, 2), None, 0.25), numer, None)
    record = SweepRecord(1, 2, 0.1 + 0.2, 3.5, 2**40, float("inf"))
    state = State(
        W=None,
        H=some(2, 5),
        passes=3,
        history=(record, record),
        ahead=Ahead(Trust(2, 100), None, seen, some(2, 5)),
    )
    found = packing.unpack(State, packing.pack(state))
    assert found.history == state.history
    assert found.ahead.trust == Trust(2, 100)
    assert found.ahead.seen.products.residual == 0.25
    assert found.ahead.seen.products.WtR is None
    assert found.ahead.seen.numer.tobytes() == numer.tobytes()
    assert found.products is None
    flat = packing.pack(state)
    del flat["value.passes"]
    with pytest.raises(errors.Damaged, match="passes is missing"):
        packing.unpack(State, flat)


@pytest.mark.parametrize("error", [TimeoutError("mine"), OSError(28, "mine"), MemoryError("mine")])
def test_what_a_callback_raises_is_its_own(V: Path, tmp_path: Path, error: Exception) -> None:
    """Not taken for a failure of the store, or of ours."""

    def callback(record: SweepRecord) -> None:
        if record.sweep == 2:
            raise error

    for where in ({}, {"out": tmp_path / "out.zarr"}):
        options: dict[str, Any] = {**FEW, **where}
        with pytest.raises(type(error), match="mine") as caught:
            dask_nmf.factorize(V, 5, callback=callback, **options)
        assert caught.value is error
    found = dask_nmf.factorize(V, 5, out=tmp_path / "out.zarr", **FEW)
    assert found.resumed_from == found.history[1].passes
