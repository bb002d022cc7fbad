"""What the pictures of a scan show is what its results say."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dask_nmf
from tests.conftest import Array, low_rank

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

DATA = low_rank(120, 30, 3, noise=0.5)
DRAWN: dict[str, Callable[..., Any]] = {
    "ranks": dask_nmf.plot_ranks,
    "consensus": lambda scan, **told: dask_nmf.plot_consensus(scan, 3, **told),
    "components": lambda scan, **told: dask_nmf.plot_components(scan, 3, **told),
}


@pytest.fixture(scope="module")
def found() -> dask_nmf.Scan:
    return dask_nmf.scan(DATA, (4, 2, 3), restarts=5, tol=0, max_passes=4, seed=2)


def _lines(ax: Any) -> dict[str, Array]:
    return {line.get_label(): line.get_xydata() for line in ax.get_lines()}


def _by_hand(Hs: list[Any], **options: Any) -> dask_nmf.Scan:
    """A scan of runs with those H."""
    one = dask_nmf.factorize(DATA, len(Hs[0]), max_passes=3, tol=0)
    results = [dask_nmf.Result(one.W, H, one.history, one.status, one.parameters) for H in Hs]
    return dask_nmf.Scan({len(Hs[0]): tuple(results)}, **options)


@pytest.mark.parametrize("name", DRAWN)
def test_the_axes_are_those_given(name: str, found: dask_nmf.Scan) -> None:
    plt.close("all")
    ours, other = Figure().subplots(1, 2)
    assert DRAWN[name](found, ax=ours) is ours
    assert ours.has_data()
    assert not other.has_data()
    assert plt.get_fignums() == []
    own = DRAWN[name](found)
    assert plt.get_fignums() == [own.figure.number]
    plt.close("all")


@pytest.mark.parametrize("name", DRAWN)
def test_without_matplotlib_it_says_what_to_install(
    name: str, found: dask_nmf.Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "dask_nmf\[plots\]"'):
        DRAWN[name](found)


def test_errors_and_stability_against_rank(found: dask_nmf.Scan) -> None:
    ax: Any = dask_nmf.plot_ranks(found, Figure().subplots())
    left, right = ax.figure.axes
    errors = {k: [result.error for result in found.results[k]] for k in (2, 3, 4)}
    drawn = _lines(left)
    assert set(drawn) == {"error, best run", "error, each run"}
    assert drawn["error, best run"].tolist() == [[k, min(errors[k])] for k in errors]
    runs = sorted([k, error] for k in errors for error in errors[k])
    assert sorted(drawn["error, each run"].tolist()) == runs
    stable = {k: found.stability(k) for k in errors}
    drawn = _lines(right)
    assert drawn["stability, mean"].tolist() == [[k, stable[k].mean()] for k in errors]
    assert drawn["stability, least"].tolist() == [[k, stable[k].min()] for k in errors]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("rank", "||V - W H|| / ||V||")
    assert "silhouette" in right.get_ylabel()
    assert right.get_ylim() == (min(0, *(x.min() for x in stable.values())) - 0.05, 1.05)
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(told) == sorted([*_lines(left), *_lines(right)])
    assert all(tick == int(tick) for tick in ax.get_xticks())


def test_hidden_entries_and_other_losses_are_drawn_too() -> None:
    weights = np.random.default_rng(0).random(DATA.shape) < 0.8
    told: dict[str, Any] = {"weights": weights, "tol": 0, "max_passes": 3}
    found = dask_nmf.scan(DATA, (2, 3), restarts=2, loss="kullback-leibler", **told)
    ax: Any = dask_nmf.plot_ranks(found, Figure().subplots())
    least = [[k, min(r.history[-1].held_out or 0 for r in found.results[k])] for k in (2, 3)]
    assert _lines(ax)["error, hidden entries"].tolist() == least
    assert ax.get_ylabel() == "divergence / that of V's mean"
    euclidean = dask_nmf.scan(DATA, 2, restarts=1, **told)
    ax = dask_nmf.plot_ranks(euclidean, Figure().subplots())
    assert ax.get_ylabel() == "||V - W H|| / ||V||"
    assert len(ax.figure.axes) == 1  # one run says nothing about stability
    assert [tick for tick in ax.get_xticks() if 1.5 <= tick <= 2.5] == [2]
    assert all(line.get_marker() == "." for line in ax.get_lines())  # a line of one rank is none


def test_consensus_is_in_blocks_where_the_runs_agree() -> None:
    """Columns of three kinds, shuffled; in one run of four, five columns have changed."""
    random = np.random.default_rng(0)
    kinds = random.permutation(np.repeat([0, 1, 2], [20, 12, 8]))
    changed = np.where(np.arange(40) < 5, (kinds + 1) % 3, kinds)
    each = [kinds, kinds, changed, kinds]
    Hs = [np.eye(3)[random.permutation(3)][:, kind] + 0.01 for kind in each]
    ax: Any = dask_nmf.plot_consensus(_by_hand(Hs), 3, Figure().subplots())
    (image,) = ax.get_images()
    shown = np.asarray(image.get_array())
    wanted = np.mean([kind[:, None] == kind for kind in each], axis=0)
    assert (shown == shown.T).all()
    assert sorted(map(sorted, shown.tolist())) == sorted(map(sorted, wanted.tolist()))
    steps = (shown[:-1] != shown[1:]).any(axis=1).sum()
    assert steps == len(np.unique(wanted, axis=0)) - 1  # rows that are alike are neighbours
    assert image.get_clim() == (0, 1)
    bar = ax.figure.axes[1]
    assert bar.get_ylabel() == "share of the runs that join two columns"
    assert ax.get_title().startswith("rank 3, 4 runs: cophenetic correlation 0.9")


@pytest.mark.parametrize("n", [30, 5_000])
def test_components_have_the_band_of_the_runs(n: int) -> None:
    random = np.random.default_rng(1)
    H = random.gamma(0.3, 1, (3, n))
    Hs = [H + 0.3 * random.random(H.shape) for _ in range(6)]
    scan = _by_hand([H[random.permutation(3)] for H in Hs])
    first = np.asarray(scan.best(3).H)
    unit = np.array([H / np.linalg.norm(H, axis=1, keepdims=True) for H in Hs])
    ax: Any = dask_nmf.plot_components(scan, 3, Figure().subplots())
    medians: list[Any] = [line for line in ax.get_lines() if len(line.get_xdata()) > 2]
    assert len(medians) == len(ax.collections) == 3
    place = n // len(medians[0].get_xdata())
    for j, (line, band) in enumerate(zip(medians, ax.collections, strict=True)):
        own = unit[:, int((first[j] @ H.T).argmax())]
        low, median, high = (
            np.percentile(own, percent, axis=0).reshape(-1, place).max(axis=1)
            for percent in (10, 50, 90)
        )
        height = 0.9 / high.max()
        x, y = line.get_xdata(), line.get_ydata()
        assert (x == np.arange(0, n, place)).all()
        np.testing.assert_allclose(y, 2 - j + height * median, atol=1e-12)
        corners = band.get_paths()[0].vertices
        for edge, pick in ((low, np.min), (high, np.max)):
            drawn = [pick(corners[corners[:, 0] == column, 1]) for column in x[1:-1]]
            np.testing.assert_allclose(drawn, 2 - j + height * edge[1:-1], atol=1e-12)
    names = {t.get_position()[1]: t.get_text() for t in ax.get_yticklabels()}
    stable = scan.stability(3)
    assert names == {2 - j: f"{j}  ({stable[j]:.2f})" for j in range(3)}
    assert ax.get_title() == "rank 3: median of 6 runs, and 10 to 90 %"


def test_one_run_has_no_spread() -> None:
    with pytest.raises(ValueError, match="restarts >= 2"):
        dask_nmf.plot_components(_by_hand([np.ones((2, 30))]), 2, Figure().subplots())
