"""The results group: readable by xarray, finished last, never harmed by a failing call."""

import json
import os
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray
import zarr

import dask_nmf
from tests.conftest import low_rank

V = low_rank(70, 12, 2)
FEW: dict[str, Any] = {"tol": 0, "max_passes": 4}


def _bytes_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_xarray_opens_it(tmp_path: Path) -> None:
    result = dask_nmf.factorize(V, 2, out=tmp_path / "out.zarr", **FEW)
    with xarray.open_zarr(tmp_path / "out.zarr") as found:
        assert dict(found.sizes) == {"row": 70, "component": 2, "column": 12, "pass": 3}
        assert found["W"].dims == ("row", "component")
        assert found["H"].dims == ("component", "column")
        assert found["error"].dims == found["seconds"].dims == ("pass",)
        assert np.array_equal(found["W"].values, result.W.compute())
        assert np.array_equal(found["H"].values, result.H)
        assert found["error"].values.tolist() == [r.error for r in result.history]
        true = np.linalg.norm(V - found["W"].values @ found["H"].values) / np.linalg.norm(V)
        assert found.attrs["dask_nmf"]["error"] == pytest.approx(true)


def test_W_is_lazy_and_the_same(tmp_path: Path) -> None:
    kept = dask_nmf.factorize(V, 2, block_rows=9, **FEW)
    written = dask_nmf.factorize(V, 2, block_rows=9, out=tmp_path / "out.zarr", **FEW)
    assert isinstance(kept.W, da.Array)
    assert isinstance(written.W, da.Array)
    assert kept.W.compute().tobytes() == written.W.compute().tobytes()
    assert zarr.open_array(tmp_path / "out.zarr" / "W", mode="r").chunks == (63 + 7, 2)


@pytest.mark.parametrize("heights", [(70,), (9,) * 7 + (7,), (3, 60, 1, 6), (1,) * 70])
def test_any_blocks_of_W_are_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heights: tuple[int, ...]
) -> None:
    monkeypatch.setattr("dask_nmf.output._CHUNK_BYTES", 20 * 2 * 8)  # chunks of 20 rows at most
    X = da.from_array(V, chunks=(heights, (12,)))
    result = dask_nmf.factorize(X, 2, out=tmp_path / "out.zarr", block_rows=max(heights), **FEW)
    expected = dask_nmf.factorize(X, 2, block_rows=max(heights), **FEW)
    assert np.array_equal(result.W.compute(), expected.W.compute())
    W = zarr.open_array(tmp_path / "out.zarr" / "W", mode="r")
    assert W.chunks[0] <= 20
    assert W.nchunks_initialized == W.nchunks


def test_open_result_gives_it_back(tmp_path: Path) -> None:
    result = dask_nmf.factorize(V, 2, out=tmp_path / "out.zarr", **FEW)
    found = dask_nmf.open_result(tmp_path / "out.zarr")
    assert np.array_equal(found.W.compute(), result.W.compute())
    assert np.array_equal(found.H, result.H)
    assert found.history == result.history
    assert found.status is result.status
    assert found.summary() == result.summary()
    assert repr(found) == repr(result)


def test_attributes_and_summary_are_clean_json(tmp_path: Path) -> None:
    int_of_numpy: Any = np.int64(2)
    result = dask_nmf.factorize(
        V, int_of_numpy, out=tmp_path / "o", init=(V[:, :2], V[:2]), memory="1GB", **FEW
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for text in (
        (tmp_path / "o" / "zarr.json").read_text(),
        json.dumps(result.summary(), allow_nan=False),
    ):
        json.loads(text, parse_constant=refuse)
    summary = result.summary()
    assert all(isinstance(v, (str, int, float, bool, type(None))) for v in summary.values())
    assert len(json.dumps(summary)) < 10_000
    saved: Any = zarr.open_group(tmp_path / "o", mode="r").attrs["dask_nmf"]
    assert saved["state"] == "finished"
    assert saved["version"] == dask_nmf.__version__
    assert saved["parameters"]["rank"] == 2


def test_a_finished_result_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    dask_nmf.factorize(V, 2, out=out, **FEW)
    before = _bytes_of(out)
    with pytest.raises(FileExistsError, match="holds a finished result .*overwrite=True"):
        dask_nmf.factorize(V, 3, out=out, **FEW)
    bad = V.copy()
    bad[-1, -1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        dask_nmf.factorize(bad, 3, out=out, overwrite=True, **FEW)
    with pytest.raises(ValueError, match="rank"):
        dask_nmf.factorize(V, 0, out=out, overwrite=True)
    assert _bytes_of(out) == before


def test_overwrite_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    dask_nmf.factorize(low_rank(300, 30, 2), 5, out=out, **FEW)
    dask_nmf.factorize(V, 2, out=out, overwrite=True, **FEW)
    dask_nmf.factorize(V, 2, out=tmp_path / "fresh.zarr", **FEW)
    assert _bytes_of(out).keys() == _bytes_of(tmp_path / "fresh.zarr").keys()
    assert np.array_equal(
        dask_nmf.open_result(out).W.compute(),
        dask_nmf.open_result(tmp_path / "fresh.zarr").W.compute(),
    )


def test_an_unfinished_result_is_no_result(tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"

    def killed(record: dask_nmf.SweepRecord) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dask_nmf.factorize(V, 2, out=out, callback=killed)
    with pytest.raises(ValueError, match="has not finished: call factorize again"):
        dask_nmf.open_result(out)
    assert dask_nmf.factorize(V, 2, out=out, **FEW).W.shape == (70, 2)


def test_killed_in_the_middle_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out.zarr"
    dask_nmf.factorize(V, 3, out=out, **FEW)
    with monkeypatch.context() as patched:
        patched.setattr("dask_nmf.output._write_factor", killed)
        with pytest.raises(KeyboardInterrupt):
            dask_nmf.factorize(V, 2, out=out, overwrite=True, **FEW)
    with pytest.raises(ValueError, match="has not finished"):
        dask_nmf.open_result(out)
    assert dask_nmf.factorize(V, 2, out=out, **FEW).H.shape == (2, 12)


def test_zeros_of_W_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of zeros that zarr leaves out could not be told from a lost one."""
    monkeypatch.setattr("dask_nmf.output._CHUNK_BYTES", 10 * 2 * 8)
    zeros = V.copy()
    zeros[20:50] = 0
    result = dask_nmf.factorize(zeros, 2, out=tmp_path / "out.zarr", **FEW)
    W = result.W.compute()
    assert not W[20:50].any()
    assert W[:20].any()


def test_what_is_not_ours_is_never_overwritten(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "theirs.zarr").create_array("X", data=V)
    zarr.create_array(tmp_path / "array.zarr", data=V)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("42")
    (tmp_path / "file").write_text("42")
    before = _bytes_of(tmp_path)
    for name in ("theirs.zarr", "array.zarr", "folder", "file"):
        with pytest.raises(OSError, match=name):
            dask_nmf.factorize(V, 2, out=tmp_path / name, overwrite=True)
    with pytest.raises(FileExistsError, match="did not write"):
        dask_nmf.factorize(
            tmp_path / "theirs.zarr" / "X", 2, out=tmp_path / "theirs.zarr", overwrite=True
        )
    assert _bytes_of(tmp_path) == before


def test_out_must_not_be_V(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "V.zarr", data=V)
    with pytest.raises(OSError, match="is a zarr array"):
        dask_nmf.factorize(tmp_path / "V.zarr", 2, out=tmp_path / "V.zarr")
    with pytest.raises((ValueError, OSError)):
        dask_nmf.factorize(tmp_path / "V.zarr", 2, out=tmp_path / "V.zarr" / "c")
    before = _bytes_of(tmp_path)
    with pytest.raises(ValueError, match="out must lie apart from V"):
        dask_nmf.factorize(tmp_path / "V.zarr", 2, out=tmp_path / "V.zarr" / "results")
    assert _bytes_of(tmp_path) == before
    assert np.array_equal(zarr.open_array(tmp_path / "V.zarr", mode="r")[:], V)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs permissions")
def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="out: cannot write to .*file"):
        dask_nmf.factorize(V, 2, out=tmp_path / "file" / "out.zarr")
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="out: cannot write to .*closed"):
        dask_nmf.factorize(V, 2, out=tmp_path / "closed" / "out.zarr")


def test_a_group_in_memory_and_a_group_in_a_store(tmp_path: Path) -> None:
    group: Any = zarr.group(zarr.storage.MemoryStore())
    result = dask_nmf.factorize(V, 2, out=group, **FEW)
    assert np.array_equal(group["W"][:], result.W.compute())
    assert dask_nmf.factorize(V, 2, out=group, **FEW).resumed_from == result.history[-1].passes
    inner = zarr.create_group(tmp_path / "many.zarr").create_group("run1")
    result = dask_nmf.factorize(V, 2, out=inner, **FEW)
    assert np.array_equal(dask_nmf.open_result(tmp_path / "many.zarr" / "run1").H, result.H)


def test_a_file_URL_is_its_path(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "V.zarr", data=V)
    url = f"file://{tmp_path}/out.zarr"
    result = dask_nmf.factorize(f"file://{tmp_path}/V.zarr", 2, out=url, **FEW)
    assert result.out == url
    assert np.array_equal(dask_nmf.open_result(tmp_path / "out.zarr").H, result.H)
    with pytest.raises(ValueError, match="out must lie apart from V"):
        dask_nmf.factorize(tmp_path / "V.zarr", 2, out=f"file://{tmp_path}/V.zarr/results")


def test_out_inside_V_by_way_of_a_link(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "V.zarr", data=V)
    (tmp_path / "link").symlink_to(tmp_path / "V.zarr")
    for place, out in (("V.zarr", "link"), ("link", "V.zarr")):
        with pytest.raises(ValueError, match="out must lie apart from V"):
            dask_nmf.factorize(tmp_path / place, 2, out=tmp_path / out / "results")


def test_on_every_scheduler(tmp_path: Path, scheduler: str) -> None:
    zarr.create_array(tmp_path / "V.zarr", data=V, chunks=(10, 12))
    result = dask_nmf.factorize(
        tmp_path / "V.zarr", 2, out=tmp_path / "out.zarr", block_rows=10, **FEW
    )
    assert np.array_equal(
        dask_nmf.open_result(tmp_path / "out.zarr").W.compute(), result.W.compute()
    )
    assert result.error == pytest.approx(
        float(np.linalg.norm(V - result.W.compute() @ result.H) / np.linalg.norm(V)), rel=1e-9
    )


def test_a_flipped_bit_in_W_is_noticed(tmp_path: Path) -> None:
    dask_nmf.factorize(V, 2, out=tmp_path / "out.zarr", **FEW)
    chunk = tmp_path / "out.zarr" / "W" / "c" / "0" / "0"
    damaged = bytearray(chunk.read_bytes())
    damaged[100] ^= 4
    chunk.write_bytes(damaged)
    with pytest.raises(ValueError, match="checksum"):
        dask_nmf.open_result(tmp_path / "out.zarr").W.compute()
    chunk.unlink()
    with pytest.raises(ValueError, match="c/0/0"):
        dask_nmf.open_result(tmp_path / "out.zarr").W.compute()


def test_no_result_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no dask_nmf result at"):
        dask_nmf.open_result(tmp_path / "nothing.zarr")
    zarr.create_group(tmp_path / "theirs.zarr")
    with pytest.raises(FileNotFoundError, match="no dask_nmf result at"):
        dask_nmf.open_result(tmp_path / "theirs.zarr")
    with pytest.raises(TypeError, match="out must be a path or a URL, got int"):
        dask_nmf.open_result(3)


def test_a_warning_turned_into_an_error_loses_nothing(tmp_path: Path) -> None:
    with pytest.raises(dask_nmf.ConvergenceWarning):
        dask_nmf.factorize(V, 2, out=tmp_path / "out.zarr", solver="mu", max_passes=3)
    assert dask_nmf.open_result(tmp_path / "out.zarr").status is dask_nmf.Status.MAX_PASSES
