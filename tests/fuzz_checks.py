"""What a right answer is, and a clear error, for `tests.fuzz`."""

import json
import linecache
import re
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from zarr.buffer import default_buffer_prototype
from zarr.core.sync import sync

import dask_nmf
from dask_nmf import Status, oracle
from dask_nmf.solvers import HALS, MU, make_solver
from tests.conftest import Array
from tests.fuzz_draw import Call

PACKAGE = Path(dask_nmf.__file__).parent
ERRORS = (
    *(FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError),
    *(TypeError, ValueError, RuntimeError),
)


class Wrong(AssertionError):
    """What a call must not do."""


def demand(holds: Any, text: str) -> None:
    if not holds:
        raise Wrong(text)


# ---------------------------------------------------------------------------------- errors
def attempt(
    call: Callable[[], Any], refused: set[str], doubtful: set[str]
) -> tuple[Any, Exception | None]:
    """What `call` gives, or its error, if that is one it may end in."""
    try:
        found = call()
    except Exception as error:
        judge(error, refused | doubtful)
        return None, error
    demand(not refused, f"accepted, though {sorted(refused)} should be refused")
    return found, None


def judge(error: Exception, words: set[str]) -> None:
    """Whether an error is one of ours, and about what is wrong with the call."""
    if not words:
        raise Wrong("a good call was refused") from error
    if not isinstance(error, ERRORS):
        raise Wrong(f"{type(error).__name__} is no error for a caller") from error
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if Path(frame.filename).parent != PACKAGE:
        raise Wrong(f"raised at {frame.filename}:{frame.lineno}, not by us") from error
    line = linecache.getline(frame.filename, frame.lineno or 0).strip()
    if not line.startswith("raise"):
        raise Wrong(f"{frame.filename}:{frame.lineno} ({line}) did not mean to raise") from error
    if not re.search(rf"\b({'|'.join(words)})\b", str(error)):
        raise Wrong(f"the message is about none of {sorted(words)}") from error


def kind_of(error: Exception) -> str:
    """The name of the builtin that it is."""
    return next(kind.__name__ for kind in ERRORS if isinstance(error, kind))


# --------------------------------------------------------------------------------- answers
def factors(result: dask_nmf.Result) -> tuple[Array, Array]:
    return np.asarray(result.W.compute()), np.asarray(result.H)


def check_form(call: Call, result: dask_nmf.Result) -> None:
    """Shapes, types and finite numbers, as documented."""
    (m, n), k = call.shape, int(call.options["rank"])
    demand(isinstance(result.W, da.Array), "W is no dask array")
    demand(isinstance(result.H, np.ndarray), "H is no numpy array")
    W, H = factors(result)
    for name, X, shape in (("W", W, (m, k)), ("H", H, (k, n))):
        demand(X.shape == shape, f"{name} has shape {X.shape}, not {shape}")
        demand(X.dtype == call.dtype, f"{name} has dtype {X.dtype}, not {call.dtype}")
        demand(np.isfinite(X).all() and (X >= 0).all(), f"{name} is not finite and non-negative")
    json.dumps(result.summary(), allow_nan=False)
    demand(str(result) and str(result.plan) and 0 <= result.dead <= k, f"dead {result.dead}")


def check_plain(call: Call, result: dask_nmf.Result) -> None:
    """The documented form, the true error, and a history that never rises."""
    check_form(call, result)
    W, H = factors(result)
    check_history(call, result)
    single = call.dtype == np.float32
    true = true_error(call.dense, W, H)
    far = abs(result.error - true) - 1e-4 * true
    demand(far <= (2e-7 if single else 2e-14), f"error {result.error!r}, in truth {true!r}")
    start = call.options.get("init")
    if isinstance(start, (tuple, list)) and result.resumed_from is None:
        check_sweeps(call, result, [np.asarray(x[...]) for x in start])


def true_error(dense: Any, W: Array, H: Array) -> float:
    """The relative error in float64, of any scale."""
    top = float(dense.max())
    if top == 0:
        return float((W @ H).any())
    V, root = dense / top, float(np.sqrt(top))
    R = V - (W.astype(float) / root) @ (H.astype(float) / root)
    return float(np.linalg.norm(R) / np.linalg.norm(V))


def check_history(call: Call, result: dask_nmf.Result) -> None:
    history, options = result.history, call.options
    demand(history, "no history")
    demand([r.sweep for r in history] == list(range(1, len(history) + 1)), "sweeps not counted")
    demand(history[-1].passes <= options["max_passes"] + 1, "too many passes")
    floor = 1e-6 if call.dtype == np.float32 else 2e-14
    for a, b in pairwise(history):
        demand(b.passes > a.passes and b.bytes_read >= a.bytes_read, f"{a}, then {b}")
        demand(b.error <= a.error * (1 + 1e-9) + floor, f"the error rises: {a}, then {b}")
    demand(all(np.isfinite(r.kkt) and r.kkt >= 0 for r in history), "kkt is not a number")
    demand(history[-1].error == result.error >= 0, "error is not the last one")
    tol = options.get("tol", 5e-3)
    if result.status is Status.CONVERGED:
        demand(history[-1].kkt < tol, "not converged")
    demand(result.status is not Status.RUNNING, "still running")
    if result.status is Status.MAX_SECONDS:
        demand(options.get("max_seconds") is not None, "max_seconds was not given")


def check_sweeps(call: Call, result: dask_nmf.Result, start: list[Array]) -> None:
    """HALS and MU from a given start take the oracle's sweeps."""
    solver = make_solver(call.options["solver"])
    if not isinstance(solver, (HALS, MU)) or getattr(solver, "settle", False):
        return
    V: Any = call.dense
    W, H = (x.astype(call.dtype).astype(float) for x in start)
    near = 1e-3 if call.dtype == np.float32 else 1e-6
    for record in result.history[:3]:
        for _ in range(solver.inner if isinstance(solver, MU) else 1):
            W = (
                oracle.hals_W(V, W, H, solver.inner)
                if isinstance(solver, HALS)
                else (oracle.update_W(V, W, H))
            )
        for _ in range(solver.inner if isinstance(solver, MU) else 1):
            H = (
                oracle.hals_H(V, W, H, solver.inner)
                if isinstance(solver, HALS)
                else (oracle.update_H(V, W, H))
            )
        wanted = true_error(V, W, H)
        far = abs(record.error - wanted) - near * wanted
        demand(far < near * 1e-3, f"{record}, by the oracle {wanted!r}")


def same_bits(result: dask_nmf.Result, other: dask_nmf.Result, what: str) -> None:
    for name, X, Y in zip("WH", factors(result), factors(other), strict=True):
        demand(X.dtype == Y.dtype and X.tobytes() == Y.tobytes(), f"{name} differs {what}")
    errors = [[(r.error, r.passes, r.kkt) for r in x.history] for x in (result, other)]
    demand(errors[0] == errors[1], f"the history differs {what}: {errors}")


def contents(out: Any) -> dict[str, bytes]:
    """Every object at a path, URL or group, byte for byte."""
    if not isinstance(out, zarr.Group):
        folder = Path(str(out).removeprefix("file://"))
        return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    async def all_of() -> dict[str, bytes]:
        store, found = out.store, {}
        async for key in store.list_prefix(out.path):
            value = await store.get(key, default_buffer_prototype())
            found[key] = b"" if value is None else value.to_bytes()
        return found

    return sync(all_of())
