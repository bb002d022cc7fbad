"""A sparse matrix in each kind of file that `convert` reads, and what it has written."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from scipy import sparse
from scipy.io import mmwrite

from tests.conftest import Array

SHAPE = (61, 47)


def counts(dtype: str = "f4", density: float = 0.4, seed: int = 0) -> Any:
    """A sparse matrix with empty rows at the begin, in between and at the end, and a heavy one."""
    rng = np.random.default_rng(seed)
    V = rng.poisson(2, SHAPE) * (rng.random(SHAPE) < density)
    V[:3] = V[20:30] = V[-5:] = 0
    V[40] = 7
    return sparse.csr_array(V.astype(dtype))


def read(out: Path | str) -> Any:
    """The group as scipy takes it, after a look at its form."""
    group: Any = zarr.open_group(out, mode="r")
    assert set(group) == {"data", "indices", "indptr"}
    attributes = group.attrs.asdict()
    m, n = attributes.pop("shape")
    assert attributes == {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
    assert group.metadata.zarr_format == 3
    data, indices, indptr = (group[name][:] for name in ("data", "indices", "indptr"))
    assert (indices.dtype, indptr.dtype) == (np.int32, np.int64)
    assert all(array.nchunks_initialized == array.nchunks for _, array in group.arrays())
    found = sparse.csr_array((data, indices, indptr), shape=(m, n))
    found.check_format(full_check=True)
    again = sparse.csr_array((data, indices, indptr), shape=(m, n))  # its flags are found anew
    assert again.has_canonical_format
    assert (data != 0).all()
    return found


def same(found: Any, expected: Any) -> bool:
    return found.shape == expected.shape and bool((found.toarray() == expected.toarray()).all())


def mixed(V: Any, seed: int = 1) -> Any:
    """The same matrix as coordinates out of order, a third of them split in two."""
    V, rng = V.tocoo(), np.random.default_rng(seed)
    third = rng.permutation(V.nnz)[: V.nnz // 3]
    data = V.data.copy()
    data[third] -= 1
    rows, columns = np.append(V.row, V.row[third]), np.append(V.col, V.col[third])
    order = rng.permutation(len(rows))
    values = np.append(data, np.ones(len(third), data.dtype))
    return sparse.coo_array((values[order], (rows[order], columns[order])), V.shape)


def h5ad(path: Path, X: Any, name: str = "X") -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "a") as file:
        if not sparse.issparse(X):
            file.create_dataset(name, data=X, chunks=(7, 5))
            return
        group = file.create_group(name)
        group.attrs.update({"encoding-type": f"{X.format}_matrix", "shape": X.shape})
        for part in ("data", "indices", "indptr"):
            group[part] = getattr(X, part)


def parquet(path: Path, columns: dict[str, Array]) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=17)


def long(path: Path, V: Any, names: tuple[str, ...]) -> None:
    parquet(path, dict(zip(names, (V.row, V.col, V.data), strict=True)))


def plain(path: Path, V: Any, **more: Any) -> None:
    """Rows whose columns are not sorted, as scipy allows."""
    V = V.tocsc().T.tocsr().T if V.format == "csc" else V
    back = np.concatenate([np.arange(b, a, -1) - 1 for a, b in pairwise(V.indptr)])
    parts = {"data": V.data[back], "indices": V.indices[back], "indptr": V.indptr}
    np.savez(path, **({**parts, "shape": V.shape} | more))


FILES: dict[str, tuple[str, Callable[[Path, Any], object]]] = {
    "mtx": ("V.mtx", lambda path, V: mmwrite(path, mixed(V))),
    "csr": ("V.npz", lambda path, V: sparse.save_npz(path, V)),
    "csc": ("V.npz", lambda path, V: sparse.save_npz(path, V.tocsc(), compressed=False)),
    "coo": ("V.npz", lambda path, V: sparse.save_npz(path, mixed(V))),
    "plain": ("V.npz", plain),
    "h5ad csr": ("V.h5ad", h5ad),
    "h5ad csc": ("V.h5ad", lambda path, V: h5ad(path, V.tocsc())),
    "h5ad dense": ("V.h5ad", lambda path, V: h5ad(path, V.toarray())),
    "wide": (
        "V.parquet",
        lambda path, V: parquet(path, {f"g{j}": x for j, x in enumerate(V.toarray().T)}),
    ),
    "long": ("V.parquet", lambda path, V: long(path, mixed(V), ("row", "col", "value"))),
    "long too": ("V.PARQUET", lambda path, V: long(path, mixed(V), ("row", "column", "data"))),
}
