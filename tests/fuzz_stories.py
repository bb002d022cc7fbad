"""What follows a drawn call of `factorize`, and the other entry points, for `tests.fuzz`."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import zarr
from zarr.storage import MemoryStore

import dask_nmf
from dask_nmf import oracle
from dask_nmf.cli import main
from tests.fuzz_asked import check_asked
from tests.fuzz_cases import absent_chunks
from tests.fuzz_checks import (
    Wrong,
    attempt,
    check_plain,
    contents,
    demand,
    judge,
    kind_of,
    same_bits,
)
from tests.fuzz_draw import BLOCK, Call, Draw
from tests.fuzz_options import Answer, bad_out, good_out

Story = Callable[[Draw, Call], str]


class Killed(BaseException):
    """What ends a call from its callback."""


def factorize(call: Call, **changed: Any) -> Any:
    return dask_nmf.factorize(call.V, **{**call.options, **changed})


def check_right(call: Call, result: Any) -> None:
    (check_asked if call.asked else check_plain)(call, result)


def _fresh() -> Any:
    return zarr.create_group(MemoryStore())


def _needs_out(call: Call) -> None:
    if call.options["out"] is None:
        call.options["out"] = call.folder / "out.zarr"


def _stops(call: Call) -> bool:
    callback = call.options.get("callback")
    return isinstance(callback, Answer) and callback.answer is True


# ----------------------------------------------------------------------------- factorize
def once(draw: Draw, call: Call) -> str:
    """The call; after an error a good call at the same place."""
    given = [x for x in (call.V, *_pair(call)) if isinstance(x, np.ndarray)]
    before = [x.tobytes() for x in given]
    result, error = attempt(lambda: factorize(call), call.refused, call.doubtful)
    demand(before == [x.tobytes() for x in given], "an argument was written to")
    if error is None:
        check_right(call, result)
        return "answered"
    out = call.options["out"]
    if out is not None and "out" not in call.wrong and "V" not in call.doubtful:
        good = dask_nmf.factorize(np.eye(4) + 1, 2, out=out, max_passes=3, tol=0)
        demand(good.W.compute().shape == (4, 2), "what an error leaves is in the way")
    return kind_of(error)


def _pair(call: Call) -> Any:
    init = call.options.get("init")
    return init if isinstance(init, (tuple, list)) else ()


def _answered(draw: Draw, call: Call) -> tuple[Any, str]:
    """The result of a good call, else None and how `once` ended."""
    if call.refused:
        return None, once(draw, call)
    result, error = attempt(lambda: factorize(call), set(), call.doubtful)
    if error is not None:
        return None, kind_of(error)
    check_right(call, result)
    return result, ""


def again(draw: Draw, call: Call) -> str:
    """The same call once more, on other threads: the same bits, and at once from `out`."""
    result, ended = _answered(draw, call)
    if ended:
        return ended
    out = call.options["out"]
    before = {} if out is None else contents(out)
    others = {"scheduler": "threads", "num_workers": draw.integer(1, 4)}
    with dask.config.set({} if call.tight else others):
        more = factorize(call, overwrite=False)
    same_bits(more, result, "the second time")
    if out is None:
        return "answered twice"
    demand(more.resumed_from == result.history[-1].passes, f"resumed from {more.resumed_from}")
    demand((more.history, more.status) == (result.history, result.status), "another history")
    demand(contents(out) == before, "the second call has written")
    same_bits(dask_nmf.open_result(out), result, "in open_result")
    return "returned"


def killed(draw: Draw, call: Call) -> str:
    """Killed in a callback, and called again: the bits of an undisturbed call."""
    if call.refused:
        return once(draw, call)
    call.options.pop("callback", None)
    _needs_out(call)
    whole, error = attempt(lambda: factorize(call, out=_fresh()), set(), call.doubtful)
    if error is not None:
        return kind_of(error)
    call.options["overwrite"] = False
    kills = 0
    for _ in range(draw.integer(1, 2)):
        last = draw.integer(1, len(whole.history))

        def kill(record: dask_nmf.SweepRecord, last: int = last) -> None:
            if record.sweep >= last:
                raise Killed

        try:
            factorize(call, callback=kill)
        except Killed:
            kills += 1
    result = factorize(call)
    same_bits(result, whole, f"after {kills} kills")
    check_right(call, result)
    return "resumed" if result.resumed_from is not None else "made anew"


def changed(draw: Draw, call: Call) -> str:
    """Another call at the place of a result is refused; with `overwrite` it is what it would be."""
    if "V" in call.doubtful:  # another start may be too much for it
        return once(draw, call)
    _needs_out(call)
    _, ended = _answered(draw, call)
    if ended:
        return ended
    out = call.options["out"]
    before = contents(out)
    options: dict[str, Any] = draw.one(
        {"seed": int(call.options.get("seed", 0)) ^ 1},
        {"solver": dask_nmf.HALS(inner=7)},
        {"init": dask_nmf.NNDSVD(power=4), "rank": 1, "max_passes": 9},
    )
    if call.doubtful or call.asked:  # the others may need more memory, or passes
        options = {"seed": int(call.options.get("seed", 0)) ^ 1}
    if draw.chance(0.3) and _change_V(draw, call):
        options = {}
    try:
        factorize(call, **{**options, "overwrite": False})
    except FileExistsError as error:
        judge(error, {"out"})
    else:
        raise Wrong(f"a result of another call was returned for {options}")
    demand(contents(out) == before, "a refused call has written")
    anew = factorize(call, **{**options, "overwrite": True})
    same_bits(anew, factorize(call, **{**options, "out": _fresh()}), "with overwrite")
    return "refused, then replaced"


def _change_V(draw: Draw, call: Call) -> bool:
    """An entry of V, or two rows swapped; False where it cannot be changed."""
    V: Any = call.V
    if call.asked:
        return False
    if isinstance(V, (str, Path)):
        V = zarr.open_array(str(V), mode="r+", config={"write_empty_chunks": True})
    if isinstance(V, da.Array) or (isinstance(V, np.ndarray) and not V.flags.writeable):
        return False
    values = np.array(V[...])
    moved = values[::-1] if draw.chance(0.3) else np.where(values == values.max(), 0, values)
    if (moved == values).all():
        return False
    V[...] = moved
    call.dense = moved.astype(float)
    if isinstance(V, zarr.Array) and absent_chunks(V):  # of zeros, by now
        call.options["missing"] = "zero"
    return True


def more(draw: Draw, call: Call) -> str:
    """More passes than a finished run had: it goes on to what they would have given, or says no."""
    _needs_out(call)
    if _stops(call):
        call.options["callback"] = None
    _, ended = _answered(draw, call)
    if ended:
        return ended
    call.options["overwrite"] = False
    call.options["max_passes"] += draw.integer(1, 5)
    whole = factorize(call, out=_fresh())
    before = contents(call.options["out"])
    result, error = attempt(lambda: factorize(call), set(), {"out"})
    if error is not None:
        demand(contents(call.options["out"]) == before, "a refused call has written")
        return f"more: {kind_of(error)}"
    same_bits(result, whole, "from that of a call with as many passes at once")
    return "went on" if len(whole.history) > (result.resumed_from or 0) else "was enough"


# ------------------------------------------------------------------------- other entries
_PLANNED = ("V", "rank", "solver", "init", "max_passes", "memory", "block_rows", "missing")


def plan(draw: Draw, call: Call) -> str:
    """Refuses early what `factorize` does, and promises what it does."""
    names = ("rank", "solver", "init", "max_passes", "memory", "block_rows", "missing", "out")
    options = {name: call.options[name] for name in names if name in call.options}
    wrong = {word for word in call.wrong if word.split("|")[0] in (*_PLANNED, "W0", "H0", "chunk")}
    late = {word for word in call.late if word.startswith("H0")}
    probe = draw.chance(0.2) and not call.late
    before = contents(call.folder)
    found, error = attempt(
        lambda: dask_nmf.plan(call.V, **options, probe=probe), wrong, call.doubtful | late
    )
    demand(contents(call.folder) == before, "a plan has written")
    if error is not None:
        return kind_of(error)
    demand(found.shape == call.shape and str(found) and found._repr_html_(), "not V's plan")
    demand(dask_nmf.Plan.from_json(json.loads(json.dumps(found.to_json()))) == found, "not JSON")
    if call.refused or probe:
        return "planned"
    result = factorize(call)
    demand(result.plan == found or call.options["out"] is not None, "not what was planned")
    return "planned and done"


def rechunk(draw: Draw, call: Call) -> str:
    """The copy holds the same, in the chunks asked for."""
    good: dict[str, Any] = {"chunks": (None, (3, 4), (1000, 1), [2, 2]), "codec": ("lz4", "none")}
    bad: dict[str, Any] = {
        "chunks": ((0, 3), (3,), 4, "34", (2.0, 2), (True, 2)),
        "codec": ("gzip", None, ["lz4"], ""),
    }
    options = {name: draw.one(*good[name]) for name in good}
    if max(call.shape) > 100 and options["chunks"]:  # not thousands of files
        options["chunks"] = (37, 1000)
    words = {word for word in call.wrong if word in ("V", "missing", "memory", "out")}
    if draw.chance(0.2):
        name = draw.one("chunks", "codec")
        options[name] = draw.one(*bad[name])
        words.add(name)
    for name in ("memory", "missing"):
        if name in call.options:
            options[name] = call.options[name]
    out = call.options["out"]
    if "out" not in call.wrong:
        out = call.folder / "copy.zarr"
    late = call.late & {"chunk", BLOCK}
    spoilt = call.late - late  # a copy is made of any numbers
    made, error = attempt(
        lambda: dask_nmf.rechunk(call.V, out, **options), words | late, {"memory"} | spoilt
    )
    if error is not None:
        return kind_of(error)
    if call.dense is not None:
        np.testing.assert_array_equal(np.asarray(made[...]).astype(float), call.dense)
    if options["chunks"]:
        wanted = tuple(min(a, b) for a, b in zip(options["chunks"], call.shape, strict=True))
        demand(made.chunks == wanted, f"chunks {made.chunks}")
    before = contents(out)
    dask_nmf.rechunk(call.V, out, **options)
    demand(contents(out) == before, "the second call has written")
    return "copied"


def half_steps(draw: Draw, call: Call) -> str:
    """`update_W` and `update_H` are the oracle's."""
    m, n, k = draw.integer(1, 20), draw.integer(1, 20), draw.integer(1, 5)
    arrays = {"V": (m, n), "W": (m, k), "H": (k, n)}
    given: dict[str, Any] = {x: draw.random.random(shape) + 0.01 for x, shape in arrays.items()}
    expected = [update(**given) for update in (oracle.update_W, oracle.update_H)]
    for name, X in given.items():
        if draw.chance(0.4):
            given[name] = da.from_array(X, chunks=(draw.cut(X.shape[0]), draw.cut(X.shape[1])))
    words = set()
    if draw.chance(0.3):
        name = draw.one(*given)
        X = np.asarray(given[name])
        given[name] = draw.one(
            X.tolist(), None, X[:, :-1], np.vstack([X, X]), X[0], X + 1j, X.astype(str)
        )
        words = {name, "V"}
    for update, wanted in zip((dask_nmf.update_W, dask_nmf.update_H), expected, strict=True):
        found, error = attempt(lambda update=update: update(**given), words, set())  # type: ignore[misc]
        if error is None and wanted is not None:
            np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-10)
    return "refused" if words else "answered"


def open_result(draw: Draw, call: Call) -> str:
    """A place without a result."""
    call.wrong.clear()
    call.folder = call.folder / "places"
    call.folder.mkdir()
    place = good_out(draw, call.folder) if draw.chance(0.3) else bad_out(draw, call)
    _, error = attempt(lambda: dask_nmf.open_result(place), {"out|result|results"}, set())
    return "" if error is None else kind_of(error)


def command(draw: Draw, call: Call) -> str:
    """The command line: exit code 0 for what is right, 2 for bad input, and no other."""
    V = call.V if isinstance(call.V, (str, Path)) else call.folder / "none.zarr"
    missing = call.options["missing"] if isinstance(call.options["missing"], str) else "error"
    out = str(call.folder / "results.zarr")
    rank = draw.one("1", "2", "1", "2", "0", "two", "2.0")
    verb = draw.one("fit", "fit", "plan", "rechunk")
    seen: set[str] = {"fit": {"V", "chunk"}, "plan": set(), "rechunk": {"chunk"}}[verb]
    good = isinstance(call.V, (str, Path)) and not (call.wrong & {"V"} or call.late & seen)
    more = ["--missing", missing, "--scheduler", draw.one("threads", "synchronous", "threads", "x")]
    argv = [verb, str(V), *([out] if verb != "plan" else []), *more]
    if verb != "rechunk":
        argv += ["--rank", rank, "--init", draw.one("random", "nndsvda", "svd")]
        argv += ["--max-passes", draw.one("6", "9", "1")]
        good = good and rank in ("1", "2") and "svd" not in argv and argv[-1] != "1"
        good = good and ("nndsvda" not in argv or int(rank) <= min(call.shape))
    good = good and "x" not in argv
    with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.redirect_stderr(told):
        try:
            code = main(argv)
        except SystemExit as error:
            code = int(str(error.code))
    text = told.getvalue()
    doubt = "V" in call.doubtful
    demand(code == (0 if good else 2) or (doubt and code == 2), f"{argv} ends with {code}: {text}")
    demand("Traceback" not in text, text)
    return f"code {code}"


STORIES: tuple[Story, ...] = (once, once, once, again, again, killed, changed, more)
OTHERS: tuple[Story, ...] = (plan, plan, rechunk, rechunk, half_steps, open_result, command)
