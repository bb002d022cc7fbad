"""What a call finds at `out`: its own result or run, or another one's, which it does not harm."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import pytest
import zarr

import dask_nmf
from dask_nmf import blas, checkpoint, commits, resume
from dask_nmf.types import SweepRecord
from tests.conftest import low_rank, push
from tests.resuming import DATA, FEW, Killed, assert_same, killing


@pytest.fixture
def V(tmp_path: Path) -> Path:
    zarr.create_array(tmp_path / "V.zarr", data=DATA, chunks=(70, 60))
    return tmp_path / "V.zarr"


@pytest.fixture
def two_threads() -> Iterator[None]:
    with dask.config.set(scheduler="threads", num_workers=2):
        yield


def test_another_call_is_refused_and_harms_nothing(V: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    with pytest.raises(Killed):
        dask_nmf.factorize(V, 5, out=out, callback=killing(3), **FEW)
    for other, text in (
        ({"seed": 1}, r"seed 0 \(now 1\)"),
        ({"solver": "mu"}, r"solver LookAhead.* \(now MU"),
        ({"init": "nndsvda"}, "init "),
        ({"block_rows": 140}, r"block_rows 70 \(now 140\)"),
        ({"missing": "zero"}, r"missing error \(now zero\)"),
    ):
        with pytest.raises(FileExistsError, match=f"unfinished run of another call: .*{text}"):
            dask_nmf.factorize(V, 5, out=out, **{**FEW, **other})
    with pytest.raises(FileExistsError, match=r"rank 5 \(now 4\).*overwrite=True"):
        dask_nmf.factorize(V, 4, out=out, **FEW)
    found = dask_nmf.factorize(V, 5, out=out, **FEW)
    assert found.resumed_from is not None
    assert_same(found, dask_nmf.factorize(V, 5, **FEW))
    with pytest.raises(
        FileExistsError, match=r"finished result .*rank 5 \(now 4\): pass overwrite"
    ):
        dask_nmf.factorize(V, 4, out=out, **FEW)
    replaced = dask_nmf.factorize(V, 4, out=out, overwrite=True, **FEW)
    assert_same(replaced, dask_nmf.factorize(V, 4, **FEW))


def test_overwrite_of_a_run_that_is_under_way(V: Path, tmp_path: Path) -> None:
    """overwrite=True replaces results and drops others' runs; its own it goes on with."""
    out = tmp_path / "out.zarr"
    dask_nmf.factorize(V, 3, out=out, **FEW)
    with pytest.raises(Killed):
        dask_nmf.factorize(V, 4, out=out, overwrite=True, callback=killing(3), **FEW)
    assert dask_nmf.open_result(out).H.shape == (3, 60)  # until the new one is finished
    assert dask_nmf.factorize(V, 3, out=out, **FEW).H.shape == (3, 60)
    found = dask_nmf.factorize(V, 4, out=out, overwrite=True, **FEW)
    assert found.resumed_from == found.history[2].passes
    with pytest.raises(Killed):
        dask_nmf.factorize(V, 5, out=out, overwrite=True, callback=killing(3), **FEW)
    found = dask_nmf.factorize(V, 2, out=out, overwrite=True, **FEW)
    assert found.resumed_from is None
    assert_same(found, dask_nmf.factorize(V, 2, **FEW))


@pytest.mark.parametrize("kind", ["zarr", "numpy", "dask"])
def test_a_larger_budget_goes_on(V: Path, tmp_path: Path, kind: str) -> None:
    matrix: Any = {
        "zarr": V,
        "numpy": DATA,
        "dask": da.from_array(DATA, chunks=(70, 60)),
    }[kind]
    options: dict[str, Any] = {"solver": "hals", "block_rows": 70, "tol": 1e-12}
    out = tmp_path / "out.zarr"
    with pytest.warns(dask_nmf.ConvergenceWarning):
        expected = dask_nmf.factorize(matrix, 5, max_passes=9, **options)
    with pytest.warns(dask_nmf.ConvergenceWarning):
        first = dask_nmf.factorize(matrix, 5, out=out, max_passes=5, **options)
    assert len(first.history) == 4
    with pytest.warns(dask_nmf.ConvergenceWarning):
        same = dask_nmf.factorize(matrix, 5, out=out, max_passes=5, **options)
    assert_same(same, first)
    with pytest.warns(dask_nmf.ConvergenceWarning):
        found = dask_nmf.factorize(matrix, 5, out=out, max_passes=9, **options)
    assert found.resumed_from == 5
    assert_same(found, expected)
    done = dask_nmf.factorize(matrix, 5, out=out, max_passes=9, **{**options, "tol": 0.5})
    assert done.history == found.history  # it would have stopped before
    assert done.status is dask_nmf.Status.CONVERGED
    looser = {**options, "tol": 0.2}
    dask_nmf.factorize(matrix, 5, out=tmp_path / "loose.zarr", **looser)
    with pytest.raises(FileExistsError, match=r"tol=0\.2, .*tol=1e-12, .*is not kept: pass over"):
        dask_nmf.factorize(matrix, 5, out=tmp_path / "loose.zarr", **options)


def _rewrite(V: Path, value: float | None) -> None:
    """The chunk of row 400 written anew, with that in its place or as it was."""
    array: Any = zarr.open_array(V, mode="r+")
    chunk = array[350:420]
    if value is not None:
        chunk[50, 3] = value
    array[350:420] = chunk
    os.utime(V / "c" / "5" / "0", ns=(1, 1))


@pytest.mark.parametrize("finished", push(1, [False, True]))
def test_V_that_has_changed_is_noticed(V: Path, tmp_path: Path, finished: bool) -> None:
    out, expected = tmp_path / "out.zarr", dask_nmf.factorize(V, 5, **FEW)
    if finished:
        dask_nmf.factorize(V, 5, out=out, **FEW)
    else:
        with pytest.raises(Killed):
            dask_nmf.factorize(V, 5, out=out, callback=killing(3), **FEW)
    _rewrite(V, None)  # touched, but the same: one read tells
    if finished:
        assert_same(dask_nmf.factorize(V, 5, out=out, **FEW), expected)
    before = float(DATA[400, 3])
    _rewrite(V, before + 1e-3)
    for _ in range(2):  # also when asked again
        with pytest.raises((ValueError, FileExistsError), match="V has changed since"):
            dask_nmf.factorize(V, 5, out=out, **FEW)
    _rewrite(V, before)
    assert_same(dask_nmf.factorize(V, 5, out=out, **FEW), expected)
    _rewrite(V, before + 1e-3)
    anew = dask_nmf.factorize(V, 5, out=out, overwrite=True, **FEW)
    assert_same(anew, dask_nmf.factorize(V, 5, **FEW))


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_rows_or_columns_that_change_places_are_noticed(V: Path, tmp_path: Path, kind: str) -> None:
    def of(values: Any) -> Any:
        if kind == "zarr":
            return zarr.create_array(
                tmp_path / "X.zarr", data=values, chunks=(70, 8), overwrite=True
            )
        return values if kind == "numpy" else da.from_array(values, chunks=70)

    dask_nmf.factorize(of(DATA), 5, out=tmp_path / "out.zarr", **FEW)
    rows = [7, *range(1, 7), 0, *range(8, len(DATA))]
    for moved in (DATA[rows], DATA[:, ::-1]):
        with pytest.raises(FileExistsError, match="V has changed since"):
            dask_nmf.factorize(of(moved), 5, out=tmp_path / "out.zarr", **FEW)
    assert dask_nmf.factorize(of(DATA), 5, out=tmp_path / "out.zarr", **FEW).resumed_from


def test_V_that_changes_in_mid_run_is_noticed(V: Path, tmp_path: Path, nothing_kept: None) -> None:
    def change(record: SweepRecord) -> None:
        if record.sweep == 3:
            _rewrite(V, 7.0)

    with pytest.raises(ValueError, match="V has changed since"):
        dask_nmf.factorize(V, 5, out=tmp_path / "out.zarr", callback=change, **FEW)
    with pytest.raises(ValueError, match="has not finished"):
        dask_nmf.open_result(tmp_path / "out.zarr")


def test_other_arithmetic_is_told(V: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        dask_nmf.factorize(V, 5, out=tmp_path / "out.zarr", callback=killing(3), **FEW)
    monkeypatch.setattr("dask_nmf.running.arithmetic", lambda: ["numpy 1.0 abacus"])
    with pytest.warns(UserWarning, match="other arithmetic .*abacus.* last bits may differ"):
        found = dask_nmf.factorize(V, 5, out=tmp_path / "out.zarr", **FEW)
    assert found.resumed_from is not None


def test_the_arithmetic_is_numpys_whatever_else_is_loaded() -> None:
    """scipy brings a BLAS of its own: which process has imported it must not matter."""
    import scipy.linalg

    assert scipy.linalg
    blas._controller.cache_clear()
    assert len(blas.arithmetic()) == 2


@pytest.mark.usefixtures("two_threads")
def test_the_blocks_of_the_first_call_stay(tmp_path: Path) -> None:
    """Another memory would choose other blocks, and other bits."""
    V = low_rank(200_000, 100, 2).astype("f4")  # two blocks: one for each thread
    X = zarr.create_array(tmp_path / "X.zarr", data=V, chunks=(4_000, 100))
    fixed: dict[str, Any] = {"max_passes": 4, "solver": "hals"}
    options: dict[str, Any] = {**fixed, "tol": 0}
    expected = dask_nmf.factorize(X, 2, **options)
    with pytest.raises(Killed):
        dask_nmf.factorize(X, 2, out=tmp_path / "out", callback=killing(2), **options)
    other = dask_nmf.plan(X, 2, out="out", memory="253MB", **fixed)
    assert expected.plan is not None
    assert other.block != expected.plan.block
    with pytest.raises(ValueError, match="too small to go on with the run at out: its blocks of"):
        dask_nmf.factorize(X, 2, out=tmp_path / "out", memory="253MB", **options)
    assert expected.plan.threads == 2
    megabytes = range(253, 463)  # just too little for two threads with these blocks
    plans = {mb: dask_nmf.plan(X, 2, out="out", memory=mb * 10**6, **fixed) for mb in megabytes}
    tight = max(mb for mb in megabytes if plans[mb].block != expected.plan.block)
    found = dask_nmf.factorize(X, 2, out=tmp_path / "out", memory=tight * 10**6, **options)
    assert found.plan is not None
    assert found.plan.block == expected.plan.block
    assert_same(found, expected)


def test_a_newer_format_is_refused(V: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    with pytest.raises(Killed):
        dask_nmf.factorize(V, 5, out=out, callback=killing(2), **FEW)
    place = zarr.open_group(out, mode="r+").store_path / "run" / "epoch-000002"
    newest = checkpoint.newest_claim(zarr.open_group(out, mode="r"))
    assert newest is not None
    content = {"format": 99, "nonce": "x", "run": newest.run, "record": {}, "driver": "x"}
    assert commits.create(place, content)
    with pytest.raises(ValueError, match="run of a newer dask_nmf .*upgrade"):
        dask_nmf.factorize(V, 5, out=out, **FEW)


def test_what_ends_a_run_is_not_what_it_is() -> None:
    ends = {"tol", "max_passes", "max_seconds", "rule", "max_sweeps"}
    assert ends == set(resume._STOPPING)


def test_no_warning_is_lost(V: Path, tmp_path: Path) -> None:
    """The second call says as the first one did that the budget ended the run."""
    for _ in range(2):
        with pytest.warns(dask_nmf.ConvergenceWarning):
            dask_nmf.factorize(V, 5, out=tmp_path / "out.zarr", max_passes=3, solver="mu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dask_nmf.open_result(tmp_path / "out.zarr").status is dask_nmf.Status.MAX_PASSES
