"""The options of the calls that `tests.fuzz` draws."""

from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import scipy.sparse
import zarr
from zarr.storage import MemoryStore

import dask_nmf
from dask_nmf.solvers import HALS, MU
from tests.conftest import Array
from tests.fuzz_cases import draw_V
from tests.fuzz_draw import Call, Draw

NAN = float("nan")
_ARRAY = np.ones(3)

GOOD: dict[str, tuple[Any, ...]] = {
    "tol": (0, 0, 5e-3, 1e-9, 0.5, 0.999, np.float32(0.1), Fraction(1, 50)),
    "max_seconds": (None, 1e-9, 1e9, np.float64(1e5), 10**6, float("inf")),
    "seed": (0, 1, 7, 2**64 - 1, np.int64(5), np.uint8(3)),
    "memory": (None, "2GiB", 2**31, "3e9", "1.5 GB", 2.5e9, np.int64(2**32)),
    "missing": ("error", "zero"),
    "overwrite": (False, True),
    "checkpoint_every": (None, 1, 2, 3, 1000, np.int32(2)),
    "loss": ("frobenius",),
}
BAD: dict[str, tuple[Any, ...]] = {
    "rank": (0, -1, 2.0, True, None, "3", _ARRAY, NAN, np.float32(2), [2]),
    "solver": ("cd", "", "MU", None, 3, HALS, [MU()], _ARRAY, ("mu",), {}),
    "init": ("svd", "", None, 3, HALS(), _ARRAY, {}, dask_nmf.NNDSVD, (1, 2, 3), ()),
    "tol": (1, -1e-9, NAN, "x", None, True, float("inf"), 1j, _ARRAY, [0.1], -0.5),
    "max_passes": (1, 0, -3, 5.0, None, "7", True, NAN, _ARRAY),
    "max_seconds": (0, -1, NAN, "9", 1j, _ARRAY, [1]),
    "seed": (-1, 2**64, 1.0, None, True, "0", _ARRAY, np.float64(1)),
    "memory": (0, -5, "lots", "", "2 bytes?", NAN, float("inf"), "1MB", 10**6, "nan", _ARRAY, [1]),
    "block_rows": (0, -2, 3.0, True, "4", NAN, _ARRAY),
    "missing": ("skip", None, True, 0, "", ["zero"], _ARRAY),
    "overwrite": ("no", "false", None, 2, _ARRAY),
    "checkpoint_every": (0, -1, 2.0, "1", True, NAN, _ARRAY),
    "callback": (3, "print", [], _ARRAY),
    "loss": ("kl", "", None, NAN, True, ["frobenius"], _ARRAY),
}
SOLVERS: tuple[Any, ...] = (
    *("auto", "auto", "auto", "hals", "hals", "mu", "mu", MU(inner=3), HALS(inner=1)),
    *(HALS(settle=0.1), dask_nmf.LookAhead(model=False), dask_nmf.LookAhead(steps=3)),
)
INITS: tuple[Any, ...] = (
    *("random", "random", "given", "given", "nndsvd", "nndsvda", "nndsvdar"),
    *(dask_nmf.Random(), dask_nmf.NNDSVD(power=1)),
)


@dataclass(frozen=True)
class Own:
    """A solver of the caller's own, as the documentation allows."""

    inner: int = 1

    def improve(self, F: Array, numer: Array, gram: Array) -> Array:
        return MU().improve(F, numer, gram)


@dataclass(frozen=True)
class Answer:
    """A callback that answers so from a sweep on."""

    answer: Any
    begins: int = 1

    def __call__(self, record: dask_nmf.SweepRecord) -> Any:
        return self.answer if record.sweep >= self.begins else None


def draw_call(draw: Draw, folder: Path) -> Call:
    """A call: more than half of them with nothing wrong, others with one or two bad arguments."""
    call = Call(folder)
    faults = draw.one(0, 0, 0, 0, 0, 0, 1, 1, 2)
    bad = [draw.one("V", "V", "V", "out", "out", "given", *BAD) for _ in range(faults)]
    options = call.options
    options["missing"] = _option(draw, call, "missing", bad)
    draw_V(draw, call, "V" in bad)
    m, n = call.shape if len(call.shape) == 2 else (5, 5)
    least = min(m, n)
    most_k = least if least <= 60 else 8  # a large one takes minutes
    rank = draw.one(
        1, 2, 3, draw.integer(1, most_k), draw.integer(1, most_k + 3), np.int64(min(2, least))
    )
    options["rank"] = draw.one(*BAD["rank"]) if "rank" in bad else rank
    options["solver"] = draw.one(*BAD["solver"]) if "solver" in bad else draw.one(*SOLVERS, Own())
    options["init"] = init = draw.one(*BAD["init"]) if "init" in bad else draw.one(*INITS)
    if (isinstance(init, str) and init == "given") or "given" in bad:
        options["init"] = _given(draw, call, m, n, int(rank), "given" in bad)
    passes = 3 * init.startswith("nn") if isinstance(init, str) else 0
    if isinstance(init, dask_nmf.NNDSVD):
        passes = init.passes
    filled = isinstance(init, dask_nmf.NNDSVD) or str(init) in ("nndsvda", "nndsvdar")
    if filled and call.kind.startswith("scaled"):
        call.doubtful.add("V")  # what fills their zeros is of V's size, not of its root
    if (passes and "init" not in bad and "given" not in bad) and rank > least:
        call.wrong.add("init")
    most = 2 + passes + draw.integer(0, 6) if draw.chance(0.8) else 2 + passes + draw.integer(0, 40)
    if most < passes + 4:  # the transpose needs one more, tiles two
        call.doubtful.add("max_passes")
    options["max_passes"] = draw.one(*BAD["max_passes"]) if "max_passes" in bad else most
    for name in ("tol", "max_seconds", "seed", "memory", "overwrite", "checkpoint_every", "loss"):
        options[name] = _option(draw, call, name, bad)
        if name in GOOD and name not in bad and draw.chance(0.5):
            del options[name]
    if draw.chance(0.4) or "block_rows" in bad:
        _block_rows(draw, call, m, "block_rows" in bad)
    if draw.chance(0.3) or "callback" in bad:
        answers = (None, Answer(None), Answer(1), Answer(True, draw.integer(1, 4)))
        options["callback"] = draw.one(*(BAD["callback"] if "callback" in bad else answers))
    options["out"] = bad_out(draw, call) if "out" in bad else good_out(draw, folder)
    call.wrong |= {name for name in bad if name in BAD and name != "given"}
    if draw.chance(0.35) and "memory" not in bad and call.dense is not None:
        call.tight = True
        call.doubtful |= {"memory", "init", "max_passes"}
    call.dask = {"scheduler": draw.one("synchronous", "threads", "threads", "sync")}
    if call.dask["scheduler"] == "threads":
        call.dask["num_workers"] = draw.integer(1, 4)
    return call


def tighten(draw: Draw, call: Call) -> None:
    """A limit about what one block of all rows would need: mostly less of it."""
    names = ("rank", "solver", "init", "missing", "out", "loss", "weights", "fixed_H")
    given = {name: call.options[name] for name in names if name in call.options}
    with suppress(Exception):
        needed = dask_nmf.plan(call.V, **given)
        call.options["memory"] = int(needed.peak_bytes * draw.one(0.1, 0.2, 0.3, 0.5, 0.7, 0.9))


def _option(draw: Draw, call: Call, name: str, bad: list[str]) -> Any:
    return draw.one(*(BAD if name in bad else GOOD)[name])


def _block_rows(draw: Draw, call: Call, m: int, bad: bool) -> None:
    V = call.V
    rows = draw.integer(1, m + 5)
    if isinstance(V, da.Array) and V.ndim == 2 and draw.chance(0.7):
        rows = max([1, *(int(size) for size in V.chunks[0] if size == size)]) * draw.integer(1, 3)
    elif isinstance(V, zarr.Array) and V.ndim == 2 and draw.chance(0.7):
        rows = (V.shards or V.chunks)[0] * draw.integer(1, 3)
    elif not isinstance(V, np.ndarray) and rows < m:
        call.doubtful.add("block_rows")
    call.options["block_rows"] = draw.one(*BAD["block_rows"]) if bad else rows


# --------------------------------------------------------------------------- given factors
def _given(draw: Draw, call: Call, m: int, n: int, k: int, bad: bool) -> Any:
    """A pair (W0, H0) of about V's size."""
    random = draw.random
    top = 1.0 if call.dense is None or not call.dense.size else float(np.nanmax(call.dense))
    size = np.sqrt(top) if 0 < top < 1e300 else 1.0
    away = 10.0 ** draw.integer(-4, 4) if draw.chance(0.3) else 1.0
    W0 = (random.random((m, k)) + 0.01) * size * away
    H0 = (random.random((k, n)) + 0.01) * size / away
    call.kind += " given"
    if draw.chance(0.2):
        H0[:, random.random(n) < 0.5] = 0
        W0[random.random(m) < 0.5] = 0
        H0[0, 0] = W0[0, 0] = size
    if draw.chance(0.2) and 1e-3 < size < 1e3:
        W0 = (10 * W0 + 1).astype(draw.one("i4", "u1", "f4", "bool", ">f8"))
    pair: list[Any] = [W0, H0]
    if bad:
        return _spoiled_pair(draw, call, pair)
    for i in (0, 1):
        how = draw.one("numpy", "numpy", "F", "dask", "zarr")
        if how == "F":
            pair[i] = np.asfortranarray(pair[i])
        if how == "dask":
            pair[i] = da.from_array(pair[i], chunks=(draw.cut(pair[i].shape[0]), -1))
        if how == "zarr":
            pair[i] = zarr.create_array(MemoryStore(), data=pair[i])
    return tuple(pair) if draw.chance(0.8) else pair


def _spoiled_pair(draw: Draw, call: Call, pair: list[Any]) -> Any:
    i = draw.integer(0, 1)
    X = pair[i].astype(float)
    how = draw.one(
        *("shape", "NaN", "negative", "zeros", "complex", "text", "none", "list", "sparse", "one"),
        *("three", "masked", "object", "transposed", "path", "dask NaN", "inf"),
    )
    call.kind += f" {'W0' if i == 0 else 'H0'} {how}"
    words = call.late if how in ("NaN", "negative", "zeros", "dask NaN", "inf") else call.wrong
    words.add(f"{'W0' if i == 0 else 'H0'}|init")
    X[-1, -1] = {"NaN": np.nan, "dask NaN": np.nan, "negative": -1, "inf": np.inf}.get(how, 1.0)
    if how == "transposed" and X.shape[0] == X.shape[1]:
        how = "shape"
    pair[i] = {
        "shape": X[:, :-1] if draw.chance(0.5) else np.vstack([X, X]),
        "zeros": X * 0,
        "complex": X + 1j,
        "text": X.astype(str),
        "none": None,
        "list": X.tolist(),
        "sparse": scipy.sparse.csr_array(X),
        "masked": np.ma.masked_array(X, X.min() < X),
        "object": X.astype(object),
        "transposed": X.T,
        "path": "W0.npy",
        "dask NaN": da.from_array(X, chunks=-1),
    }.get(how, X)
    if how == "one":
        return (pair[0],)
    return (*pair, X) if how == "three" else tuple(pair)


# ------------------------------------------------------------------------------------- out
def good_out(draw: Draw, folder: Path) -> Any:
    how = draw.one("none", "none", "none", "str", "Path", "URL", "memory", "group", "deep", "empty")
    if how == "group":
        return zarr.create_group(folder / "results").create_group("a/b")
    if how == "empty":
        (folder / "out").mkdir()
    return {
        "none": None,
        "URL": f"file://{folder}/out.zarr",
        "memory": zarr.create_group(MemoryStore()),
        "deep": folder / "not" / "yet" / "there.zarr",
        "Path": folder / "out ü.zarr",
        "empty": folder / "out",
    }.get(how, str(folder / "out.zarr"))


def bad_out(draw: Draw, call: Call) -> Any:
    """A place that is not free, or no place at all."""
    folder = call.folder
    call.wrong.add("out")
    how = draw.one("file", "folder", "below", "array", "attributes", "full group", "int", "object")
    how = draw.one(how, how, how, "store", "empty", "nul", "V", "in V", "over V", "link", "bytes")
    V = call.V
    if how in ("V", "in V", "over V", "link"):
        place = str(V) if isinstance(V, (str, Path)) else None
        if isinstance(V, zarr.Array) and isinstance(V.store, zarr.storage.LocalStore):
            place = str(Path(V.store.root) / V.path)
        local = "" if place is None else place.removeprefix("file://")
        if not local.startswith(f"{folder}/") or not Path(local).is_dir():
            how = "folder"
        elif how == "link":
            (folder / "link").symlink_to(local)
            return folder / "link" / "out.zarr"
        else:
            inside = f"{local}/{draw.one('out.zarr', 'c', 'c/0/x')}"
            found = {"V": local, "in V": inside, "over V": str(Path(local).parent)}[how]
            return draw.one(found, f"file://{found}", Path(found))
    if how in ("file", "below"):
        (folder / "taken").write_text("mine")
        return folder / "taken" / ("out" if how == "below" else "")
    if how == "folder":
        (folder / "taken").mkdir()
        (folder / "taken" / "notes.txt").write_text("mine")
        return folder / "taken"
    if how == "array":
        made = zarr.create_array(folder / "taken", data=np.ones((2, 2)))
        return draw.one(made, folder / "taken")
    if how in ("attributes", "full group"):
        group = zarr.create_group(draw.one(MemoryStore(), folder / "taken"))
        group.attrs.update({"mine": 1} if how == "attributes" else {})
        if how == "full group":
            group.create_array("W", data=np.ones((2, 2)))
        return group
    return {"int": 3, "object": object(), "store": MemoryStore(), "empty": "", "nul": "a\0b"}.get(
        how, b"out.zarr"
    )
