"""What the pictures of a result show is what is in it."""

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest

import dask_nmf
from dask_nmf.pictures import largest, thinned
from tests.conftest import low_rank

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

FEW: dict[str, Any] = {"tol": 0, "max_passes": 5}
ONE: Any = 1.0
LINE: Any = (120,)
DRAWN: dict[str, Callable[..., Any]] = {
    "history": dask_nmf.plot_history,
    "component": lambda result, **told: dask_nmf.plot_component(result, 1, **told),
    "map": lambda result, **told: dask_nmf.plot_map(result, 1, (12, 10), **told),
    "scatter": lambda result, **told: dask_nmf.plot_scatter(result, 0, 1, **told),
}


@pytest.fixture(scope="module")
def found() -> dask_nmf.Result:
    return dask_nmf.factorize(low_rank(120, 30, 3, noise=0.5), 3, **FEW)


def _with(W: Any, H: Any, history: Any = ()) -> dask_nmf.Result:
    """A result with these factors."""
    about = {"shape": [W.shape[0], H.shape[1]], "loss": "frobenius"}
    return dask_nmf.Result(W, H, tuple(history), dask_nmf.Status.CONVERGED, about)


def _row(sweep: int, error: float, **more: Any) -> dask_nmf.SweepRecord:
    return dask_nmf.SweepRecord(sweep, sweep + 1, error, 3.0 * sweep, 10, 0.5, **more)


def _lines(ax: Any) -> list[list[list[float]]]:
    return [line.get_xydata().tolist() for line in ax.get_lines()]


def _axes() -> Any:
    return Figure().subplots()


@pytest.mark.parametrize("name", DRAWN)
def test_the_axes_are_those_given(name: str, found: dask_nmf.Result) -> None:
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
    name: str, found: dask_nmf.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "dask_nmf\[plots\]"'):
        DRAWN[name](found)
    with pytest.raises(ImportError, match=r'pip install "dask_nmf\[plots\]"'):
        dask_nmf.report(found, tmp_path / "page.html")


def test_history_by_passes_and_by_seconds() -> None:
    W, H = np.ones((4, 1)), np.ones((1, 3))
    one = _with(W, H, [_row(1, 0.5), _row(2, 0.25, held_out=0.375)])
    ax: Any = dask_nmf.plot_history(one, ax=_axes())
    assert _lines(ax) == [[[2, 0.5], [3, 0.25]], [[3, 0.375]]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("passes over V", "||V - W H|| / ||V||")
    assert ax.get_yscale() == "linear"
    ax = dask_nmf.plot_history(one, "seconds", "kkt", ax=_axes())
    assert _lines(ax) == [[[3, 0.5], [6, 0.5]]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("seconds", "kkt")
    steep = _with(W, H, [_row(1, 0.5), _row(2, 0.01)])
    ax = dask_nmf.plot_history({"flat": one, "$steep": steep}, ax=_axes())
    assert ax.get_yscale() == "log"
    assert len(ax.get_lines()) == 3
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert told == ["flat", "flat, hidden entries", "$steep"]
    ax.figure.draw_without_rendering()  # "$" begins no formula


def test_runs_are_told_apart_by_what_differs() -> None:
    V = low_rank(60, 10, 2)
    runs = [dask_nmf.factorize(V, 2, solver=s, seed=7, **FEW) for s in ("mu", "hals")]
    ax: Any = dask_nmf.plot_history(runs, ax=_axes())
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert told == ["solver MU(inner=1)", "solver HALS(inner=5, settle=0.0)"]
    assert _lines(ax) == [[[r.passes, r.error] for r in run.history] for run in runs]
    ax = dask_nmf.plot_history([runs[0], runs[0]], ax=_axes())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["run 0", "run 1"]


@pytest.mark.parametrize(
    ("told", "text"),
    [({"y": "errors"}, "y must be one of sweep, passes"), ({"y": "held_out"}, "have no held_out"),
     ({"x": "time"}, "x must be one of")],
)  # fmt: skip
def test_history_of_what_is_not_there(
    told: dict[str, Any], text: str, found: dask_nmf.Result
) -> None:
    plt.close("all")
    with pytest.raises(ValueError, match=text):
        dask_nmf.plot_history(found, **told)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("kind", [np.asarray, lambda H: da.from_array(H, chunks=(1, 2))])
def test_bars_of_the_largest_columns_with_their_names(kind: Any) -> None:
    H = kind(np.array([[0.0, 9, 0, 0], [1, 0, 4, 2]]))
    names = ["sea", "sun", "$k<y", "x" * 50]
    ax: Any = dask_nmf.plot_component(_with(np.ones((3, 2)), H), 1, names=names, ax=_axes())
    ax.figure.draw_without_rendering()
    assert [bar.get_width() for bar in ax.patches] == [4, 2, 1]  # zeros are no bars
    told = [label.get_text() for label in ax.get_yticklabels()]
    assert told == ["$k<y", "x" * 31 + "…", "sea"]
    assert ax.yaxis_inverted()
    assert ax.get_title() == "component 1"


def test_a_spectrum_over_its_wavelengths() -> None:
    H = np.array([[3.0, 1, 2]])
    result = _with(np.ones((2, 1)), H)
    ax = dask_nmf.plot_component(result, 0, ax=_axes())
    assert _lines(ax) == [[[0, 3], [1, 1], [2, 2]]]
    ax = dask_nmf.plot_component(result, 0, names=[0.4, 0.5, 0.7], ax=_axes())
    assert _lines(ax) == [[[0.4, 3], [0.5, 1], [0.7, 2]]]


def test_long_lines_keep_their_peaks() -> None:
    values = np.random.default_rng(0).random(5_003)
    columns, heights = thinned(values)
    assert len(columns) == 1_000
    for start, end, height in zip(columns, [*columns[1:], len(values)], heights, strict=True):
        assert height == values[start:end].max()


def test_largest_is_sorted_and_positive() -> None:
    assert largest(np.array([1.0, 0, 3, 2]), 2).tolist() == [2, 3]
    assert largest(np.zeros(3), 2).tolist() == []


def test_images_of_rows_and_of_columns() -> None:
    W, H = np.arange(24.0).reshape(12, 2), np.arange(12.0).reshape(2, 6)
    result = _with(da.from_array(W, chunks=(5, 2)), H)
    ax: Any = dask_nmf.plot_map(result, 1, (3, 4), ax=_axes())
    (image,) = ax.get_images()
    assert image.get_array().tolist() == W[:, 1].reshape(3, 4).tolist()
    assert image.get_clim() == (0, np.percentile(W[:, 1], 99.5))
    ax = dask_nmf.plot_component(result, 1, shape=(2, 3), ax=_axes())
    assert ax.get_images()[0].get_array().tolist() == [[6, 7, 8], [9, 10, 11]]
    dead = _with(np.zeros((4, 1)), np.zeros((1, 4)))
    assert dask_nmf.plot_map(dead, 0, (2, 2), ax=_axes()).images[0].get_clim() == (0, 1)


def test_large_images_are_drawn_by_each_third_pixel() -> None:
    W = np.arange(2 * 2_500.0).reshape(-1, 1)
    ax: Any = dask_nmf.plot_map(_with(W, np.ones((1, 2))), 0, (2, 2_500), ax=_axes())
    assert np.array_equal(ax.images[0].get_array(), W.reshape(2, 2_500)[:, ::3])


def test_scatter_takes_each_fourth_row() -> None:
    W = np.random.default_rng(0).random((1_000, 3))
    result = _with(da.from_array(W, chunks=(99, 3)), np.ones((3, 2)))
    ax: Any = dask_nmf.plot_scatter(result, 2, 0, most=300, ax=_axes())
    assert np.array_equal(ax.collections[0].get_offsets(), W[::4][:, [2, 0]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("component 2 in W", "component 0 in W")


def test_W_is_never_in_memory_as_a_whole() -> None:
    W = da.random.default_rng(0).random((4_000 * 100, 20), chunks=(10_000, 20))  # 64 MB
    result = _with(W, np.ones((20, 2)))
    figure: Any = Figure().subplots(1, 2)
    with dask.config.set(scheduler="synchronous"):
        tracemalloc.start()
        dask_nmf.plot_scatter(result, 0, 1, ax=figure[0])
        dask_nmf.plot_map(result, 0, (4_000, 100), ax=figure[1])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16e6


@pytest.mark.parametrize(
    ("draw", "error", "text"),
    [
        (lambda r: dask_nmf.plot_component(r, 3), IndexError, "component must be from 0 to 2"),
        (lambda r: dask_nmf.plot_component(r, -1), ValueError, "component must be at least 0"),
        (lambda r: dask_nmf.plot_component(r, ONE), TypeError, "component must be an int"),
        (lambda r: dask_nmf.plot_component(r, 0, names=["a"]), ValueError, "names must be 30"),
        (lambda r: dask_nmf.plot_component(r, 0, shape=(5, 7)), ValueError, "product is 30"),
        (lambda r: dask_nmf.plot_component(r, 0, names="a" * 30, shape=(5, 6)), ValueError, "both"),
        (lambda r: dask_nmf.plot_component(r, 0, top=0), ValueError, "top must be at least 1"),
        (lambda r: dask_nmf.plot_map(r, 0, LINE), ValueError, "product is 120, the rows of V"),
        (lambda r: dask_nmf.plot_scatter(r, 0, 9), IndexError, "component must be from 0 to 2"),
        (lambda r: dask_nmf.plot_scatter(r, 0, 1, most=0), ValueError, "most must be at least 1"),
    ],
)  # fmt: skip
def test_bad_input(draw: Any, error: Any, text: str, found: dask_nmf.Result) -> None:
    plt.close("all")
    with pytest.raises(error, match=text):
        draw(found)
    assert plt.get_fignums() == []  # no empty figure is left behind


def test_a_consensus_has_maps_too() -> None:
    V = low_rank(12, 10, 2)
    agreed = dask_nmf.scan(V, 2, restarts=2, **FEW).consensus(2)
    ax: Any = dask_nmf.plot_map(agreed, 0, (3, 4), ax=_axes())
    (image,) = ax.get_images()
    assert np.array_equal(image.get_array(), agreed.W[:, 0].compute().reshape(3, 4))


def test_columns_are_called_what_V_called_them() -> None:
    xarray = pytest.importorskip("xarray")
    coords = {"word": ["sea", "sun", "sky"]}
    V = xarray.DataArray(np.outer([1.0, 2], [4.0, 0, 5]), dims=("text", "word"), coords=coords)
    result = dask_nmf.factorize(V, 1, feature_dim="word", **FEW)
    ax = dask_nmf.plot_component(result, 0)
    assert [label.get_text() for label in ax.get_yticklabels()][:2] == ["sky", "sea"]


def test_a_map_of_a_cube_whose_rows_go_block_by_block() -> None:
    xarray = pytest.importorskip("xarray")
    V = low_rank(48, 10, 2, noise=0.1).reshape(6, 8, 10)
    cube = xarray.DataArray(da.from_array(V, chunks=(3, 4, 10)), dims=("y", "x", "band"))
    result = dask_nmf.factorize(cube, 2, feature_dim="band", **FEW)
    drawn = np.asarray(dask_nmf.plot_map(result, 1).images[0].get_array())
    assert np.array_equal(drawn, result.to_xarray().W[..., 1])
    with pytest.raises(ValueError, match="shape must be"):
        dask_nmf.plot_map(dask_nmf.factorize(V.reshape(48, 10), 2, **FEW), 1)
