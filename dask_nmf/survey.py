"""What a plan needs to know of V: shapes, and what reading a block of it holds in memory."""

from math import ceil
from typing import Any

import dask.array as da
import numpy as np
import zarr
from zarr.storage import LocalStore

from dask_nmf.csr import CSR, index_dtype
from dask_nmf.geometry import TARGET_BYTES, Geometry
from dask_nmf.layout import find_layout
from dask_nmf.matrix import Matrix
from dask_nmf.scheduler import Scheduler
from dask_nmf.types import working_dtype

_IN_MEMORY_TARGET = 2**24  # no read to amortize: smaller blocks keep all threads busy
_MAPPED_TARGET = 2**23  # from here on a mapped chunk is a block as it lies: joining would copy it


def geometry(matrix: Matrix, rank: int, scheduler: Scheduler, **more: Any) -> Geometry:
    """What the memory of a pass over the matrix depends on; nothing is read."""
    source, dtype = matrix.source, working_dtype(matrix.dtype)
    m, n = matrix.shape
    known: dict[str, Any] = {"chunk": (1, 1), "piece": (1, 1)}
    if matrix.sparse:
        known |= _of_sparse(matrix, scheduler)
    elif isinstance(source, zarr.Array):
        known = _of_zarr(source, dtype, (matrix.stored_share or (1.0, 1.0))[1])
    elif isinstance(source, da.Array):
        chunk = tuple(
            min(size, max(sizes)) for size, sizes in zip((m, n), source.chunks, strict=True)
        )
        known = {"chunk": chunk, "piece": chunk, "extra": 1.0}
    else:  # no read to amortize: smaller blocks keep all threads busy
        copied = 0 if matrix.dtype == dtype and source.flags.c_contiguous else 1
        known |= {"target": _IN_MEMORY_TARGET, "extra": float(copied)}
        known |= {"resident": _share(source.nbytes, scheduler)}
    return Geometry(
        m=m,
        n=n,
        rank=rank,
        itemsize=dtype.itemsize,
        stored=matrix.dtype.itemsize,
        threads=scheduler.threads,
        processes=scheduler.processes,
        local=not scheduler.remote,
        **known,
        **more,
    )


def _share(nbytes: int, scheduler: Scheduler) -> int:
    """Of a V in memory, what each process holds."""
    return nbytes // (scheduler.processes if scheduler.remote else 1)


def _of_sparse(matrix: Matrix, scheduler: Scheduler) -> dict[str, Any]:
    """What a block of entries is made of, and what is held beside it while it is read."""
    source, dtype = matrix.source, working_dtype(matrix.dtype)
    columns = matrix.shape[0 if matrix.transposed else 1]
    index = index_dtype(columns).itemsize
    entry = dtype.itemsize + index
    known: dict[str, Any] = {"nnz": matrix.nnz, "index": index, "by_columns": matrix.transposed}
    if isinstance(source, da.Array):  # its blocks are joined
        per_row = ceil((matrix.nnz or 0) / source.shape[0])
        chunk = (max(source.chunks[0]), columns)
        return known | {"entries": per_row.__mul__, "chunk": chunk, "piece": chunk, "extra": 2.0}
    assert isinstance(source, CSR)
    known["entries"] = source.fullest
    wide = source.indices.dtype.itemsize
    if not source.stored:
        nbytes = source.data.nbytes + source.indices.nbytes + source.indptr.nbytes
        known |= {"target": _IN_MEMORY_TARGET, "resident": _share(nbytes, scheduler)}
        copied = dtype.itemsize * (matrix.dtype != dtype) + index * (wide != index)
        return known | {"extra": copied / entry}
    extra, beside = (wide / entry if wide > index else 0.0), 0.0
    share = (matrix.stored_share or (1.0, 1.0))[1]
    for array in (source.data, source.indices):
        chunk_bytes = (array.shards or array.chunks)[0] * array.dtype.itemsize
        if (layout := find_layout(array)) is None:  # as for dense arrays: see `_of_zarr`
            beside, extra = max(beside, 20.0 * chunk_bytes), extra + 1.0
        elif not isinstance(array.store, LocalStore):
            beside, extra = max(beside, chunk_bytes), extra + share
        elif layout.codecs:
            inner = layout.inner[0] * array.dtype.itemsize
            beside += share * chunk_bytes + inner  # one after the other, but the heap keeps both
    resident = 0 if scheduler.remote else source.indptr.nbytes
    return known | {"resident": resident, "extra": extra, "beside": ceil(beside)}


def _of_zarr(array: zarr.Array[Any], dtype: np.dtype[Any], share: float) -> dict[str, Any]:
    """Chunk, piece, and what is held beside a block while it is read."""
    size = (array.shape[0], array.shape[1])
    layout, local = find_layout(array), isinstance(array.store, LocalStore)
    chunk = tuple(min(a, b) for a, b in zip(size, array.shards or array.chunks, strict=True))
    known: dict[str, Any] = {"chunk": chunk, "piece": chunk, "payload": share}
    if layout is None:  # zarr decodes up to ten chunks at once, beside its own copy of the block
        return known | {"decoded": 20.0, "extra": 1.0}
    if not local:  # all chunks of a block are asked for at once
        return known | {"decoded": 1.0, "extra": share}
    if layout.shards:
        piece = tuple(min(a, b) for a, b in zip(size, layout.inner, strict=True))
        return known | {"piece": piece, "decoded": 1.0 if layout.codecs else 0.0}
    whole, same = chunk[1] == size[1], layout.stored == dtype
    if not layout.codecs:  # mapped: any rows at their own cost, and no copy where it is one chunk
        nbytes = chunk[0] * chunk[1] * dtype.itemsize
        target = min(max(nbytes, _MAPPED_TARGET), TARGET_BYTES)
        in_place = {"in_place": True, "target": target} if whole and same else {}
        return known | {"piece": (1, 1)} | in_place
    direct = whole and same and [codec.codec_id for codec in layout.codecs] == ["blosc"]
    return known | {"decoded": 0.0 if direct else 1.0}


def storage(matrix: Matrix) -> tuple[str, str]:
    """Chunks and codecs, for people."""
    source = matrix.source
    if isinstance(source, CSR):
        if not source.stored:
            return "none", matrix.uri
        found = [_storage_of(array) for array in (source.data, source.indices)]
        return " and ".join(dict.fromkeys(size for size, _ in found)), found[0][1]
    if isinstance(source, np.ndarray):
        return "none", "numpy array"
    if isinstance(source, da.Array):
        return _size(source.chunksize), "dask array"
    return _storage_of(source)


def _storage_of(source: zarr.Array[Any]) -> tuple[str, str]:
    shards = f" in shards of {_size(source.shards)}" if source.shards else ""
    codecs = " + ".join(_name(codec) for codec in source.compressors)
    return f"{_size(source.chunks)}{shards}", codecs or "uncompressed"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)


def _name(codec: Any) -> str:
    """ "zstd", "blosc-lz4" and so on, for codecs of zarr 2 and 3."""
    name = str(getattr(codec, "codec_id", type(codec).__name__.removesuffix("Codec").lower()))
    inner = getattr(codec, "cname", None)
    return f"{name}-{getattr(inner, 'value', inner)}" if inner else name
