"""What V is in the calls that `tests.fuzz` draws, and whether it must be refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import scipy.sparse
import zarr
from numcodecs import GZip, Zlib, Zstd
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    TransposeCodec,
    ZstdCodec,
)
from zarr.core.sync import sync
from zarr.storage import MemoryStore, ObjectStore

from tests.conftest import Array
from tests.fuzz_draw import BLOCK, Call, Draw


# ------------------------------------------------------------------------------- V's numbers
def entries(draw: Draw, m: int, n: int) -> tuple[str, Array]:
    """Non-negative numbers, and what they are called."""
    random = draw.random
    kind = draw.one(
        *("random", "random", "low rank", "close", "zeros", "constant", "rows", "duplicates"),
        *("huge", "scaled", "counts", "single", "negative zeros", "columns"),
    )
    k = draw.integer(1, 4)
    X = random.random((m, n))
    if kind in ("low rank", "close"):
        X = random.random((m, k)) @ random.random((k, n))
        X = X + (draw.one(1e-2, 1e-5, 1e-9) * random.random((m, n)) if kind == "close" else 0)
    elif kind in ("zeros", "single", "constant"):
        X = np.full((m, n), 3.0 if kind == "constant" else 0.0)
        if kind == "single":
            X[draw.integer(0, m - 1), draw.integer(0, n - 1)] = 1 + random.random()
    elif kind == "rows":
        X[random.random(m) < 0.5] = 0
    elif kind == "columns":
        X[:, random.random(n) < 0.5] = 0
    elif kind == "duplicates":
        X = X[random.integers(0, max(1, m // 4), m)]
    elif kind == "huge":
        X[draw.integer(0, m - 1), draw.integer(0, n - 1)] = 10.0 ** draw.integer(1, 140)
    elif kind == "scaled":
        X = X * 10.0 ** draw.integer(-160, 160)
    elif kind == "counts":
        X = random.poisson(draw.one(0.1, 1.0, 50.0), (m, n)).astype(float)
    elif kind == "negative zeros":
        X[random.random((m, n)) < 0.3] = -0.0
    return kind, np.asarray(X)


def as_dtype(X: Array, dtype: np.dtype[Any]) -> Array:
    """The numbers in that dtype, brought into its range."""
    top = float(X.max(initial=0.0))
    if dtype.kind == "b":
        return top / 2 < X
    if dtype.kind in "iu":
        high = min(float(np.iinfo(dtype).max), 1e15)
        X = X if 1 < top <= high else X * ((0.9 * high) / top if top > 0 else 1.0)
        return np.minimum(X, high).astype(dtype)
    if dtype.kind == "f" and dtype.itemsize < 8:
        high = 6e4 if dtype.itemsize == 2 else 1e30
        X = np.where(high < X, X * (high / top if top > 0 else 1.0), X)
    return X.astype(dtype)


REAL = (
    "f8",
    "f8",
    "f8",
    "f4",
    "f4",
    "f2",
    ">f8",
    ">f4",
    "u1",
    "i1",
    "u2",
    ">i2",
    "i4",
    "u8",
    "i8",
    "bool",
)
UNREAL = ("c8", "c16", "U4", "S3", "O", "M8[s]")


def _spoiled(draw: Draw, X: Array, call: Call) -> Array:
    """A NaN, an infinite or a negative entry at some place."""
    X = X.copy()
    place = draw.integer(0, X.shape[0] - 1), draw.integer(0, X.shape[1] - 1)
    bad = draw.one(np.nan, np.inf, -np.inf, -1, -1e-3)
    X[place] = -1 if X.dtype.kind == "i" else bad
    call.late.add("V")
    return X


# --------------------------------------------------------------------------- what V can be
def as_numpy(draw: Draw, X: Array, call: Call) -> Any:
    call.kind += " numpy"
    how = draw.one("C", "F", "sliced", "readonly", "reversed", "odd address", "matrix", "memmap")
    call.kind += f" {how}"
    if how == "F":
        return np.asfortranarray(X)
    if how == "sliced":
        return np.repeat(np.repeat(X, 2, 0), 3, 1)[::2, ::3]
    if how == "readonly":
        X.setflags(write=False)
    if how == "reversed":
        return X[::-1, ::-1].copy()[::-1, ::-1]
    if how == "odd address" and X.dtype.kind not in "OM":
        raw = np.frombuffer(b"x" + X.tobytes(), np.uint8)[1:]
        return raw.view(X.dtype).reshape(X.shape)
    if how == "matrix":
        return X.view(np.matrix)
    if how == "memmap" and X.size:
        mapped = np.memmap(call.folder / "V.dat", X.dtype, "w+", shape=X.shape)
        mapped[...] = X
        return mapped
    return X


def as_dask(draw: Draw, X: Array, call: Call) -> Any:
    chunks = draw.cut(X.shape[0]), draw.cut(X.shape[1])
    how = draw.one("plain", "plain", "plain", "F", "matrix", "lazy", "delayed")
    call.kind += f" dask {how} {chunks}"
    V = da.from_array(X, chunks=chunks, name=False)
    if how == "F":
        return V.map_blocks(np.asfortranarray, dtype=X.dtype)
    if how == "matrix":
        return V.map_blocks(lambda b: b.view(np.matrix), dtype=X.dtype, meta=np.empty((0, 0)))
    if how == "lazy":
        return V.T.rechunk((chunks[1], -1)).T
    if how == "delayed":
        rows = [da.from_delayed(b, b_shape, X.dtype) for b, b_shape in _rows_of(V)]
        return da.concatenate(rows) if all(V.chunks[0]) else V
    return V


def _rows_of(V: Any) -> list[tuple[Any, tuple[int, int]]]:
    parts = V.rechunk({1: -1})
    blocks = parts.to_delayed()[:, 0]
    return [(b, (h, V.shape[1])) for b, h in zip(blocks, parts.chunks[0], strict=True)]


def as_wrong_dask(draw: Draw, X: Array, call: Call) -> Any:
    """A dask array whose blocks are not what it says."""
    V = da.from_array(X, chunks=(max(1, X.shape[0] // 2), X.shape[1]), name=False)
    how = draw.one("unknown", "sparse", "short", "complex", "masked", "text", "1-D")
    call.kind += f" dask {how}"
    early = how == "unknown"
    (call.wrong if early else call.late).add("V" if early else BLOCK)
    if how == "unknown":
        return V[V[:, 0] >= 0]
    if how == "sparse told":
        return V.astype(float).map_blocks(scipy.sparse.csr_array)
    change: dict[str, Callable[[Any], Any]] = {
        "sparse": lambda b: scipy.sparse.csr_array(b.astype(float)),
        "short": lambda b: b[:-1],
        "complex": lambda b: b + 1j,
        "masked": lambda b: np.ma.masked_array(b, b > b.min()),
        "text": lambda b: b.astype(str),
        "1-D": lambda b: b.ravel(),
    }
    return V.map_blocks(change[how], dtype=X.dtype, meta=np.empty((0, 0), X.dtype))


def as_zarr(draw: Draw, X: Array, call: Call) -> Any:
    """An array in a store; an array, a path or an URL of it."""
    old = draw.chance(0.3)
    place = draw.one("memory", "local", "local", "path", "path", "Path", "URL", "obstore")
    options: dict[str, Any] = {"zarr_format": 2 if old else 3}
    chunks = tuple(draw.integer(1 + size // 20, size + draw.one(0, 3)) for size in X.shape)
    if draw.chance(0.3):
        chunks = tuple(max(1, size // 2) for size in X.shape)
    if old:
        codecs: Any = (None, Zstd(), GZip(), Zlib(), "auto")
        options |= {"order": draw.one("C", "C", "F")}
    else:
        codecs = (None, "auto", BloscCodec(), BloscCodec(cname="lz4", shuffle="shuffle"))
        codecs = (*codecs, GzipCodec(), ZstdCodec(), [ZstdCodec(), Crc32cCodec()], Crc32cCodec())
        if draw.chance(0.2):
            options["serializer"] = BytesCodec(endian="big")
        if draw.chance(0.1):
            options["filters"] = [TransposeCodec(order=(1, 0))]
        if draw.chance(0.3):
            options["shards"] = tuple(size * draw.integer(1, 3) for size in chunks)
        if draw.chance(0.1):
            options["chunk_key_encoding"] = {"name": "v2", "separator": "."}
    options |= {"chunks": chunks, "compressors": draw.one(*codecs)}
    if draw.chance(0.2):
        options["fill_value"] = draw.one(1, 0) if X.dtype.kind != "f" else draw.one(7, np.nan, 0.5)
    if draw.chance(0.7):
        options["config"] = {"write_empty_chunks": True}
    path = call.folder / draw.one("V.zarr", "group/V", "a b%20ü.zarr")
    if place == "obstore":
        from obstore.store import LocalStore as Folder

        path.mkdir(parents=True)
        store: Any = ObjectStore(Folder(str(path)))
    else:
        store = MemoryStore() if place == "memory" else str(path)
    if path.parent != call.folder and place not in ("memory", "obstore"):
        zarr.create_group(path.parent)
    array = zarr.create_array(store, shape=X.shape, dtype=X.dtype, **options)
    array[...] = X
    call.kind += f" zarr {place} {options}"
    if draw.chance(0.1):
        sync(array.store_path.store.delete(_keys(array)[-1]))
    if place in ("local", "path", "Path") and draw.chance(0.03):
        _damage(draw, path, array, call)
    if place == "URL":
        return f"file://{path}"
    return {"path": str(path), "Path": path}.get(place, array)


def _keys(array: Any) -> list[str]:
    sizes = zip(array.shape, array.shards or array.chunks, strict=True)
    numbers = np.ndindex(*(-(-size // step) for size, step in sizes))
    return [f"{array.path}/{array.metadata.encode_chunk_key(i)}".lstrip("/") for i in numbers]


def _damage(draw: Draw, path: Path, array: Any, call: Call) -> None:
    """A chunk cut short, or, where it is compressed, with other bytes at its start."""
    file = path / array.metadata.encode_chunk_key((0, 0))
    if file.exists():
        body = file.read_bytes()
        cut = not array.compressors or draw.chance(0.5)
        file.write_bytes(body[: draw.integer(0, 3)] if cut else b"????????" + body[8:])
        call.late.add("chunk")
        call.kind += " damaged"


def absent_chunks(array: Any) -> list[str]:
    store = array.store_path.store
    return [key for key in _keys(array) if not sync(store.exists(key))]


def read_zarr(call: Call, V: Any) -> None:
    """What it holds, as zarr reads it; an absent chunk has to be refused unless asked for."""
    if isinstance(V, (str, Path)):
        V = zarr.open_array(str(V), mode="r")
    if absent_chunks(V) and str(call.options["missing"]) != "zero":
        call.late.add("chunk")
    if "chunk" not in call.late:
        call.dense = np.asarray(V[...]).astype(float)


def as_nothing(draw: Draw, X: Array, call: Call) -> Any:
    """What V must not be."""
    call.wrong.add("V")
    folder = call.folder
    how = draw.one(
        *("list", "none", "int", "bytes", "group", "group path", "no path"),
        *("file", "folder", "empty", "nul", "no metadata", "half metadata", "below file", "view"),
        *("deep", "vector", "scalar", "no rows", "no columns", "zarr vector"),
    )
    call.kind += f" {how}"
    if how in ("group", "group path"):
        group = zarr.create_group(folder / "group")
        if draw.chance(0.5):
            group.create_array("X", data=np.ones((2, 2)))
        return group if how == "group" else str(folder / "group")
    if how in ("file", "below file"):
        (folder / "file").write_text("no zarr")
        return folder / "file" / ("x" if how == "below file" else "")
    if how in ("no metadata", "half metadata"):
        made: Any = zarr.create_array(folder / "V.zarr", data=np.ones((2, 2)), zarr_format=3)
        text = (Path(made.store.root) / "zarr.json").read_text()
        (folder / "V.zarr" / "zarr.json").write_text("{}" if how == "no metadata" else text[:40])
        return folder / "V.zarr"
    if how == "zarr vector":
        return zarr.create_array(MemoryStore(), data=np.ones(7))
    return {
        "list": X.tolist(),
        "none": None,
        "int": 7,
        "bytes": b"V.zarr",
        "no path": draw.one(folder / "nothing.zarr", f"file://{folder}/nothing", "nothing/at/all"),
        "folder": folder,
        "empty": "",
        "nul": "a\0b",
        "view": memoryview(X.tobytes()),
        "deep": X[None],
        "vector": X[0],
        "scalar": np.float64(3.0) if draw.chance(0.5) else np.array(3.0),
        "no rows": X[:0],
        "no columns": da.from_array(X, chunks=-1)[:, :0],
    }[how]


def draw_V(draw: Draw, call: Call, bad: bool) -> None:
    """V, after `missing` was drawn."""
    m, n = (
        draw.one(1, 2, draw.integer(1, 60), draw.integer(1, 60)),
        draw.one(1, draw.integer(1, 40)),
    )
    if draw.chance(0.6):
        m, n = draw.integer(5, 60), draw.integer(3, 40)
    elif draw.chance(0.2):  # so large that a tile takes less than rows or columns
        m, n = draw.integer(150, 300), draw.integer(150, 300)
    call.kind, X = entries(draw, m, n)
    dtype = np.dtype(draw.one(*REAL))
    if call.kind == "huge" and X.max() > (1e8 if dtype.str[1:] == "f4" else 1e30):
        call.doubtful.add("V")  # so much that all else is rounding
    fault = draw.one("entry", "entry", "dtype", "blocks", "nothing", "nothing") if bad else ""
    X = as_dtype(X, dtype)
    if fault == "entry" and dtype.kind in "if":
        X = _spoiled(draw, X, call)
    elif fault == "entry":
        fault = "nothing"
    if fault == "dtype":
        dtype = np.dtype(draw.one(*UNREAL))
        X = np.ones((m, n), dtype)
        call.wrong.add("V")
    call.kind += f" {dtype.str}"
    call.shape, call.dtype = X.shape, np.dtype("f4" if dtype.str[1:] == "f4" else "f8")
    if fault in ("", "entry", "dtype"):
        ways = [as_numpy, as_dask, as_zarr, as_zarr] if dtype.kind not in "OM" else [as_numpy]
        way: Any = draw.one(*ways)
        call.V = way(draw, X, call)
        if fault == "dtype":
            return
        if way is as_zarr:
            read_zarr(call, call.V)
        else:
            call.dense = X.astype(float)
        _check_range(call)
    else:
        call.V = (as_wrong_dask if fault == "blocks" else as_nothing)(draw, X, call)


def _check_range(call: Call) -> None:
    """Predict what `factorize` documents of V's entries and their range."""
    if call.dense is None:
        return
    if not (np.isfinite(call.dense) & (call.dense >= 0)).all():
        call.late.add("V")
        return
    info = np.finfo(call.dtype)
    top = float(call.dense.max(initial=0.0))
    norm = top * float(np.linalg.norm(call.dense / top)) if top > 0 else 0.0
    low, high = float(info.tiny) ** 0.5, float(info.max) ** 0.5
    if top > 0 and not (norm < 0.99 * high and top > 1.01 * low):
        sure = norm > 1.01 * high or top < 0.99 * low
        (call.late if sure else call.doubtful).add("V")
