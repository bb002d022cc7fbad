"""Bad input: a clear error before the work starts, naming what was found and what to do."""

import asyncio
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse
import zarr
from distributed import Client, LocalCluster

import dask_nmf
from tests.conftest import low_rank

V = low_rank(40, 12, 2)


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        (V + 0j, TypeError, r"real numbers.*got dtype complex128.*absolute value"),
        (V.astype(str), TypeError, "real numbers.*got dtype <U"),
        (V[0], ValueError, r"V must be 2-D.*got shape \(12,\)"),
        (V[None], ValueError, r"V must be 2-D.*got shape \(1, 40, 12\): reshape it"),
        (V[:0], ValueError, r"must not be empty, got shape \(0, 12\)"),
        (V[:, :0], ValueError, r"must not be empty, got shape \(40, 0\)"),
        (V.tolist(), TypeError, "zarr array, a path or URL of one.*got builtins.list"),
        (
            da.from_array(V, chunks=10)[da.from_array(V, chunks=10)[:, 0] > 0.5],
            ValueError,
            r"unknown chunk sizes.*compute_chunk_sizes\(\)",
        ),
    ],
    ids=lambda x: "" if not isinstance(x, str) else x[:20],
)
def test_what_V_is(bad: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        dask_nmf.factorize(bad, 2)


@pytest.mark.parametrize(
    ("value", "row", "column"),
    [(np.nan, 0, 0), (np.inf, 39, 11), (-np.inf, 25, 3), (-1e-30, 25, 3)],
)
@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_what_V_holds(tmp_path: Path, value: float, row: int, column: int, kind: str) -> None:
    bad: Any = V.copy()
    bad[row, column] = value
    if kind == "dask":
        bad = da.from_array(bad, chunks=(7, 5))
    if kind == "zarr":
        bad = zarr.create_array(tmp_path / "V.zarr", data=bad, chunks=(7, 5))
    out = tmp_path / "out.zarr"
    text = f"finite and non-negative, but row {row}, column {column} holds {value}"
    with pytest.raises(ValueError, match=text):
        dask_nmf.factorize(bad, 2, out=out, block_rows=7)
    good = dask_nmf.factorize(V, 2, out=out, tol=0, max_passes=3)  # what is there is in no way
    assert good.W.shape == (40, 2)


@pytest.mark.parametrize(
    ("scale", "dtype"), [(1e200, "f8"), (1e38, "f4"), (1e30, "f4"), (1e-30, "f4")]
)
def test_values_out_of_range(scale: float, dtype: str) -> None:
    with pytest.raises(ValueError, match="multiply V by a constant"):
        dask_nmf.factorize((V * scale).astype(dtype), 2)
    with pytest.raises(ValueError, match="multiply V by a constant"):
        dask_nmf.factorize((V * scale).astype(dtype), 2, block_rows=1)


def test_entries_of_too_different_sizes() -> None:
    """H grows by as much as W shrinks, where the start is zero at the one entry that counts."""
    huge, H = np.ones((9, 4)), np.full((1, 4), 1e52)
    huge[3, 2], H[0, 2] = 1e105, 0
    with pytest.raises(
        ValueError, match="sweep 1 is inf: V.s entries, from .* to 1e.105, are too different"
    ):
        dask_nmf.factorize(huge, 1, init=(np.full((9, 1), 1e52), H), solver="hals", tol=0)


def test_a_start_that_is_too_large_for_its_products() -> None:
    """NNDSVD's fill is of V's size, the factors are of its root."""
    text = "sweep 1 is nan: V's entries"
    with pytest.raises(ValueError, match=text):
        dask_nmf.factorize(V * 1e128, 2, init="nndsvdar", solver="mu")


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_order_of_bytes_is_no_other_dtype(order: str) -> None:
    assert dask_nmf.factorize(V.astype(f"{order}f4"), 2).H.dtype == np.dtype("f4")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"rank": 0}, ValueError, "rank must be at least 1, got 0"),
        ({"rank": 2.0}, TypeError, "rank must be an int, got 2.0"),
        ({"rank": True}, TypeError, "rank must be an int, got True"),
        ({"loss": "kl"}, ValueError, "loss must be one of .*'kullback-leibler'. or a number.*'kl'"),
        ({"loss": np.nan}, ValueError, "loss must be one of .*got nan"),
        ({"loss": True}, ValueError, "loss must be one of .*got True"),
        (
            {"loss": 1, "solver": "hals"},
            ValueError,
            "HALS.* does not handle Beta.beta=1.0.: use 'a",
        ),
        ({"loss": 0, "solver": "newton"}, ValueError, "'newton' needs a beta from 1 to 2, got .*0"),
        ({"solver": "newton"}, ValueError, "for other losses than 'frobenius' without weights"),
        ({"alpha_W": -1}, ValueError, "alpha_W must be a number >= 0, got -1"),
        ({"alpha_H": "no"}, ValueError, "alpha_H must be .* or 'same' .as alpha_W., got 'no'"),
        ({"l1_ratio": 2}, ValueError, "l1_ratio must be from 0 .* to 1 .L1 only., got 2"),
        ({"weights": np.ones((3, 2))}, ValueError, "weights must have V's shape .*got .3, 2."),
        ({"weights": "no.zarr"}, FileNotFoundError, "weights: there is no zarr array"),
        ({"weights": np.ones(3)}, ValueError, "weights must have V's shape"),
        ({"weights": 3}, TypeError, "weights must be a zarr array"),
        ({"loss": ["kl"]}, ValueError, "loss must be one of .*got ..kl'"),
        (
            {"solver": "cd"},
            ValueError,
            r"solver must be one of \['auto', 'hals', 'mu', 'newton'\].*'cd'",
        ),
        ({"solver": dask_nmf.HALS}, TypeError, "solver must be a name or an object"),
        ({"solver": 3}, TypeError, "solver must be a name or an object"),
        ({"init": "nnsvd"}, ValueError, "init must be one of.*got 'nnsvd'"),
        ({"init": 3}, TypeError, "init must be a name, a pair"),
        ({"init": "nndsvd", "rank": 13}, ValueError, r"only be used when rank <= min\(m, n\) = 12"),
        ({"tol": -1}, ValueError, "tol must be a number >= 0 and < 1, got -1"),
        ({"tol": float("nan")}, ValueError, "tol must be a number >= 0 and < 1, got nan"),
        ({"tol": "1e-4"}, ValueError, "tol must be a number >= 0 and < 1, got '1e-4'"),
        ({"tol": None}, ValueError, "tol must be a number >= 0 and < 1, got None"),
        ({"init": (V,)}, TypeError, "init must be a name, a pair .*got tuple"),
        ({"max_passes": 1}, ValueError, "max_passes must be at least 2 .*got 1"),
        ({"max_passes": 4, "init": "nndsvda"}, ValueError, "max_passes must be at least 5 .*got 4"),
        ({"max_passes": 9.5}, TypeError, "max_passes must be an int, got 9.5"),
        ({"max_seconds": 0}, ValueError, "max_seconds must be a positive number"),
        ({"max_seconds": "9"}, ValueError, "max_seconds must be a positive number"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": None}, TypeError, "seed must be an int, got None"),
        ({"seed": 2**64}, ValueError, r"seed must be below 2\*\*64"),
        ({"memory": "lots"}, ValueError, "memory must be bytes or such as '2GiB', got 'lots'"),
        ({"memory": 0}, ValueError, "memory must be bytes or such as '2GiB', got 0"),
        ({"memory": float("inf")}, ValueError, "memory must be bytes or such as '2GiB', got inf"),
        ({"memory": [1]}, ValueError, r"memory must be bytes or such as '2GiB', got \[1\]"),
        ({"overwrite": "no"}, TypeError, "overwrite must be True or False, got 'no'"),
        ({"memory": "1MB"}, ValueError, "memory=.* is too small: blocks of .*Raise memory= to"),
        ({"block_rows": 0}, ValueError, "block_rows must be at least 1, got 0"),
        ({"missing": "skip"}, ValueError, "missing must be 'error', 'zero' or 'nan', got 'skip'"),
        (
            {"missing": np.ones(2)},
            ValueError,
            "missing must be 'error', 'zero' or 'nan', got array",
        ),
        ({"callback": 3}, TypeError, "callback must be callable, got 3"),
        ({"out": "a\0b"}, ValueError, r"path of out or V must not hold a NUL, got 'a\\x00b'"),
        ({"out": 3}, TypeError, "out must be a path, a URL or a zarr group, got int"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    rank = options.pop("rank", 2)
    with pytest.raises(error, match=text):
        dask_nmf.factorize(V, rank, **options)


def test_numbers_of_other_kinds() -> None:
    """No limit is as good as none; what counts bytes need not be Python's."""
    memory: Any = np.int64(2**31)
    result = dask_nmf.factorize(V, 2, memory=memory, max_seconds=float("inf"))
    assert result.plan is not None
    assert result.plan.memory == 2**31
    assert result.summary()["max_seconds"] is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (scipy.sparse.csr_array, r"is a csr_array, not a dense numpy array"),
        (lambda b: np.ma.masked_less(b, 0.5), "is a MaskedArray, not a dense numpy array"),
        (lambda b: b[:-1], r"has shape \(19, 12\), not \(20, 12\)"),
        (lambda b: b.ravel(), r"has shape \(240,\), not \(20, 12\)"),
        (lambda b: b + 1j, "holds complex128, not float64"),
        (lambda b: b.astype(str), "holds <U32, not float64"),
    ],
)
@pytest.mark.parametrize("rows", [20, 40])
def test_dask_blocks_that_are_not_what_was_said(change: Any, text: str, rows: int) -> None:
    X = da.from_array(V, chunks=(20, 12)).map_blocks(change, dtype=float, meta=np.empty((0, 0)))
    with pytest.raises(TypeError, match=f"V's dask block .*{text}"):
        dask_nmf.factorize(X, 2, block_rows=rows)


def test_dask_blocks_of_the_matrix_class() -> None:
    """What ``todense`` of a sparse array gives; its ``*`` is a matrix product."""
    X = da.from_array(V, chunks=(20, 12))
    Y = X.map_blocks(lambda b: b.view(np.matrix), dtype=float, meta=np.empty((0, 0)))
    for solver in ("hals", "mu"):
        found = [dask_nmf.factorize(x, 2, solver=solver, tol=0, max_passes=4) for x in (X, Y)]
        assert found[0].error == found[1].error


@pytest.mark.parametrize(
    ("W", "H", "error", "text"),
    [
        (V[:, :3], V[:2], ValueError, r"W0 must be an array of shape \(40, 2\), got \(40, 3\)"),
        (V[:, :2], V[:3], ValueError, r"H0 must be an array of shape \(2, 12\), got \(3, 12\)"),
        (None, V[:2], ValueError, r"W0 must be an array of shape \(40, 2\), got None"),
        (V[:, :2], -V[:2], ValueError, "H0 must be finite and non-negative; its minimum is -"),
        (-V[:, :2], V[:2], ValueError, "W0 must be finite and non-negative; its minimum is -"),
        (V[:, :2], V[:2] * np.nan, ValueError, "H0 must be finite and non-negative"),
        (V[:, :2] * 0, V[:2], ValueError, "W0 is full of zeros"),
        (V[:, :2], V[:2] * 0, ValueError, "H0 is full of zeros"),
        (V[:, :2] + 0j, V[:2], TypeError, "W0 must hold real numbers, got dtype complex128"),
        (scipy.sparse.csr_array(V[:, :2]), V[:2], TypeError, "W0 must be a numpy.*, got csr_array"),
        (V[:, :2], scipy.sparse.csr_array(V[:2]), TypeError, "H0 must be a numpy.*, got csr_array"),
        (V[:, :2], np.ma.masked_less(V[:2], 0.5), TypeError, "H0 must be .*, got MaskedArray"),
    ],
)
def test_starts(W: Any, H: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        dask_nmf.factorize(V, 2, init=(W, H))


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_starts_on_either_side(side: str) -> None:
    """On columns the factors change their parts."""
    chunks = (10, 300) if side == "rows" else (40, 30)
    X = zarr.create_array(zarr.storage.MemoryStore(), data=low_rank(40, 300, 2), chunks=chunks)
    assert dask_nmf.plan(X, 2, solver="hals").transposed == (side == "columns")
    W, H = low_rank(40, 2, 2), low_rank(2, 300, 2)
    for factor in (0, -1, np.nan, np.inf):
        for name, start in (("W0", (W * factor, H)), ("H0", (W, H * factor))):
            with pytest.raises(ValueError, match=f"init: {name} (must be|is full of zeros)"):
                dask_nmf.factorize(X, 2, init=start, solver="hals")


def test_dask_arrays_with_empty_chunks() -> None:
    """As filters leave them: there is nothing wrong with them."""
    X, W, H = (
        da.from_array(x, chunks=((0, len(x), 0), -1), name=False) for x in (V, V[:, :2], V[:2])
    )
    options: dict[str, Any] = {"solver": "hals", "tol": 0, "max_passes": 3}
    found = dask_nmf.factorize(X, 2, init=(W, H), **options)
    assert found.error == dask_nmf.factorize(V, 2, init=(V[:, :2], V[:2]), **options).error


def test_a_bad_start_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    for W in (-V[:, :2], V[:, :2] * 0, V[:, :2] * np.nan):
        with pytest.raises(ValueError, match="W0"):
            dask_nmf.factorize(V, 2, init=(W, V[:2]), out=tmp_path / "out.zarr")
        assert not (tmp_path / "out.zarr" / "run").exists()
    assert dask_nmf.factorize(V, 2, out=tmp_path / "out.zarr").resumed_from is None


def test_half_steps_check_what_they_get() -> None:
    for update in (dask_nmf.update_W, dask_nmf.update_H):
        with pytest.raises(ValueError, match=r"W \(m, k\), H \(k, n\); got .*\(40, 2\), \(3, 12\)"):
            update(V, V[:, :2], V[:3])
        with pytest.raises(TypeError, match="V must be a numpy or dask array, got list"):
            update(V.tolist(), V[:, :2], V[:2])
        with pytest.raises(TypeError, match="H must hold real numbers, got dtype complex128"):
            update(V, V[:, :2], V[:2] + 1j)


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no zarr array at '.*nothing.zarr'"):
        dask_nmf.factorize(tmp_path / "nothing.zarr", 2)
    group = zarr.create_group(tmp_path / "group.zarr")
    with pytest.raises(ValueError, match="is a zarr group, neither an array nor .*it has none"):
        dask_nmf.factorize(str(tmp_path / "group.zarr"), 2)
    (tmp_path / "group.zarr" / "notes").mkdir()
    (tmp_path / "group.zarr" / "notes" / "1.txt").write_text("mine")
    group.create_array("X", data=V)
    with pytest.raises(ValueError, match="name one of those in it: .*group.zarr/X"):
        dask_nmf.factorize(str(tmp_path / "group.zarr"), 2)
    with pytest.raises(TypeError, match=r"got zarr.*Group: name one of its arrays"):
        dask_nmf.factorize(group, 2)
    with pytest.raises(FileExistsError, match="holds something that dask_nmf did not write"):
        dask_nmf.factorize(V, 2, out=tmp_path / "group.zarr")
    assert dask_nmf.factorize(tmp_path / "group.zarr" / "X", 2).H.shape == (2, 12)
    (tmp_path / "file.txt").write_text("no zarr")
    with pytest.raises((ValueError, OSError), match=r"file\.txt"):
        dask_nmf.factorize(tmp_path / "file.txt", 2)


@pytest.mark.parametrize("in_shards", [False, True])
def test_a_missing_chunk_is_not_zeros(tmp_path: Path, scheduler: str, in_shards: bool) -> None:
    shards = (20, 12) if in_shards else None
    zarr.create_array(tmp_path / "V.zarr", data=V, chunks=(10, 6), shards=shards)
    chunk = tmp_path / "V.zarr" / "c" / "1" / "0"
    chunk.unlink()
    with pytest.raises(ValueError, match="chunk '.*c/1/0' is not in .*missing='zero'"):
        dask_nmf.factorize(tmp_path / "V.zarr", 2)
    holes = V.copy()
    holes[slice(20, 40) if in_shards else slice(10, 20), : 12 if in_shards else 6] = 0
    options: dict[str, Any] = {"tol": 0, "max_passes": 4}
    found = dask_nmf.factorize(tmp_path / "V.zarr", 2, missing="zero", **options)
    assert found.error == pytest.approx(dask_nmf.factorize(holes, 2, **options).error)


def test_a_chunk_that_vanishes_in_mid_run(tmp_path: Path, nothing_kept: None) -> None:
    zarr.create_array(tmp_path / "V.zarr", data=V, chunks=(10, 12))

    def remove(record: dask_nmf.SweepRecord) -> None:
        (tmp_path / "V.zarr" / "c" / "3" / "0").unlink(missing_ok=True)

    with pytest.raises(ValueError, match="chunk 'c/3/0' is not in"):
        dask_nmf.factorize(tmp_path / "V.zarr", 2, callback=remove, tol=0)


@pytest.mark.parametrize("solver", ["auto", "hals"])
def test_a_chunk_that_changes_to_nonsense_in_mid_run(
    tmp_path: Path, nothing_kept: None, solver: str
) -> None:
    X = zarr.create_array(tmp_path / "V.zarr", data=V, chunks=(10, 12))

    def spoil(record: dask_nmf.SweepRecord) -> None:
        X[15] = np.nan

    with pytest.raises(ValueError, match=r"row 15, column 0 holds nan \(chunk 'c/1/0' of"):
        dask_nmf.factorize(tmp_path / "V.zarr", 2, callback=spoil, tol=0, solver=solver)


def test_zarr_version_2(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "V.zarr", data=V, chunks=(10, 6), zarr_format=2)
    assert dask_nmf.factorize(tmp_path / "V.zarr", 2).H.shape == (2, 12)
    (tmp_path / "V.zarr" / "3.1").unlink()
    with pytest.raises(ValueError, match=r"chunk '3\.1' is not in"):
        dask_nmf.factorize(tmp_path / "V.zarr", 2)


def test_block_rows_must_not_cut_chunks(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "V.zarr", data=V, chunks=(16, 12))
    with pytest.raises(ValueError, match="multiple of the 16 rows .* decoded at once.*got 20"):
        dask_nmf.factorize(tmp_path / "V.zarr", 2, block_rows=20)


def test_schedulers_that_cannot_run_it() -> None:
    with (
        dask.config.set({"array.query-planning": True}),
        pytest.raises(RuntimeError, match="array query planning"),
    ):
        dask_nmf.factorize(V, 2)
    with (
        dask.config.set(scheduler="processes"),
        pytest.raises(RuntimeError, match="multiprocessing scheduler keeps no results"),
    ):
        dask_nmf.factorize(V, 2)


def test_memory_of_this_process_on_a_cluster(cluster: str) -> None:
    store = zarr.storage.MemoryStore()
    array = zarr.create_array(store, data=V, chunks=(10, 12))
    assert dask_nmf.factorize(array, 2).H.shape == (2, 12)
    with Client(cluster):
        with pytest.raises(ValueError, match="V lies in this process's memory"):
            dask_nmf.factorize(array, 2)
        group = zarr.group(zarr.storage.MemoryStore())
        with pytest.raises(ValueError, match="out lies in this process's memory"):
            dask_nmf.factorize(V, 2, out=group)


def test_an_asynchronous_client(cluster: str) -> None:
    async def factorize() -> None:
        async with Client(cluster, asynchronous=True):
            dask_nmf.factorize(V, 2)

    with pytest.raises(RuntimeError, match="asynchronous Client.*under a synchronous"):
        asyncio.run(factorize())


def test_a_cluster_without_workers() -> None:
    options: dict[str, Any] = {"scheduler_port": 0, "dashboard_address": "127.0.0.1:0"}
    with (
        LocalCluster(n_workers=0, processes=False, **options) as empty,
        Client(empty),
        pytest.raises(RuntimeError, match=r"has no workers: start some"),
    ):
        dask_nmf.factorize(V, 2)


def test_mu_with_the_zeros_of_nndsvd_warns() -> None:
    with pytest.warns(UserWarning, match="MU cannot leave the zeros"):
        dask_nmf.factorize(V, 2, solver="mu", init="nndsvd", tol=0, max_passes=5)
