"""A copy in other chunks is V, is made within memory, and goes on where it was killed."""

import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr

import dask_nmf
from dask_nmf import rechunking
from dask_nmf.cli import main
from dask_nmf.rechunking import describe, rechunk
from dask_nmf.survey import geometry
from tests.conftest import Array, counted, low_rank
from tests.processes import CONTEXT

SHAPE = (90, 62)

LAYOUTS: dict[str, dict[str, Any]] = {
    "rows": {"chunks": (10, 62)},
    "squares": {"chunks": (16, 16)},
    "columns": {"chunks": (90, 5)},
    "one chunk": {"chunks": (90, 62)},
    "shards": {"chunks": (5, 4), "shards": (20, 16)},
    "v2": {"chunks": (17, 23), "zarr_format": 2},
    "raw": {"chunks": (17, 62), "compressors": None},
}


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that weighs nothing, so that limits of some kB decide."""
    monkeypatch.setattr(rechunking, "BASE_BYTES", 0)


def values(dtype: str = "f4") -> Array:
    V = np.random.default_rng(0).poisson(2, SHAPE).astype(dtype)
    V[30:50] = 0  # whole chunks of zeros
    return V


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("chunks", "dtype"),
    [(None, "f4"), ((20, 62), "u2"), ((7, 11), "f4"), ((90, 62), "u2"), ((90, 9), "f4")],
)
def test_the_copy_is_V(tmp_path: Path, layout: str, chunks: Any, dtype: str) -> None:
    V = zarr.create_array(
        tmp_path / "V.zarr",
        shape=SHAPE,
        dtype=dtype,
        attributes={"unit": "counts"},
        config={"write_empty_chunks": True},
        **LAYOUTS[layout],
    )
    V[:] = values(dtype)
    copy = rechunk(tmp_path / "V.zarr", tmp_path / "copy.zarr", chunks=chunks)
    again = zarr.open_array(tmp_path / "copy.zarr", mode="r")
    assert np.array_equal(again[:], values(dtype))
    assert again.chunks == copy.chunks == (chunks or (90, 62))
    assert again.dtype == V.dtype
    assert again.attrs["unit"] == "counts"
    assert again.nchunks_initialized == again.nchunks  # also those of zeros
    assert not (tmp_path / "copy.zarr.stage").exists()
    assert dask_nmf.factorize(copy, 2, max_passes=3, tol=0).plan is not None


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
@pytest.mark.parametrize("codec", ["lz4", "zstd", "none"])
def test_from_anything_on_any_scheduler(
    tmp_path: Path, scheduler: str, kind: str, codec: Any
) -> None:
    V: Any = values()
    if kind == "dask":
        V = da.from_array(V, chunks=((3, 60, 27), (31, 31)))
    if kind == "zarr":
        V = zarr.create_array(tmp_path / "V.zarr", data=V, chunks=(16, 16))
        V = zarr.open_array(tmp_path / "V.zarr", mode="r")
    rechunk(V, tmp_path / "copy.zarr", chunks=(13, 62), codec=codec, missing="zero")
    assert np.array_equal(zarr.open_array(tmp_path / "copy.zarr", mode="r")[:], values())


def test_a_flipped_bit_of_the_copy_is_noticed(tmp_path: Path) -> None:
    for codec in ("lz4", "zstd", "none"):
        out = tmp_path / codec
        rechunk(low_rank(40, 30, 2), out, chunks=(10, 30), codec=codec)
        content = bytearray((out / "c/1/0").read_bytes())
        content[len(content) // 2] ^= 4
        (out / "c/1/0").write_bytes(content)
        with pytest.raises(ValueError, match="chunk 'c/1/0' of .* is damaged"):
            dask_nmf.factorize(out, 2, max_passes=3)


@pytest.mark.parametrize(
    ("source", "chunks", "limit", "steps"),
    [
        ((10, 62), (30, 62), 60_000, 1),  # joined
        ((30, 62), (10, 62), 60_000, 1),  # cut
        ((90, 5), (10, 62), 60_000, 2),  # columns to rows, less memory than V
        ((90, 5), (10, 62), 200_000, 1),  # and with enough
        ((16, 16), (16, 62), 60_000, 1),
    ],
)
def test_reads_of_V_are_one(
    tmp_path: Path, tight: None, source: Any, chunks: Any, limit: int, steps: int
) -> None:
    V, store = counted(tmp_path / "V.zarr", low_rank(*SHAPE, 2).astype("f4"), source)
    with dask.config.set(scheduler="threads", num_workers=1):
        known = geometry(dask_nmf.io.open_matrix(V), 1, dask_nmf.scheduler.active_scheduler())
        assert len(rechunking._steps(known, chunks, limit)) == steps
        copy = rechunk(V, tmp_path / "copy.zarr", chunks=chunks, memory=limit)
    assert set(store.reads().values()) == {1}
    assert np.array_equal(copy[:], V[:])
    assert not (tmp_path / "copy.zarr.stage").exists()


def test_default_chunks_suit_the_plan() -> None:
    def suited(m: int, n: int, chunks: tuple[int, int], codec: Any = "auto") -> Any:
        V = zarr.create_array(
            zarr.storage.MemoryStore(), shape=(m, n), chunks=chunks, dtype="f4", compressors=codec
        )
        scheduler = dask_nmf.scheduler.active_scheduler()
        return rechunking._suited(geometry(dask_nmf.io.open_matrix(V), 1, scheduler))

    assert suited(10**6, 1_000, (100, 1_000)) == (4_100, 1_000)
    assert suited(10**6, 1_000, (20_000, 100)) == (4_000, 1_000)  # a fifth of a source chunk
    assert suited(10**6, 1_000, (10**6, 10)) == (4_194, 1_000)
    assert suited(1_000, 10**8, (100, 1_000)) == (1_000, 4_000)


def _slowly(V: Path, out: Path, limit: int) -> None:
    """In a process of its own, which may die before it is done."""
    write = rechunking._write

    def slow(*args: Any) -> None:
        write(*args)
        time.sleep(0.05)

    vars(rechunking).update(_write=slow, BASE_BYTES=0)
    with dask.config.set(scheduler="threads", num_workers=1):
        rechunk(V, out, chunks=(5, 62), memory=limit)


def _made_again(finished: dict[Path, int]) -> int:
    return sum(p.exists() and p.stat().st_mtime_ns != at for p, at in finished.items())


@pytest.mark.parametrize(
    ("source", "limit", "box"),  # chunks that one task writes
    [((90, 5), 60_000, 18), ((10, 62), 60_000, 2)],  # in two steps, in one
)
def test_killed_at_any_moment_it_goes_on(
    tmp_path: Path, tight: None, source: tuple[int, int], limit: int, box: int
) -> None:
    """But for the box that was at work when it was killed, nothing is made again."""
    V, out = tmp_path / "V.zarr", tmp_path / "copy.zarr"
    zarr.create_array(V, data=low_rank(*SHAPE, 2).astype("f4"), chunks=source)
    kills = 0
    while True:
        chunks = [p for p in tmp_path.glob("copy.zarr*/c/*/*") if p.suffix != ".partial"]
        finished = {path: path.stat().st_mtime_ns for path in chunks}
        process = CONTEXT.Process(target=_slowly, args=(V, out, limit), daemon=True)
        process.start()
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if len([*tmp_path.glob("copy.zarr*/c/*/*")]) >= len(chunks) + 5:
                process.kill()
                kills += 1
                break
            time.sleep(0.02)
        process.join(10)
        assert _made_again(finished) < box
        if process.exitcode == 0 or kills >= 3:
            break
    assert kills >= 1
    with dask.config.set(scheduler="threads", num_workers=1):
        before = {p: p.stat().st_mtime_ns for p in out.glob("c/*/*") if p.suffix != ".partial"}
        copy = rechunk(V, out, chunks=(5, 62), memory=limit)
    assert np.array_equal(copy[:], zarr.open_array(V, mode="r")[:])
    assert _made_again(before) < box
    assert not (tmp_path / "copy.zarr.stage").exists()


def test_a_finished_copy_costs_no_read(tmp_path: Path) -> None:
    V, store = counted(tmp_path / "V.zarr", low_rank(*SHAPE, 2), (10, 62))
    rechunk(V, tmp_path / "copy.zarr")
    store.reset()
    assert np.array_equal(rechunk(V, tmp_path / "copy.zarr")[:3], V[:3])
    assert sum(store.reads().values()) == 1  # the three rows of the line above


def test_bad_input(tmp_path: Path, tight: None) -> None:
    path = tmp_path / "V.zarr"
    zarr.create_array(path, data=low_rank(*SHAPE, 2), chunks=(90, 5))
    for options, text in (
        ({"chunks": (0, 3)}, "chunks must be"),
        ({"chunks": 7}, "chunks must be"),
        ({"chunks": (True, 2)}, "chunks must be"),
        ({"codec": "zip"}, "codec must be one of"),
        ({"memory": "few"}, "memory must be bytes"),
        ({"memory": 5_000, "chunks": (10, 62)}, "memory=.* too small to rechunk V"),
    ):
        with pytest.raises(ValueError, match=text):
            rechunk(path, tmp_path / "copy.zarr", **options)
    with pytest.raises(ValueError, match="codec must be one of"):
        rechunk(path, tmp_path / "copy.zarr", codec=["lz4"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="out must be a path or a URL, got Group"):
        rechunk(path, zarr.create_group(zarr.storage.MemoryStore()))  # type: ignore[arg-type]
    for out in (path / "c", tmp_path):
        with pytest.raises((ValueError, OSError), match="apart from V|holds something"):
            rechunk(path, out)
    assert {p.name for p in tmp_path.iterdir()} == {"V.zarr"}
    numbers: Any = tuple(np.array([10, 62]))
    rechunk(path, tmp_path / "copy.zarr", chunks=numbers)
    with pytest.raises(FileExistsError, match=r"another call \(chunks \[10, 62\], now \[20, 62\]"):
        rechunk(path, tmp_path / "copy.zarr", chunks=(20, 62))
    (tmp_path / "note").write_text("mine")
    with pytest.raises(FileExistsError, match="out: .*note holds something else"):
        rechunk(path, tmp_path / "note")
    (path / "c/0/3").unlink()
    with pytest.raises(ValueError, match="chunk 'c/0/3' is not in"):
        rechunk(path, tmp_path / "other.zarr")


def test_nothing_else_beside_the_copy_is_deleted(tmp_path: Path) -> None:
    """A finished copy of the user's own may lie where a stage would."""
    own = tmp_path / "copy.zarr.stage"
    rechunk(values(), own, chunks=(10, 62))
    rechunk(values(), tmp_path / "copy.zarr", chunks=(20, 62))
    assert np.array_equal(zarr.open_array(own, mode="r")[:], values())
    (tmp_path / "other.zarr.stage").mkdir()
    (tmp_path / "other.zarr.stage" / "thesis.tex").write_text("42")
    other: Any = rechunk(values(), tmp_path / "other.zarr")
    assert other.attrs["dask_nmf_rechunk"]["state"] == "finished"
    assert (tmp_path / "other.zarr.stage" / "thesis.tex").read_text() == "42"


def test_a_disk_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10, 10, 10))
    with pytest.raises(OSError, match="the copy needs .* only 10 B are free"):
        rechunk(low_rank(*SHAPE, 2), tmp_path / "copy.zarr", codec="none")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(tmp_path / "V.zarr"), str(tmp_path / "copy.zarr")
    zarr.create_array(path, data=low_rank(*SHAPE, 2), chunks=(90, 5))
    assert main(["rechunk", path, out, "--chunks", "30", "62", "--codec", "zstd"]) == 0
    copy = zarr.open_array(out, mode="r")
    assert capsys.readouterr().out.strip() == describe(copy)
    assert copy.chunks == (30, 62)
    assert main(["rechunk", path, out]) == 2
    assert "holds a copy made by another call" in capsys.readouterr().err
    assert main(["plan", out, "--rank", "3", "--json"]) == 0
    assert '"chunks": "30 x 62"' in capsys.readouterr().out
    assert main(["plan", out, "--rank", "3", "--memory", "366MB", "--probe"]) == 0
    assert "a pass takes" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
