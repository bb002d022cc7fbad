"""Sparse V in all its forms: the dense V's answer, the oracle's, each chunk read once a pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse
import zarr
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

import dask_nmf
from dask_nmf import geometry, oracle, tasks
from dask_nmf.blocks import Grid
from dask_nmf.io import open_matrix
from tests import s3
from tests.conftest import Array, low_rank
from tests.resuming import assert_same, killing, until_done
from tests.stores import CountingStore

M, N, RANK = 230, 60, 4


def few(m: int = M, n: int = N, density: float = 0.2, seed: int = 0) -> Array:
    """A non-negative matrix with few entries; a row and a column of it have none."""
    random = np.random.default_rng(seed)
    V = low_rank(m, n, 3, seed=seed) * (random.random((m, n)) < density)
    V[m // 2], V[:, n // 3] = 0, 0
    return V


DENSE = few()


def group(
    path: Any, V: Any, chunk: int = 300, zarr_format: Any = 3, attrs: Any = None, **options: Any
) -> zarr.Group:
    """V as anndata writes a sparse matrix."""
    found = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    told = {"encoding-type": f"{V.format}_matrix", "encoding-version": "0.1.0"}
    found.attrs.update({**told, "shape": list(V.shape), **(attrs or {})})
    for name in ("data", "indices", "indptr"):
        found.create_array(name, data=getattr(V, name), chunks=(chunk,), **options)
    return found


def blocked(kind: Any, chunks: tuple[int, int] = (70, 25)) -> Any:
    return da.from_array(DENSE, chunks=chunks).map_blocks(kind)


def pydata(name: str) -> Any:
    """Not in the test extra: dask loads it wherever it is, and numba, 60 MB in each process."""
    return blocked(getattr(pytest.importorskip("sparse"), name))


CSR, CSC = scipy.sparse.csr_array(DENSE), scipy.sparse.csc_array(DENSE)
KINDS: dict[str, Callable[[Path], Any]] = {
    "scipy csr": lambda _: CSR,
    "scipy csc": lambda _: CSC,
    "scipy coo_matrix": lambda _: scipy.sparse.coo_matrix(DENSE),
    "group": lambda path: group(path, CSR),
    "path": lambda path: group(path, CSR) and str(path),
    "mapped": lambda path: group(path, CSR, chunk=10**6, compressors=None),
    "zarr v2": lambda path: group(path, CSR, zarr_format=2),
    "shards": lambda path: group(path, CSR, shards=(900,)),
    "int64": lambda path: group(
        path,
        scipy.sparse.csr_array((CSR.data, CSR.indices.astype("i8"), CSR.indptr.astype("u8"))),
    ),
    "group csc": lambda path: group(path, CSC),
    "dask csr": lambda _: blocked(scipy.sparse.csr_array),
    "dask csc_matrix": lambda _: blocked(scipy.sparse.csc_matrix),
    "dask COO": lambda _: pydata("COO"),
    "dask GCXS": lambda _: pydata("GCXS"),
}


def run(V: Any, sweeps: int = 3, **options: Any) -> dask_nmf.Result:
    """So many sweeps, whatever comes before the first."""
    known = {name: options[name] for name in ("solver", "init", "out") if name in options}
    before = dask_nmf.plan(V, RANK, **known).passes_before
    return dask_nmf.factorize(V, RANK, tol=0, max_passes=before + sweeps, **options)


def assert_close(found: dask_nmf.Result, W: Any, H: Any, rtol: float = 1e-9) -> None:
    np.testing.assert_allclose(found.W.compute(), W, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(np.asarray(found.H), H, rtol=rtol, atol=rtol)


# ------------------------------------------------------------------------------- the answer
@pytest.mark.parametrize("kind", KINDS)
def test_the_oracles_answer(tmp_path: Path, kind: str) -> None:
    V = KINDS[kind](tmp_path / "V")
    W, H = start = low_rank(M, RANK, 2), low_rank(RANK, N, 2)
    rows = {} if "csc" in kind and "dask" not in kind else {"block_rows": 70}
    found = run(V, solver="mu", init=start, **rows)
    assert found.plan is not None
    assert found.plan.transposed == (not rows)
    assert found.plan.blocks == (4 if rows else 1)
    errors = []
    for _ in range(3):
        W = oracle.update_W(DENSE, W, H)
        H = oracle.update_H(DENSE, W, H)
        errors.append(oracle.error(DENSE, W, H))
    assert [record.error for record in found.history] == pytest.approx(errors, rel=1e-9)
    assert_close(found, W, H)


@pytest.mark.parametrize(
    ("solver", "init"), [("hals", "random"), ("hals", "nndsvda"), ("auto", "random")]
)
@pytest.mark.parametrize("kind", ["scipy csr", "group", "dask csr", "scipy csc", "group csc"])
def test_the_dense_answer(tmp_path: Path, kind: str, solver: str, init: str) -> None:
    V = KINDS[kind](tmp_path / "V")
    dense: Any = DENSE
    if "csc" in kind:  # streamed by its columns, which "auto" and NNDSVD do in their own way
        dense = zarr.create_array(tmp_path / "dense", data=few(), chunks=(M, 10))
    found, expected = (run(x, solver=solver, init=init) for x in (V, dense))
    assert found.plan is not None
    assert expected.plan is not None
    assert found.plan.transposed == expected.plan.transposed == ("csc" in kind)
    assert_close(found, expected.W.compute(), np.asarray(expected.H))
    errors = [[record.error for record in result.history] for result in (found, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-9)


@settings(max_examples=12)
@given(st.data())
def test_any_chunks_and_blocks(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """The blocks of V are V's rows, as canonical csr_arrays, whatever the chunks."""
    path = tmp_path_factory.mktemp("V")
    dense = few(41, 13, data.draw(st.sampled_from([0.01, 0.3, 0.9])), data.draw(st.integers(0, 9)))
    sparse = scipy.sparse.csr_array(dense)
    chunk = data.draw(st.integers(1, 200))
    codec = data.draw(st.sampled_from(["auto", None]))
    if data.draw(st.booleans()):
        V: Any = group(path, sparse, chunk, compressors=codec)
    else:
        chunks = data.draw(st.integers(1, 41)), data.draw(st.integers(1, 13))
        V = da.from_array(dense, chunks=chunks).map_blocks(scipy.sparse.csr_array)
    height = data.draw(st.integers(1, 41))
    matrix = open_matrix(V)
    heights = (height,) * (41 // height) + ((41 % height,) if 41 % height else ())
    found = dask.compute(*matrix.blocks(Grid(heights, (13,))).to_delayed().ravel())
    assert matrix.sparse
    assert [block.shape for block in found] == [(height, 13) for height in heights]
    for block in found:
        assert isinstance(block, scipy.sparse.csr_array)
        assert block.has_canonical_format
        assert block.dtype == np.float64
        assert block.indices.dtype == block.indptr.dtype == np.int32
    np.testing.assert_array_equal(np.vstack([block.toarray() for block in found]), dense)


def test_unsorted_and_duplicate_entries(tmp_path: Path) -> None:
    """They are sorted and summed; entries that are zero are entries; what is given stays."""
    parts = np.array([1.0, 2, 4, 0, 8]), np.array([2, 0, 2, 1, 0]), np.array([0, 3, 5])
    V = scipy.sparse.csr_array(parts, shape=(2, 3))
    expected = run(np.array([[2.0, 0, 5], [8, 0, 0]]), solver="mu")
    for made in (V, group(tmp_path / "V", V), group(tmp_path / "M", V, compressors=None)):
        assert_close(run(made, solver="mu"), expected.W.compute(), expected.H)
    assert V.indices.tolist() == [2, 0, 2, 1, 0]


def test_room_for_more_entries() -> None:
    """scipy's arrays may be longer than what is used of them."""
    V = CSR.copy()
    V.data, V.indices = np.append(V.data, np.nan), np.append(V.indices, 10**6)
    expected = run(CSR, solver="mu")
    assert_close(run(V, solver="mu"), expected.W.compute(), expected.H)


@pytest.mark.parametrize("kind", ["group", "scipy csr", "dask csr"])
def test_float32(tmp_path: Path, kind: str) -> None:
    dense = few().astype("f4")
    V: Any = scipy.sparse.csr_array(dense)
    if kind == "group":
        V = group(tmp_path / "V", V)
    if kind == "dask csr":
        V = da.from_array(dense, chunks=70).map_blocks(scipy.sparse.csr_array)
    found, expected = run(V, solver="hals"), run(dense.astype("f8"), solver="hals")
    assert found.W.dtype == found.H.dtype == np.float32
    assert_close(found, expected.W.compute(), expected.H, rtol=1e-4)
    assert found.error == pytest.approx(expected.error, rel=1e-6)


def test_float32_sums_of_long_columns() -> None:
    """Added up one by one in float32, ones would stop at 2^24."""
    rows = 2**25
    V = scipy.sparse.csr_array(
        (np.ones(rows, "f4"), np.zeros(rows, "i4"), np.arange(rows + 1, dtype="i4")), (rows, 1)
    )
    (found,) = tasks.partial_product(np.ones((1, rows), "f4"), V)
    assert found == rows


def test_a_very_close_fit() -> None:
    """The residual is taken then, in slabs of rows that are dense."""
    W, H = few(200, 3, 0.3), few(3, 50, 0.6, seed=1)
    V = scipy.sparse.csr_array(W @ H)
    found = dask_nmf.factorize(V, 3, solver="hals", init=(W * 1.001, H), tol=0, max_passes=6)
    error = oracle.error(V.toarray(), found.W.compute(), found.H)
    assert found.error < 1e-6
    assert found.error == pytest.approx(error, rel=1e-3, abs=1e-15)


# ------------------------------------------------------------------------------- reads
def test_reads_of_chunks(tmp_path: Path, nothing_kept: None) -> None:
    """Once a pass; twice where two blocks share a chunk. `indptr` is read once."""
    group(tmp_path / "V", CSR, chunk=100)
    store = CountingStore(zarr.storage.LocalStore(tmp_path / "V"), tmp_path / "log")
    found = dask_nmf.factorize(
        zarr.open_group(store, mode="r"), RANK, solver="hals", tol=0, max_passes=5, block_rows=70
    )
    edges = CSR.indptr[[70, 140, 210]]
    shared = {int(edge) // 100 for edge in edges if edge % 100}
    expected = {
        f"{name}/c/{i}": 5 * (1 + (i in shared))
        for name in ("data", "indices")
        for i in range(-(-CSR.nnz // 100))
    }
    assert dict(store.reads()) == expected | {f"indptr/c/{i}": 1 for i in range(3)}
    assert found.history[-1].bytes_read == 5 * CSR.nnz * (8 + 4)


def test_what_is_kept_is_read_once(tmp_path: Path) -> None:
    group(tmp_path / "V", CSR, chunk=100)
    store = CountingStore(zarr.storage.LocalStore(tmp_path / "V"), tmp_path / "log")
    V = zarr.open_group(store, mode="r")
    found = dask_nmf.factorize(V, RANK, solver="hals", tol=0, max_passes=4)
    assert found.plan is not None
    assert found.plan.kept_blocks == found.plan.blocks == 1
    assert set(store.reads().values()) == {1}
    assert found.history[-1].bytes_read == CSR.nnz * (8 + 4)


def test_on_a_cluster(tmp_path: Path, cluster: str) -> None:
    """The bits of one thread; a matrix in memory is sent once, in row blocks."""
    for V in (group(tmp_path / "V", CSR), CSR, CSC, blocked(scipy.sparse.csr_array)):
        rows = {} if V is CSC else {"block_rows": 70}
        with dask.config.set(scheduler="synchronous"):
            expected = run(V, solver="auto", **rows)
        with Client(cluster):
            found = run(V, solver="auto", **rows)
            W = found.W.compute()
        assert W.tobytes() == expected.W.compute().tobytes()
        assert np.asarray(found.H).tobytes() == np.asarray(expected.H).tobytes()
        assert [r.error for r in found.history] == [r.error for r in expected.history]


def test_on_an_object_store(tmp_path: Path, bucket: s3.Bucket) -> None:
    expected = run(group(tmp_path / "V", CSR), solver="hals", out=tmp_path / "out")
    group(s3.url("V"), CSR)
    found = run(s3.url("V"), solver="hals", out=s3.url("out"))
    assert_same(found, expected)
    assert run(s3.url("V"), solver="hals", out=s3.url("out")).history == found.history


# ------------------------------------------------------------------------------- resuming
@pytest.mark.parametrize("kind", ["group", "scipy csr", "dask csr", "group csc"])
def test_a_killed_run_goes_on(tmp_path: Path, kind: str) -> None:
    V = KINDS[kind](tmp_path / "V")
    call: dict[str, Any] = {"tol": 0, "max_passes": 8, "checkpoint_every": 1}
    expected = dask_nmf.factorize(V, RANK, **call)
    found = until_done(V, RANK, killing(1, 3), out=tmp_path / "out", **call)
    assert_same(found, expected)
    again = dask_nmf.factorize(V, RANK, out=tmp_path / "out", **call)
    assert again.history == found.history


def test_another_V_is_refused(tmp_path: Path) -> None:
    V: Any = group(tmp_path / "V", CSR)
    call: dict[str, Any] = {"tol": 0, "max_passes": 4, "out": tmp_path / "out"}
    dask_nmf.factorize(V, RANK, **call)
    indices = CSR.indices.copy()
    indices[[0, 1]] = indices[[1, 0]]  # the same sums but for the places
    V["indices"][:] = indices
    with pytest.raises(FileExistsError, match="V has changed since the run began"):
        dask_nmf.factorize(V, RANK, **call)


# ------------------------------------------------------------------------------- the plan
def test_the_plan(tmp_path: Path) -> None:
    plan = dask_nmf.plan(group(tmp_path / "V", CSR), RANK)
    assert plan.nnz == CSR.nnz
    assert plan.decoded_bytes == CSR.nnz * 12
    text = repr(plan)
    assert f"230 x 60 float64, {CSR.nnz:,} entries ({CSR.nnz / DENSE.size:.2%}), " in text
    assert "300, zstd" in text
    assert dask_nmf.Plan.from_json(plan.to_json()) == plan
    assert dask_nmf.plan(blocked(scipy.sparse.csr_array), RANK).nnz == DENSE.size // 10


@pytest.mark.parametrize(("chunk", "told"), [(10**6, True), (10, False)])
def test_chunks_larger_than_blocks(tmp_path: Path, chunk: int, told: bool) -> None:
    plan = dask_nmf.plan(group(tmp_path / "V", CSR, chunk), RANK, block_rows=10)
    assert any("two of them decode one" in advice for advice in plan.advice) == told
    plan = dask_nmf.plan(group(tmp_path / "M", CSR, chunk, compressors=None), RANK, block_rows=10)
    assert not plan.advice


def test_memory_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_kept: None
) -> None:
    """Smaller blocks where it is tight, or the refusal: there are no tiles."""
    monkeypatch.setattr(geometry, "BASE_BYTES", 0)
    monkeypatch.setattr(geometry, "GRAPH_BYTES", 0)
    for V in (group(tmp_path / "V", CSR, 10), group(tmp_path / "T", CSC, 10)):
        options: dict[str, Any] = {"solver": "hals", "out": tmp_path / "out"}
        with dask.config.set(scheduler="threads", num_workers=1):
            free = dask_nmf.plan(V, RANK, **options)
            limit = free.peak_bytes * 9 // 10
            tight = dask_nmf.plan(V, RANK, memory=limit, **options)
        assert free.blocks == 1 < tight.blocks
        assert 0 < tight.peak_bytes <= limit
        assert tight.transposed == (V.attrs["encoding-type"] == "csc_matrix")
        with pytest.raises(ValueError, match=r"is too small: blocks of .*, or take a smaller rank"):
            dask_nmf.plan(V, RANK, memory=5_000, **options)


def test_a_block_is_as_full_as_the_fullest() -> None:
    """The prediction is a bound though rows differ."""
    uneven, full = np.zeros((100, 40)), np.ones((100, 40))
    uneven[30:40], uneven[:, 0] = 1, 1
    plans = [
        dask_nmf.plan(scipy.sparse.csr_array(x), RANK, block_rows=10, solver="hals")
        for x in (uneven, full)
    ]
    assert plans[0].parts["blocks"] == plans[1].parts["blocks"] > 10 * 40 * 12


@pytest.mark.parametrize("kind", ["csr", "csc", "dask", "pieces"])
@pytest.mark.parametrize("lazy", ["", "W", "H", "WH"])
def test_half_steps(kind: str, lazy: str) -> None:
    random = np.random.default_rng(0)
    V = random.random((30, 12)) * (random.random((30, 12)) < 0.3)
    W, H = random.random((30, 3)), random.random((3, 12))
    expected = oracle.update_W(V, W, H), oracle.update_H(V, W, H)
    X: Any = scipy.sparse.csr_array(V) if kind != "csc" else scipy.sparse.csc_matrix(V)
    if kind in ("dask", "pieces"):
        chunks = (7, 12) if kind == "dask" else (7, 5)
        X = da.from_array(V, chunks=chunks).map_blocks(scipy.sparse.csr_array)
    given: Any = {"W": W, "H": H}
    for name in lazy:
        given[name] = da.from_array(given[name], chunks=(4, 2))
    for update, wanted in zip((dask_nmf.update_W, dask_nmf.update_H), expected, strict=True):
        np.testing.assert_allclose(np.asarray(update(X, **given)), wanted, rtol=1e-10)
