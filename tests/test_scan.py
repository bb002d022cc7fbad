"""A scan is its runs, to the bit, from one read of V per sweep."""

import os
import sys
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse
import zarr
from scipy.optimize import nnls

import dask_nmf
from dask_nmf import checkpoint, streams, sweeps, tasks
from tests.conftest import counted, low_rank, push
from tests.resuming import Killed, assert_same

DATA = low_rank(700, 60, 5, noise=0.5)
FEW: dict[str, Any] = {"tol": 0, "max_passes": 6, "block_rows": 70}


def _alone(V: Any, scan: dask_nmf.Scan, seeds: range, **options: Any) -> None:
    with dask.config.set(scheduler="synchronous"):
        for rank, results in scan.results.items():
            for seed, found in zip(seeds, results, strict=True):
                assert_same(found, dask_nmf.factorize(V, rank, seed=seed, **options))


@pytest.mark.parametrize(
    ("scheduler", "told"),
    push(
        3,
        [
            ("synchronous", {"loss": "kullback-leibler"}),
            ("cluster", {"solver": "auto"}),
            ("threads", {"sum_to_one": True}),
            ("threads", {"solver": "hals", "init": "nndsvda"}),
            ("threads", {"solver": "auto"}),
            ("threads", {"solver": "mu", "alpha_W": 0.01}),
            ("cluster", {"loss": "kullback-leibler"}),
            ("cluster", {"solver": "hals", "init": "nndsvda"}),
        ],
    ),
    indirect=["scheduler"],
    ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values())),
)
def test_two_ranks_and_three_restarts_are_six_runs(
    tmp_path: Path, scheduler: str, told: dict[str, Any]
) -> None:
    V = zarr.create_array(tmp_path / "V.zarr", data=DATA, chunks=(70, 60))
    options: dict[str, Any] = FEW | told
    found = dask_nmf.scan(V, (2, 4), restarts=3, seed=5, **options)
    assert found.ranks == (2, 4), scheduler
    _alone(V, found, range(5, 8), **options)


@pytest.mark.parametrize(
    ("solver", "out"), push(2, [("hals", False), ("auto", True), ("hals", True), ("auto", False)])
)
def test_one_read_per_pass(tmp_path: Path, solver: str, out: bool) -> None:
    V, store = counted(tmp_path / "V.zarr", DATA, (70, 60))
    place = tmp_path / "out.zarr" if out else None
    found = dask_nmf.scan(V, (2, 3, 4), restarts=3, out=place, solver=solver, **FEW)
    assert set(store.reads().values()) == {max(row["passes"] for row in found.rows())} == {6}


def test_who_has_converged_leaves(tmp_path: Path) -> None:
    V, store = counted(tmp_path / "V.zarr", DATA, (70, 60))
    options: dict[str, Any] = {"max_passes": 60, "solver": "hals", "tol": 0.05, "block_rows": 70}
    found = dask_nmf.scan(V, (1, 5), restarts=2, **options)
    passes = [r.history[-1].passes for results in found.results.values() for r in results]
    assert min(passes) < max(passes)
    assert set(store.reads().values()) == {max(passes)}
    _alone(V, found, range(2), **options)


@pytest.mark.parametrize("kind", ["numpy", "dask", "sparse", "weights", "columns"])
def test_any_V(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {"tol": 0, "max_passes": 5}
    V: Any = DATA
    if kind == "dask":
        V = da.from_array(DATA, chunks=(90, 30))
    if kind == "sparse":
        V = scipy.sparse.csr_array(np.where(np.median(DATA) < DATA, DATA, 0))
    if kind == "weights":
        options["weights"] = np.random.default_rng(0).random(DATA.shape) < 0.8
    if kind == "columns":
        V = zarr.create_array(tmp_path / "V.zarr", data=DATA.T.copy(), chunks=(60, 70))
    found = dask_nmf.scan(V, (2, 3), restarts=2, **options)
    _alone(V, found, range(2), **options)
    if kind == "weights":
        assert all(row["held_out"] > 0 for row in found.rows())


def test_killed_and_resumed_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    V, store = counted(tmp_path / "V.zarr", DATA, (70, 60))
    call: dict[str, Any] = {"restarts": 2, "solver": "hals", "checkpoint_every": 1} | FEW
    expected = dask_nmf.scan(V, (2, 4), **call)
    original, calls = checkpoint.Run.save, [0]

    def save(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] in (7, 12):
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(checkpoint.Run, "save", save)
    for _ in range(2):
        with pytest.raises(Killed):
            dask_nmf.scan(V, (2, 4), out=tmp_path / "out.zarr", **call)
    found = dask_nmf.scan(V, (2, 4), out=tmp_path / "out.zarr", **call)
    for rank in (2, 4):
        for one, other in zip(found.results[rank], expected.results[rank], strict=True):
            assert_same(one, other)
    store.reset()
    again = dask_nmf.scan(V, (2, 4), out=tmp_path / "out.zarr", **call)
    assert not store.reads()
    assert again.rows() == found.rows()
    assert sorted(os.listdir(tmp_path / "out.zarr")) == ["rank-002", "rank-004", "zarr.json"]


def test_streams_within_the_memory(tmp_path: Path) -> None:
    V = zarr.create_array(tmp_path / "V.zarr", data=low_rank(300, 2_000, 3), chunks=(50, 2_000))
    plans = {k: dask_nmf.plan(V, k, out="out") for k in (2, 20)}
    calls = [(k, s) for k in plans for s in range(10)]
    most = streams.peak_bytes(calls, plans, True)
    assert streams._streams(calls, plans, most, True) == [calls]
    several = streams._streams(calls, plans, most - 2**20, True)
    assert len(several) > 1
    assert [call for stream in several for call in stream] == calls
    for stream in several:
        assert streams.peak_bytes(stream, plans, True) <= most - 2**20


def test_as_many_steps_on_models_at_once_as_the_memory_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    plans = {k: dask_nmf.plan(da.ones((20_000, 40), chunks=(1_000, 40)), k) for k in (4, 8)}
    calls = [(k, s) for k in plans for s in range(5)]
    peaks = [streams.peak_bytes(calls, plans, True, n) for n in range(1, 5)]
    assert peaks[1] < peaks[2] < peaks[3]
    assert peaks[3] - peaks[2] == plans[8].step_bytes
    for n, peak in enumerate(peaks[1:], 2):
        assert streams.steps_at_once(calls, plans, True, peak) == n
        assert streams.steps_at_once(calls, plans, True, peak - 1) < n
    assert streams.steps_at_once(calls, plans, True, 2**40) == 4
    assert streams.steps_at_once(calls, plans, True, None) >= 1


def test_what_does_not_fit_makes_another_stream(caplog: pytest.LogCaptureFixture) -> None:
    V = da.from_array(low_rank(300, 3_000, 3), chunks=(50, 3_000))
    options: dict[str, Any] = {"tol": 0, "max_passes": 3, "block_rows": 50}
    one = dask_nmf.plan(V, 10, block_rows=50, max_passes=3)
    room = int(streams.peak_bytes([(10, 0)] * 2, {10: one}, True) * 1.01)
    with caplog.at_level("INFO", "dask_nmf"):
        found = dask_nmf.scan(V, 10, restarts=3, memory=room, **options)
    told = [line for line in caplog.messages if line.startswith("stream")]
    assert [line[:21] for line in told] == ["stream 1 of 2: 2 runs", "stream 2 of 2: 1 runs"]
    _alone(V, found, range(3), memory=room, **options)


def test_what_it_says() -> None:
    random = np.random.default_rng(0)
    V = random.gamma(0.3, 1, (300, 3)) @ random.gamma(0.3, 1, (3, 40)) + 0.01
    found = dask_nmf.scan(V, range(2, 6), restarts=5, max_passes=30)
    table = {row["rank"]: row for row in found.rows()}
    assert table[3]["stability"] > 0.95 > table[5]["stability"]
    assert table[3]["error"] < 0.1 * table[2]["error"]
    assert found.best(4).error == table[4]["error"]
    assert found.stability(3).shape == (3,)
    assert "rank 3" in repr(found)
    one = dask_nmf.scan(V, 3, restarts=1, max_passes=5, tol=0)
    assert "stability" not in one.table()
    with pytest.raises(ValueError, match="restarts >= 2"):
        one.stability(3)
    with pytest.raises(KeyError, match="rank must be one of"):
        one.best(7)


def test_the_table_is_a_frame_where_pandas_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = dask_nmf.scan(DATA, (2, 4), restarts=2, **FEW)
    frame = found.table()
    assert (frame.index.name, list(frame.index)) == ("rank", [2, 4])
    assert frame.loc[4, "error"] == found.best(4).error
    assert frame.loc[2, "stability_least"] == found.stability(2).min()
    assert frame["held_out"].isna().all()
    assert frame["held_out"].dtype == float
    wanted = frame.drop(columns="held_out").to_dict("records")
    monkeypatch.setitem(sys.modules, "pandas", None)  # an import of it fails
    rows = found.table()
    assert [row.pop("rank") for row in rows] == [2, 4]
    assert [row.pop("held_out") for row in rows] == [None, None]
    assert rows == wanted


def _least_squares(V: Any, H: Any, weights: Any = None, alpha: float = 0.0) -> Any:
    """W, row by row, by scipy; alpha : of the L2 penalty, as scikit-learn has it."""
    k, n = H.shape
    roots = np.ones_like(V) if weights is None else np.sqrt(weights)
    below, zeros = np.sqrt(alpha * n) * np.eye(k), np.zeros(k)
    systems = [
        (np.vstack([r[:, None] * H.T, below]), np.r_[r * v, zeros])
        for r, v in zip(roots, V, strict=True)
    ]
    return np.array([nnls(A, b)[0] for A, b in systems])


@pytest.mark.parametrize("kind", ["plain", "penalty", "weights", "closed", "kl"])
def test_consensus_has_the_W_of_the_runs_options_from_one_read(tmp_path: Path, kind: str) -> None:
    V, store = counted(tmp_path / "V.zarr", DATA[:210], (70, 60))
    weights = np.random.default_rng(0).random(V.shape) < 0.8
    options: dict[str, Any] = FEW | {
        "plain": {},
        "penalty": {"alpha_W": 0.02},
        "weights": {"weights": weights},
        "closed": {"sum_to_one": True},
        "kl": {"loss": "kullback-leibler"},
    }.get(kind, {})
    found = dask_nmf.scan(V, 3, restarts=3, **options).consensus(3)
    store.reset()
    lazy = found.W
    assert not store.reads()
    W, H = lazy.compute(), found.H
    assert set(store.reads().values()) == {1}
    assert len(store.reads()) == 3
    if kind == "kl":  # the gradient is zero where W is positive, and nowhere negative
        slope = H.sum(axis=1) - (DATA[:210] / (W @ H)) @ H.T
        assert slope.min() > -1e-4 * H.sum()
        assert np.abs(W * slope).max() < 1e-4 * DATA.max()
        return
    told: dict[str, Any] = {"alpha": 0.02} if kind == "penalty" else {}
    if kind == "weights":
        told["weights"] = weights
    if kind == "closed":  # a column more that asks for it
        heavy = 1e4
        ones = np.full((210, 1), heavy)
        wanted = _least_squares(np.hstack([DATA[:210], ones]), np.hstack([H, ones[:3]]))
    else:
        wanted = _least_squares(DATA[:210], H, **told)
    np.testing.assert_allclose(W, wanted, atol=1e-5 * wanted.max())


def test_consensus_of_alike_runs_is_as_good_as_the_best() -> None:
    random = np.random.default_rng(0)
    V = random.gamma(0.3, 1, (300, 3)) @ random.gamma(0.3, 1, (3, 40)) + 0.01
    found = dask_nmf.scan(V, 3, restarts=5, max_passes=30)
    agreed = found.consensus(3)
    error = np.linalg.norm(V - agreed.W.compute() @ agreed.H) / np.linalg.norm(V)
    assert error <= 1.5 * found.best(3).error + 1e-6
    by_hand = dask_nmf.Scan(found.results).consensus(3)
    assert (by_hand.H == agreed.H).all()
    assert by_hand.left_out == agreed.left_out == 0
    with pytest.raises(ValueError, match="only a Scan by scan"):
        _ = by_hand.W


@pytest.mark.parametrize(
    ("told", "kind", "text"),
    [
        ({"ranks": "23"}, TypeError, "ranks must be ints"),
        ({"ranks": []}, ValueError, "at least one rank"),
        ({"ranks": (2, 2)}, ValueError, "all be different"),
        ({"ranks": (0, 2)}, ValueError, "ranks must be at least 1"),
        ({"restarts": 0}, ValueError, "restarts must be at least 1"),
        ({"callback": print}, TypeError, "scan does not take callback"),
        ({"solver": "cd"}, ValueError, "solver must be one of"),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_refused(told: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        dask_nmf.scan(DATA, **{"ranks": (2, 3), "restarts": 2, **told})


def test_a_failure_is_told_and_what_was_committed_stays(tmp_path: Path) -> None:
    bad = DATA.copy()
    bad[500, 3] = np.nan
    with pytest.raises(ValueError, match="row 500, column 3"):
        dask_nmf.scan(bad, (2, 3), restarts=2, out=tmp_path / "out.zarr", **FEW)


def test_the_best_of_several_seeds_from_one_read(tmp_path: Path, scheduler: str) -> None:
    V, store = counted(tmp_path / "V.zarr", DATA, (70, 60))
    out = tmp_path / "out.zarr"
    best = dask_nmf.factorize(V, 3, restarts=4, seed=2, out=out, **FEW)
    if scheduler != "cluster":  # which counts in its workers
        assert set(store.reads().values()) == {6}
    with dask.config.set(scheduler="synchronous"):
        alone = [dask_nmf.factorize(DATA, 3, seed=seed, **FEW) for seed in range(2, 6)]
    assert best.error == min(result.error for result in alone)
    assert_same(best, min(alone, key=lambda result: result.error))
    again = dask_nmf.factorize(V, 3, restarts=4, seed=2, out=out, **FEW)
    assert_same(again, best)
    assert again.resumed_from == 6
    opened = dask_nmf.open_scan(out)
    assert_same(opened.best(3), best)
    for result, expected in zip(opened.results[3], alone, strict=True):
        assert_same(result, expected)


def test_opened_in_the_order_of_ranks_and_seeds(tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    made = dask_nmf.scan(DATA[:50], (11, 2), restarts=3, seed=9, out=out, **FEW)
    opened = dask_nmf.open_scan(out)
    assert opened.ranks == (2, 11)
    for rank in (2, 11):
        for result, expected in zip(opened.results[rank], made.results[rank], strict=True):
            assert_same(result, expected)


def test_what_cannot_be_opened_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    with pytest.raises(FileNotFoundError, match="no dask_nmf scan at"):
        dask_nmf.open_scan(out)
    dask_nmf.factorize(DATA, 2, restarts=2, out=out, **FEW)
    with pytest.raises(FileNotFoundError, match=r"open_scan\(.*\)\.best\(rank\)"):
        dask_nmf.open_result(out)
    with pytest.raises(FileExistsError):  # a single run has no place there
        dask_nmf.factorize(DATA, 2, out=out, **FEW)
    single = tmp_path / "single.zarr"
    dask_nmf.factorize(DATA, 2, out=single, **FEW)
    with pytest.raises(FileExistsError, match="holds the result of a single run"):
        dask_nmf.scan(DATA, (2, 3), out=single, **FEW)
    V = zarr.create_array(tmp_path / "V.zarr", data=DATA)
    with pytest.raises(ValueError, match="out must lie apart from V"):
        dask_nmf.scan(V, (2, 3), out=tmp_path / "V.zarr" / "below")
    with pytest.raises(TypeError, match="out must be a path"):
        dask_nmf.scan(DATA, (2, 3), out=3, **FEW)


def test_budget_is_told_for_the_best() -> None:
    with pytest.warns(dask_nmf.ConvergenceWarning, match="max_passes"):
        dask_nmf.factorize(DATA, 3, restarts=2, max_passes=3, tol=1e-6)


def test_ranks_of_numpy() -> None:
    several: list[Any] = [np.int64(3), np.arange(3, 4)]
    for ranks in several:
        assert dask_nmf.scan(DATA, ranks, restarts=1, **FEW).ranks == (3,)


def test_restarts_refused() -> None:
    W, H = np.ones((len(DATA), 2)), np.ones((2, 60))
    with pytest.raises(ValueError, match=r"restarts must be 1 for an init of \(W0, H0\)"):
        dask_nmf.factorize(DATA, 2, restarts=2, init=(W, H))
    with pytest.raises(ValueError, match="callback sees the sweeps of one run"):
        dask_nmf.factorize(DATA, 2, restarts=2, callback=print)
    with pytest.raises(ValueError, match="restarts must be at least 1"):
        dask_nmf.factorize(DATA, 2, restarts=0)
    with pytest.raises(TypeError, match="seed must be an int"):
        dask_nmf.factorize(DATA, 2, restarts=2, seed=None)  # type: ignore[arg-type]


def test_restarts_share_one_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    begin = sweeps.begin

    def spied(job: Any, matrix: Any, first: Any, once: Any) -> Any:
        seen.append(first.sketch)
        return begin(job, matrix, first, once)

    monkeypatch.setattr(sweeps, "begin", spied)
    dask_nmf.scan(DATA, (2, 4), restarts=3, **FEW)
    assert len({id(sketch) for sketch in seen}) == 2
    seen.clear()
    dask_nmf.scan(DATA, (2, 4), restarts=3, perturb=0.1, **FEW)  # each V is another
    assert len({id(sketch) for sketch in seen}) == 6


def test_the_sketch_is_multiplied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the random directions, (rows, 3 k + 10) at a time."""
    widths: list[int] = []
    product = tasks.product

    def spied(A: Any, B: Any) -> Any:
        widths.append(B.shape[1])
        return product(A, B)

    monkeypatch.setattr("dask_nmf.stream.product", spied)
    dask_nmf.scan(DATA, 4, restarts=5, **FEW | {"max_passes": 2, "block_rows": 700})
    assert widths.count(22) == 1
    assert widths.count(4) == 5
