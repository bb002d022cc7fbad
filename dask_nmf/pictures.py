"""Pictures of a result, by matplotlib: its history, its components, and where they are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from math import ceil, prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dask_nmf.labels import column_names
from dask_nmf.options import check_int
from dask_nmf.result import Result, of_squares
from dask_nmf.types import AnyArray, Array, SweepRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 1000  # more of a line, or of a side of an image, than a picture has pixels for
_LONGEST = 32  # characters of a name
_FIELDS = tuple(field.name for field in fields(SweepRecord))
_TELLING = ("rank", "loss", "solver", "init", "seed")  # what runs may differ by


class Factors(Protocol):
    """A `Result`, or a `Consensus`."""

    @property
    def W(self) -> AnyArray: ...
    @property
    def H(self) -> AnyArray: ...


def plot_history(
    results: "Result | Sequence[Result] | Mapping[str, Result]",
    x: str = "passes",
    y: str = "error",
    ax: "Axes | None" = None,
) -> "Axes":
    """How the error fell: a line for each run, against its passes over V or its seconds.

    Parameters
    ----------
    results : Result, or several, or dict of Result by label
        Without labels several are told apart by what differs in their parameters.
    x, y : str
        Fields of `SweepRecord`, such as "seconds" and "kkt". With the error comes, dashed, that of
        the hidden entries, where there are any.
    ax : matplotlib Axes, optional
        Where to draw; None: in a new figure.

    Returns
    -------
    Axes
        Logarithmic in y if that spans more than a factor of 10.

    Raises
    ------
    ImportError
        If a new figure is wanted, and matplotlib is not there.
    ValueError
        If x or y is no such field, or no run has it.

    Notes
    -----
    Cost: no read of V, nor of W.

    Examples
    --------
    >>> import numpy as np
    >>> V = np.random.default_rng(0).random((60, 20))
    >>> from dask_nmf import factorize
    >>> runs = {name: factorize(V, 3, solver=name, tol=0.1) for name in ("auto", "mu")}
    >>> ax = plot_history(runs, x="seconds")
    >>> ax.get_xlabel()
    'seconds'
    """
    for axis, value in (("x", x), ("y", y)):
        if value not in _FIELDS:
            raise ValueError(f"{axis} must be one of {', '.join(_FIELDS)}, got {value!r}")
    named = _named(results)
    lines = []  # colour, style, label, points
    for j, (label, result) in enumerate(named.items()):
        styles = {y: (".-", label)}
        if y == "error":
            styles["held_out"] = (".--", f"{label}, hidden entries")
        for field, (style, text) in styles.items():
            at = [(getattr(one, x), getattr(one, field)) for one in result.history]
            if known := [point for point in at if None not in point]:
                lines.append((f"C{j % 10}", style, text, known))
    if not lines:
        raise ValueError(f"y must be what these runs have, and they have no {y}")
    ax = axes(ax)
    drawn = [
        ax.plot(*zip(*points, strict=True), style, color=colour)[0]
        for colour, style, _, points in lines
    ]
    heights = [height for *_, points in lines for _, height in points]
    if min(heights) > 0 and max(heights) > 10 * min(heights):
        ax.set_yscale("log")
    ax.set(xlabel=_AXES.get(x, x), ylabel=error_of(named.values()) if y == "error" else y)
    if x != "sweep":
        ax.set_xlim(left=0)
    if len(lines) > 1:
        labels = [label for _, _, label, _ in lines]
        for name in ax.legend(drawn, labels, frameon=False).get_texts():
            name.set_parse_math(False)
    return ax


def plot_component(
    result: Factors,
    component: int,
    *,
    names: "Sequence[str] | Sequence[float] | None" = None,
    shape: tuple[int, int] | None = None,
    top: int = 10,
    ax: "Axes | None" = None,
) -> "Axes":
    """One component, a row of H: as a line, as bars of its largest columns, or as an image.

    Parameters
    ----------
    result : Result or Consensus
    component : int
    names : sequence of n str or n numbers, optional
        Of the columns of V. Words, or genes: bars of the `top` largest, with their names. Numbers,
        such as wavelengths: the line is drawn over them. None: the coordinate that V had, or the
        genes of AnnData.
    shape : (int, int), optional
        Rows and columns of the image that the columns of V are the pixels of.
    top : int
        Bars, at most.
    ax : matplotlib Axes, optional
        Where to draw; None: in a new figure.

    Returns
    -------
    Axes

    Raises
    ------
    ImportError
        If a new figure is wanted, and matplotlib is not there.
    IndexError, ValueError
        If there is no such component, or `names` or `shape` are not those of V's columns.

    Notes
    -----
    Of more than 1000 columns neighbours are drawn as one, the largest of them; of an image with
    more than 1000 pixels on a side each second one, or third, and so on. Cost: no read of V or W.

    Examples
    --------
    >>> import numpy as np
    >>> from dask_nmf import factorize
    >>> result = factorize(np.outer([1.0, 2], [4.0, 0, 5]), rank=1)
    >>> ax = plot_component(result, 0, names=["sea", "sun", "sky"], top=2)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['sky', 'sea']
    """
    found = np.asarray(result.H[_component(result, component)])
    n = len(found)
    if names is not None and shape is not None:
        raise ValueError("names and shape cannot both be given: bars, or an image")
    if names is None and shape is None:
        names = column_names(getattr(result, "labels", None))
    if names is not None and np.shape(names) != (n,):
        raise ValueError(f"names must be {n}, one for each column of V, got {np.shape(names)}")
    top = check_int("top", top, 1)
    if shape is not None:
        check_shape("shape", shape, n, "columns")
    ax = axes(ax)
    if shape is not None:
        _draw_image(ax, found, shape)
    elif names is not None and not np.issubdtype(np.asarray(names).dtype, np.number):
        order = largest(found, top)
        ax.barh(range(len(order)), found[order], color=f"C{component % 10}")
        labels = [shortened(str(names[i])) for i in order]
        ax.set_yticks(range(len(order)), labels, parse_math=False)
        ax.invert_yaxis()
        ax.set_xlabel("weight in H")
    else:
        columns, heights = thinned(found)
        place = columns if names is None else np.asarray(names)[columns]
        ax.plot(place, heights, color=f"C{component % 10}")
        ax.set_ylim(bottom=0)
        ax.margins(x=0)
        ax.set(xlabel="column of V" if names is None else "", ylabel="weight in H")
    ax.set_title(f"component {component}")
    return ax


def plot_map(
    result: Factors, component: int, shape: tuple[int, int], ax: "Axes | None" = None
) -> "Axes":
    """Where a component is: its column of W as an image, up to its 99.5 percentile.

    Parameters
    ----------
    result : Result or Consensus
    component : int
    shape : (int, int)
        Rows and columns of the image that the rows of V are the pixels of, line by line.
    ax : matplotlib Axes, optional
        Where to draw; None: in a new figure.

    Returns
    -------
    Axes
        Its image is ``ax.images[0]``, for a colorbar.

    Raises
    ------
    ImportError
        If a new figure is wanted, and matplotlib is not there.
    IndexError, ValueError
        If there is no such component, or `shape` is not that of V's rows.

    Notes
    -----
    Of an image with more than 1000 pixels on a side each second one is drawn, or third, and so on.
    Cost: one read of W, chunk by chunk; what stays in memory is the picture. (Of a `Consensus` it
    is a pass over V, unless its W has been persisted.)

    Examples
    --------
    >>> import numpy as np
    >>> from dask_nmf import factorize
    >>> result = factorize(np.outer(range(12), [4.0, 5]), rank=1)
    >>> plot_map(result, 0, (3, 4)).images[0].get_array().shape
    (3, 4)
    """
    j = _component(result, component)
    check_shape("shape", shape, result.W.shape[0], "rows")
    ax = axes(ax)
    _draw_image(ax, result.W[:, j], shape, cmap="viridis")
    ax.set_title(f"component {component}")
    return ax


def plot_scatter(
    result: Factors, first: int, second: int, most: int = 5000, ax: "Axes | None" = None
) -> "Axes":
    """Two columns of W against each other: a point for each row of V, or for some of them.

    Parameters
    ----------
    result : Result or Consensus
    first, second : int
        Components.
    most : int
        Points, at most. Of more rows each s-th is drawn, from the first on: a stride, not a random
        draw, so rows that come in a period of s would be seen one-sidedly.
    ax : matplotlib Axes, optional
        Where to draw; None: in a new figure.

    Returns
    -------
    Axes

    Raises
    ------
    ImportError
        If a new figure is wanted, and matplotlib is not there.
    IndexError, ValueError
        If there is no such component, or `most` is not positive.

    Notes
    -----
    Cost: no read of V, and of W its two columns, chunk by chunk.
    W is never in memory as a whole: it is read once, chunk by chunk, of which the rows drawn stay.

    Examples
    --------
    >>> import numpy as np
    >>> from dask_nmf import factorize
    >>> result = factorize(np.random.default_rng(0).random((60, 9)), rank=2, tol=0.1)
    >>> len(plot_scatter(result, 0, 1, most=25).collections[0].get_offsets())
    20
    """
    pair = [_component(result, j) for j in (first, second)]
    stride = max(1, ceil(result.W.shape[0] / check_int("most", most, 1)))
    ax = axes(ax)
    points = np.asarray(result.W[::stride][:, pair])
    ax.scatter(points[:, 0], points[:, 1], s=6, alpha=0.4, linewidths=0, rasterized=True)
    ax.set(xlabel=f"component {first} in W", ylabel=f"component {second} in W")
    return ax


# ------------------------------------------------------------------------- shared with plots.py
_AXES = {"passes": "passes over V"}


def axes(ax: "Axes | None") -> Any:
    """The axes to draw on; if none are given, those of a new figure of pyplot, which shows it."""
    if ax is not None:
        return ax
    need_matplotlib()
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def need_matplotlib() -> None:
    """An ImportError that says what to install, if it is not there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "dask_nmf[plots]"') from error


def thinned(values: Array) -> tuple[Array, Array]:
    """Of lines (..., n) at most 1000 points: where they are, and the largest from there on."""
    n = values.shape[-1]
    columns = np.unique(np.linspace(0, n, min(n, _POINTS), endpoint=False, dtype=int))
    return columns, np.maximum.reduceat(values, columns, axis=-1)


def largest(values: Array, most: int) -> Array:
    """Where the largest are, the largest first; zeros are none."""
    order = np.argsort(-values, kind="stable")[:most]
    return np.asarray(order[values[order] > 0])


def shortened(name: str) -> str:
    """A name as it fits beside a bar."""
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def check_shape(name: str, shape: Any, size: int, of: str) -> None:
    """Whether an image of that shape has a pixel for each row, or column, of V."""
    if np.shape(shape) != (2,) or prod(check_int(name, side, 1) for side in shape) != size:
        raise ValueError(
            f"{name} must be two sides whose product is {size}, the {of} of V, got {shape!r}"
        )


def error_of(results: Iterable[Result]) -> str:
    """What their errors are, for an axis."""
    squares = {of_squares(result) for result in results}
    told = {True: "||V - W H|| / ||V||", False: "divergence / that of V's mean"}
    return told[squares.pop()] if len(squares) == 1 else "error"


# --------------------------------------------------------------------------------------- pieces
def _named(results: Any) -> dict[str, Result]:
    """The results by label."""
    if isinstance(results, Result):
        return {"error": results}
    if isinstance(results, Mapping):
        return {str(label): result for label, result in results.items()}
    values = [[result.parameters.get(name) for name in _TELLING] for result in results]
    told = [name for name, *found in zip(_TELLING, *values, strict=True) if len({*found}) > 1]
    labels = [", ".join(f"{x} {result.parameters.get(x)}" for x in told) for result in results]
    if len({*labels}) < len(labels):
        labels = [f"run {i}" for i in range(len(labels))]
    return dict(zip(labels, results, strict=True))


def _component(result: Factors, component: Any) -> int:
    k = len(result.H)
    if not 0 <= (j := check_int("component", component, 0)) < k:
        raise IndexError(f"component must be from 0 to {k - 1}, got {component}")
    return j


def _draw_image(ax: Any, pixels: AnyArray, shape: tuple[int, int], cmap: str = "magma") -> None:
    steps = [slice(None, None, ceil(side / _POINTS)) for side in shape]
    image = np.asarray(pixels.reshape(shape)[tuple(steps)])
    ax.imshow(image, vmin=0, vmax=np.percentile(image, 99.5) or 1, cmap=cmap, interpolation="none")
    ax.set_axis_off()
