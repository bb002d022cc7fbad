"""The kinds of files that `convert` reads, by their suffixes."""

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from dask_nmf.matrixmarket import open_mtx
from dask_nmf.sources import Piece, Source, Take, compressed, dense
from dask_nmf.types import Array


def open_source(path: str, layer: str | None = None) -> Source:
    """What lies there; reads what is needed to know its shape.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, ImportError
        If it is no file of a known kind, or one without a matrix of real numbers.
    """
    name = os.path.basename(path).lower()
    opener = next((make for end, make in _OPENERS.items() if name.endswith(end)), None)
    if opener is None:
        raise ValueError(
            f"source must end in one of {', '.join(_OPENERS)}, got {path!r}: name the file so, or "
            "write it in one of these formats"
        )
    if not os.path.isfile(path):
        raise FileNotFoundError(f"source: there is no file at {path!r}")
    if opener is _h5ad:
        found = _h5ad(path, layer)
    elif layer is not None:
        raise ValueError(f"layer is for .h5ad files only, got {layer!r} with {path!r}")
    else:
        found = opener(path)
    if min(found.shape) < 1 or found.shape[0] * found.shape[1] >= 2**63:
        raise ValueError(
            f"source must have at least a row and a column, and less than 2**63 places: {path!r} "
            f"is {found.shape[0]} x {found.shape[1]}"
        )
    if found.dtype.kind not in "fiub":
        raise TypeError(f"source must hold real numbers, got {found.dtype} in {path!r}")
    return found


def _library(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f'source: .{extra} files are read with {name}: pip install "dask_nmf[{extra}]"'
        ) from error


# ---------------------------------------------------------------------------- numpy and scipy
def _npz(path: str) -> Source:
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            kind = str(np.asarray(file["format"]).astype(str)) if "format" in names else "csr"
            needed = {"coo": ("row", "col", "data")}.get(kind, ("indices", "data", "indptr"))
            if kind not in ("csr", "csc", "coo") or not names.issuperset((*needed, "shape")):
                raise ValueError(
                    f"it holds {', '.join(sorted(names))} and the format {kind}, not a matrix that "
                    "scipy.sparse.save_npz wrote as csr, csc or coo, nor data, indices, indptr "
                    "and shape"
                )
            shape = file["shape"].tolist()
            if len(shape) != 2:
                raise ValueError(f"its shape is {shape}, not that of a matrix")
            members = [_Member(archive, name) for name in needed if name != "indptr"]
            indptr = file["indptr"] if kind != "coo" else None
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"source: cannot read {path!r}: {error}") from error
    counts, dtype = [member.count for member in members], members[-1].dtype
    if indptr is None:
        if len(set(counts)) > 1:
            raise ValueError(f"source: row, col and data of {path!r} have {counts} numbers")

        def pieces(at_once: int) -> Iterator[Piece]:
            with zipfile.ZipFile(path) as archive:
                row, col, data = (_Member(archive, name) for name in needed)
                for begin in range(0, data.count, at_once):
                    count = min(at_once, data.count - begin)
                    yield row.read(count), col.read(count), data.read(count)

        return Source((shape[0], shape[1]), dtype, counts[0], False, pieces)

    @contextmanager
    def opened() -> Iterator[Take]:
        with zipfile.ZipFile(path) as archive:
            indices, data = _Member(archive, "indices"), _Member(archive, "data")
            yield lambda begin, end: (indices.read(end - begin), data.read(end - begin))

    sizes = counts[0], counts[1]
    return compressed(path, shape, kind == "csc", indptr, dtype, sizes, opened)


class _Member:
    """An array of an .npz file, read from its begin on."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self.name, self.file = f"{archive.filename}: {name}", archive.open(f"{name}.npy")
        form = np.lib.format
        old = form.read_magic(self.file) == (1, 0)
        read = form.read_array_header_1_0 if old else form.read_array_header_2_0
        shape, _, self.dtype = read(self.file)
        if len(shape) != 1:
            raise ValueError(f"{name} has shape {shape}, not one dimension")
        self.count: int = shape[0]

    def read(self, count: int) -> Array:
        try:
            content = self.file.read(count * self.dtype.itemsize)
            return np.frombuffer(content, self.dtype, count)
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"source: {self.name} is damaged: {error}") from error


# ---------------------------------------------------------------------------- AnnData
def _h5ad(path: str, layer: str | None = None) -> Source:
    h5py = _library("h5py", "h5ad")
    name = "X" if layer is None else f"layers/{layer}"

    @contextmanager
    def matrix() -> Iterator[Any]:
        with h5py.File(path, "r") as file:
            if name not in file:
                layers = ", ".join(file["layers"]) if "layers" in file else ""
                raise ValueError(f"source: {path!r} has no {name}; its layers: {layers or 'none'}")
            yield file[name]

    @contextmanager
    def opened() -> Iterator[Take]:
        with matrix() as X:
            indices, data = X["indices"], X["data"]
            yield lambda begin, end: (indices[begin:end], data[begin:end])

    try:
        with matrix() as X:
            if isinstance(X, h5py.Dataset):
                return dense(path, X.shape, X.dtype, (X.chunks or (1, 1))[0], matrix)
            kind = str(X.attrs.get("encoding-type", X.attrs.get("h5sparse_format", "")))[:3]
            shape = X.attrs.get("shape", X.attrs.get("h5sparse_shape"))
            if kind not in ("csr", "csc") or shape is None:
                raise ValueError(f"source: {name} of {path!r} is neither dense nor CSR nor CSC")
            counts = X["indices"].shape[0], X["data"].shape[0]
            indptr, dtype = X["indptr"][:], X["data"].dtype
    except OSError as error:
        raise ValueError(f"source: cannot read {path!r}: {error}") from error
    return compressed(path, shape, kind == "csc", indptr, dtype, counts, opened)


# ---------------------------------------------------------------------------- Parquet
_ARROW = 2**26  # bytes of pyarrow, and of what it decodes of a row group
_LONG = (("row",), ("col", "column"), ("value", "data"))


def _parquet(path: str) -> Source:
    parquet = _library("pyarrow.parquet", "parquet")
    try:
        file = parquet.ParquetFile(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"source: cannot read {path!r}: {error}") from error
    with file:
        m, schema = file.metadata.num_rows, file.schema_arrow
    index = [
        x for x in (schema.pandas_metadata or {}).get("index_columns", ()) if isinstance(x, str)
    ]
    names = [name for name in schema.names if name not in index]
    types = {}
    for name in names:
        try:
            types[name] = np.dtype(schema.field(name).type.to_pandas_dtype())
        except (NotImplementedError, TypeError):
            types[name] = np.dtype(object)
        if types[name].kind not in "fiub":
            raise TypeError(
                f"source: column {name!r} of {path!r} holds {schema.field(name).type}, not real "
                "numbers: write the file without it"
            )

    def batches(rows: int, wanted: list[str]) -> Iterator[list[Array]]:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(rows, columns=wanted):
                yield [batch.column(name).to_numpy(zero_copy_only=False) for name in wanted]

    long = [next((x for x in names if x in allowed), "") for allowed in _LONG]
    if set(long) == set(names):
        sizes = np.zeros(2, np.int64)
        for pair in batches(2**16, long[:2]):
            ends = [np.nan_to_num(x, posinf=0).max(initial=-1) + 1 for x in pair]
            sizes = np.maximum(sizes, np.array(ends, np.int64))

        def triples(at_once: int) -> Iterator[Piece]:
            return ((x[0], x[1], x[2]) for x in batches(at_once, long))

        return Source((int(sizes[0]), int(sizes[1])), types[long[2]], m, False, triples, _ARROW)

    def pieces(at_once: int) -> Iterator[Piece]:
        top = 0
        for batch in batches(max(1, at_once // len(names)), names):
            slab = np.stack(batch, axis=1)
            i, j = np.nonzero(slab)
            yield i + top, j, slab[i, j]
            top += len(slab)

    dtype = np.result_type(*types.values()) if names else np.dtype(np.float64)
    return Source((m, len(names)), dtype, m * len(names), True, pieces, _ARROW)


_OPENERS: dict[str, Callable[[str], Source]] = {
    ".mtx": open_mtx,
    ".mtx.gz": open_mtx,
    ".npz": _npz,
    ".h5ad": _h5ad,
    ".parquet": _parquet,
}
