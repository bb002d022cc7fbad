"""Sparse V that is no such: each a clear error, before V is read or where it is read."""

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse
import zarr
from distributed import Client

import dask_nmf
from tests.conftest import Array, low_rank
from tests.test_sparse import CSC, CSR, DENSE, RANK, M, N, group, run


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e-30])
@pytest.mark.parametrize("kind", ["csr", "csc", "group csr", "group csc", "dask"])
def test_entries_that_are_not_allowed(tmp_path: Path, kind: str, value: float) -> None:
    bad = DENSE.copy()
    row, column = (int(i[-5]) for i in np.nonzero(bad))
    bad[row, column] = value
    if kind == "dask":
        V: Any = da.from_array(bad, chunks=(70, 25)).map_blocks(scipy.sparse.csr_array)
    else:
        V = getattr(scipy.sparse, f"{kind[-3:]}_array")(bad)
    text = f"finite and non-negative, but row {row}, column {column} holds {value}"
    if "group" in kind:
        text += r" \(chunk 'c/\d+' of .*data\)"
        V = group(tmp_path / "V", V)
    with pytest.raises(ValueError, match=text):
        run(V)


def test_entries_sent_to_a_cluster(cluster: str) -> None:
    bad = CSR.copy()
    bad.data[7] = np.nan
    with Client(cluster), pytest.raises(ValueError, match="finite and non-negative, but row"):
        run(bad)


def _spoilt(**arrays: Any) -> Any:
    """CSR with other arrays, past scipy's own checks."""
    V = CSR.copy()
    for name, x in arrays.items():
        setattr(V, name, x)
    return V


def _with(x: Array, i: int, value: int) -> Array:
    x = x.copy()
    x[i] = value
    return x


BAD_PARTS: list[tuple[Any, type[Exception], str]] = [
    (_spoilt(indices=_with(CSR.indices, 7, N)), ValueError, f"entry 7 .*has column index {N}"),
    (
        _spoilt(indices=_with(CSR.indices, 7, -1)),
        ValueError,
        "index -1, which must be from 0 to 59",
    ),
    (
        _spoilt(indices=CSR.indices[:-1]),
        ValueError,
        "indices of .* must have .* entries, as indptr",
    ),
    (
        _spoilt(data=CSR.data[:-1]),
        ValueError,
        "data of .* must have .* entries, as indptr ends with",
    ),
    (_spoilt(indptr=CSR.indptr[:-1]), ValueError, "indptr of .* must have 231 entries.*got 230"),
    (_spoilt(indptr=CSR.indptr + 1), ValueError, "indptr of .* must begin with 0, got 1"),
    (
        _spoilt(indptr=_with(CSR.indptr, 9, 10**6)),
        ValueError,
        "must not fall, but goes from 1000000",
    ),
    (
        _spoilt(indptr=CSR.indptr.astype("f8")),
        TypeError,
        "indptr of .* must hold integers, got dtype",
    ),
    (_spoilt(indices=CSR.indices.astype("f8")), TypeError, "indices of .* must hold integers"),
    (_spoilt(data=CSR.data + 1j), TypeError, "real numbers.*got dtype complex128"),
]


@pytest.mark.parametrize(("bad", "error", "text"), BAD_PARTS, ids=range(len(BAD_PARTS)))
def test_parts_that_do_not_fit(tmp_path: Path, bad: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        run(group(tmp_path / "V", bad))


@pytest.mark.parametrize(
    ("attrs", "text"),
    [
        ({"shape": None}, "must have the attribute 'shape', two sizes, got None"),
        ({"shape": [M]}, r"two sizes, got \[230\]"),
        ({"shape": [M, "60"]}, "two sizes, got"),
        ({"shape": [M + 1, N]}, "indptr of .* must have 232 entries for its shape, got 231"),
        ({"shape": [M, N - 20]}, "column index .*, which must be from 0 to 39"),
        ({"shape": [M, 0]}, r"V must not be empty, got shape \(230, 0\)"),
        ({"encoding-version": "0.2.0"}, "'encoding-version' '0.1.0', got '0.2.0'"),
        ({"encoding-type": "array"}, "neither an array nor a sparse matrix.*name one of those"),
    ],
)
def test_attributes_that_do_not_fit(tmp_path: Path, attrs: Any, text: str) -> None:
    group(tmp_path / "V", CSR, attrs=attrs)
    with pytest.raises(ValueError, match=text):
        run(tmp_path / "V")


def test_a_group_around_it(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "all")
    group(tmp_path / "all" / "X", CSR)
    with pytest.raises(ValueError, match="name one of those in it: .*all/X"):
        run(tmp_path / "all")


@pytest.mark.parametrize("name", ["data", "indices", "indptr"])
def test_what_is_missing_or_damaged(tmp_path: Path, name: str) -> None:
    V = group(tmp_path / "V", CSR, chunk=100)
    (tmp_path / "V" / name / "c" / "1").write_bytes(b"no chunk")
    with pytest.raises(ValueError, match=f"chunk 'c/1' of .*{name} is damaged"):
        run(V)
    (tmp_path / "V" / name / "c" / "1").unlink()
    with pytest.raises(ValueError, match=f"chunk 'c/1' is not in .*{name}: .*missing='zero'"):
        run(V)
    del V[name]
    with pytest.raises(ValueError, match=f"data, indices and indptr, but {name} is no such array"):
        run(V)
    V.create_array(name, shape=(3, 3), chunks=(3, 3), dtype="i4")
    with pytest.raises(ValueError, match=rf"{name} of .* must be 1-D, got shape \(3, 3\)"):
        run(V)


def test_chunks_of_zeros_that_were_left_out(tmp_path: Path) -> None:
    """As zarr itself leaves them out by default; indices of a single column are all zeros."""
    dense = np.ones((500, 1))
    V = group(tmp_path / "V", scipy.sparse.csr_array(dense), chunk=100)
    assert not (tmp_path / "V" / "indices" / "c").exists()
    with pytest.raises(ValueError, match="is not in .*indices: .*missing='zero'"):
        dask_nmf.factorize(V, 1)
    assert dask_nmf.factorize(V, 1, missing="zero").error < 1e-6


def test_a_scipy_matrix_that_was_spoilt() -> None:
    for bad, text in (
        (_spoilt(indices=CSR.indices[:-1]), "indices of this csr_array must have .* entries"),
        (_spoilt(indptr=_with(CSR.indptr, 9, 10**6)), "this csr_array must not fall"),
        (_spoilt(indices=_with(CSR.indices, 7, N)), f"entry 7 has column index {N}"),
    ):
        with pytest.raises(ValueError, match=text):
            run(bad)


def test_where_V_may_lie(tmp_path: Path, cluster: str) -> None:
    V = group(zarr.storage.MemoryStore(), CSR)
    assert run(V).error == run(CSR).error
    with Client(cluster), pytest.raises(ValueError, match="lies in this process's memory"):
        run(V)
    V = group(tmp_path / "V", CSR)
    with pytest.raises(ValueError, match="out must lie apart from V"):
        run(V, out=tmp_path / "V" / "out")


def test_what_a_sparse_V_is_not_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="block_rows must be None for a V in CSC form"):
        run(CSC, block_rows=10)
    with pytest.raises(TypeError, match="must be dense to be rechunked"):
        dask_nmf.rechunk(group(tmp_path / "V", CSR), tmp_path / "copy")
    W = da.ones((M, RANK), chunks=(70, RANK)).map_blocks(scipy.sparse.csr_array)
    with pytest.raises(TypeError, match="W0 must be dense, got sparse dask blocks"):
        run(CSR, init=(W, low_rank(RANK, N, 2)))
    with pytest.raises(TypeError, match="real numbers.*got dtype complex128"):
        run(CSR + 1j * CSR)


def test_dask_blocks_that_are_something_else() -> None:
    meta = scipy.sparse.csr_array((0, 0))
    cases: list[tuple[Any, str]] = [
        (lambda x: x, r"block \(0, 0\) is a ndarray, not sparse like the others"),
        (lambda x: scipy.sparse.csr_array(x[1:]), r"has shape \(69, 60\), not \(70, 60\)"),
        (lambda x: scipy.sparse.csr_array(x + 1j), "holds complex128, not float64"),
    ]
    for bad, text in cases:
        V = da.from_array(DENSE, chunks=(70, N)).map_blocks(bad, meta=meta, dtype="f8")
        with pytest.raises(TypeError, match=text):
            run(V)
