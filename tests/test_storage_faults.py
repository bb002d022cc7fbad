"""`out` cannot be written during a run: an error that says so; once mended, the same bits."""

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
import zarr
from zarr.storage import LocalStore

import dask_nmf
from dask_nmf.blocks import Grid, even
from dask_nmf.output import Output
from tests.conftest import low_rank, push
from tests.mishaps import fill, mounted, unmounted
from tests.processes import Call, Processes, digest, wait_until
from tests.stores import CountingStore, FailingStore, SlowStore

SHAPE, BLOCK, BLOCKS = (3000, 100), 200, 15
FEW: dict[str, Any] = {"solver": "hals", "tol": 0, "max_passes": 7, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def V(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("storage") / "V.zarr"
    zarr.create_array(path, data=low_rank(*SHAPE, 4), chunks=(BLOCK, SHAPE[1]))
    return path


@pytest.fixture(scope="module")
def expected(V: Path) -> str:
    with dask.config.set(scheduler="synchronous"):
        return digest(dask_nmf.factorize(V, 4, block_rows=BLOCK, **FEW))


def factorize(V: Path, out: Path, order: Path, order_at: int = 0, text: str = "") -> Any:
    """A run on threads; after that sweep its store is ordered to fail."""

    def callback(record: dask_nmf.SweepRecord) -> None:
        if record.sweep == order_at:
            order.write_text(text)

    group = zarr.open_group(FailingStore(LocalStore(out), order), mode="a")
    return dask_nmf.factorize(V, 4, out=group, block_rows=BLOCK, callback=callback, **FEW)


CAUSES = {
    errno.ENOSPC: "a disk is full (the run needs up to ",
    errno.EDQUOT: "a disk is full (the run needs up to ",
    errno.EFBIG: "a disk is full (the run needs up to ",
    errno.EROFS: "restore its permissions",
    errno.EACCES: "restore its permissions",
    errno.EPERM: "restore its permissions",
}


@pytest.mark.parametrize("code", push(3, CAUSES), ids=errno.errorcode.get)
def test_out_cannot_be_written_any_more(V: Path, tmp_path: Path, expected: str, code: int) -> None:
    out, order = tmp_path / "out.zarr", tmp_path / "order"
    with pytest.raises(dask_nmf.StorageFailed) as caught:
        factorize(V, out, order, 3, f"{code} 1000")
    text = str(caught.value)
    assert CAUSES[code] in text
    assert str(out) in text
    assert "Then make the same call again: it goes on from the last commit" in text
    order.unlink()
    found = factorize(V, out, order)
    assert digest(found) == expected
    assert found.resumed_from == 4


def test_out_fails_for_a_moment(V: Path, tmp_path: Path, expected: str) -> None:
    """What may pass is tried again."""
    order = tmp_path / "order"
    found = factorize(V, tmp_path / "out.zarr", order, 3, f"{errno.EIO} 2")
    assert digest(found) == expected
    assert order.read_text() == f"{errno.EIO} 0"


def test_out_fails_for_good(
    V: Path, tmp_path: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dask_nmf.retrying._PAUSES", (0.01, 0.01))
    out, order = tmp_path / "out.zarr", tmp_path / "order"
    with pytest.raises(dask_nmf.StorageFailed, match=rf"{out}.* failed 3 times, at last with "):
        factorize(V, out, order, 3, f"{errno.EIO} 1000")
    order.unlink()
    assert digest(factorize(V, out, order)) == expected


@pytest.mark.parametrize(
    "where",
    [
        ".",
        "run",
        "run/*",
    ],
)
def test_a_writer_was_killed_before_it_renamed_its_file(
    V: Path, tmp_path: Path, expected: str, where: str
) -> None:
    """zarr writes a file under another name first; what is left of one is in nobody's way."""
    out, order = tmp_path / "out.zarr", tmp_path / "order"
    with pytest.raises(dask_nmf.StorageFailed):
        factorize(V, out, order, 3, f"{errno.ENOSPC} 1000")
    order.unlink()
    folders = [out] if where == "." else [p for p in out.glob(where) if p.is_dir()]
    folder = next(path for path in folders if "epoch" not in path.name)
    (folder / "zarr.0123456789abcdef.partial").write_bytes(b"{")
    found = factorize(V, out, order)
    assert digest(found) == expected
    assert found.resumed_from == 4
    assert not (out / "run").exists()
    assert digest(factorize(V, out, order)) == expected


def test_a_driver_was_killed_before_it_had_made_out(V: Path, tmp_path: Path, expected: str) -> None:
    out = tmp_path / "out.zarr"
    out.mkdir()
    (out / "zarr.0123456789abcdef.partial").write_bytes(b"{")
    assert digest(dask_nmf.factorize(V, 4, out=out, block_rows=BLOCK, **FEW)) == expected


# ------------------------------------------------------------------- on a disk, from a cluster
@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small one of its own."""
    if not mounted(tmp_path / "disk"):
        pytest.skip("only root may mount a disk")
    yield tmp_path / "disk"
    unmounted(tmp_path / "disk")


@pytest.mark.parametrize("how", push(1, ["full", "read-only"]))
def test_a_disk_that_workers_write_to(
    V: Path, disk: Path, tmp_path: Path, expected: str, how: str
) -> None:
    store = CountingStore(LocalStore(V), tmp_path / "reads.log")
    slow = zarr.open_array(SlowStore(store, 0.03), mode="r")
    grid = Grid(even(SHAPE[0], BLOCK), (SHAPE[1],))
    call = Call(slow, 4, grid, FEW, disk / "out.zarr")
    with Processes(tmp_path) as processes:
        processes.begin(2)
        driver = processes.drive(call)
        wait_until(lambda: store.reads().total() > 3.5 * BLOCKS, 30, "the fourth pass")
        if how == "full":
            mend = fill(disk, processes.workers)
        else:
            remount(disk, "ro")
        outcome = driver.told(30)
        assert outcome is not None, "it hangs"
        assert outcome.error == "StorageFailed", outcome.text
        assert ("a disk is full" if how == "full" else "restore its permissions") in outcome.text
        assert str(disk) in outcome.text
        if how == "full":
            mend()
        else:
            remount(disk, "rw")
        outcome = processes.drive(call).told(30)
        assert outcome is not None, "it hangs"
        assert outcome.digest == expected
        assert outcome.resumed_from


def remount(disk: Path, mode: str) -> None:
    """Busy as long as a file is open for writing."""
    command = ["mount", "-o", f"remount,{mode}", str(disk)]
    wait_until(
        lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, 10, mode
    )


def test_files_that_may_not_grow(V: Path, tmp_path: Path, expected: str) -> None:
    """A limit of the processes, as of a batch system."""
    store = CountingStore(LocalStore(V), tmp_path / "reads.log")
    slow = zarr.open_array(SlowStore(store, 0.03), mode="r")
    grid = Grid(even(SHAPE[0], BLOCK), (SHAPE[1],))
    call = Call(slow, 4, grid, FEW, tmp_path / "out.zarr")
    with Processes(tmp_path) as processes:
        processes.begin(2)
        driver = processes.drive(call)
        wait_until(lambda: store.reads().total() > 3.5 * BLOCKS, 30, "the fourth pass")
        mend = fill(tmp_path, [*processes.workers, driver])
        outcome = driver.told(30)
        assert outcome is not None, "it hangs"
        assert outcome.error == "StorageFailed", outcome.text
        assert "a disk is full" in outcome.text
        mend()
        assert processes.drive(call).told(30).digest == expected


def test_a_failure_after_the_results_is_told_as_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is deleted by then, by this call and not by another."""
    V = low_rank(40, 10, 2)

    def fails(_: Output) -> None:
        raise OSError(5, "the store is gone")

    monkeypatch.setattr(Output, "consolidate", fails)
    with pytest.raises(dask_nmf.StorageFailed, match="the store is gone"):
        dask_nmf.factorize(V, 2, out=tmp_path / "out", tol=0, max_passes=4)
    monkeypatch.undo()
    again = dask_nmf.factorize(V, 2, out=tmp_path / "out", tol=0, max_passes=4)
    assert again.resumed_from == 4
