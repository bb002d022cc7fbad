"""The report of a result or a scan: one page of HTML that needs nothing beside it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import dask
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from dask_nmf.labels import column_names
from dask_nmf.pictures import (
    check_shape,
    largest,
    need_matplotlib,
    plot_component,
    plot_history,
    plot_map,
    plot_scatter,
)
from dask_nmf.plots import plot_components, plot_consensus, plot_ranks
from dask_nmf.result import Result
from dask_nmf.scanning import open_either
from dask_nmf.scans import Scan
from dask_nmf.tables import as_html, ends, facts_as_html

_COMPONENTS = 24  # are drawn, at most
_SWEEPS = 200  # rows of the history, at most
_INK = "#010203"  # in pictures: becomes the colour of the page's text, light or dark
_LOOK = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dask_nmf",  # the same picture has the same bytes
    "font.family": "sans-serif",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    # Seen on white and on black.
    "axes.prop_cycle": "cycler('color', ['3b82f6', 'f97316', '10b981', 'e0527a', '8b5cf6', "
    "'b08d2f', '06b6d4', 'd65bd1', '7c8aa0', '84a30e'])",
    **{f"{part}color": _INK for part in ("text.", "axes.label", "axes.edge", "xtick.", "ytick.")},
}


@dataclass(frozen=True)
class Told:
    """What only the reader knows of V, and would see; as for `report`."""

    names: Sequence[str] | Sequence[float] | None = None
    column_shape: tuple[int, int] | None = None
    row_shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page.

    notes : sentences. tables : HTML. pictures : caption and SVG of each. wide : whether they are.
    """

    title: str
    notes: Sequence[str] = ()
    tables: Sequence[str] = ()
    pictures: Sequence[tuple[str, str]] = ()
    wide: bool = False


def report(
    found: "Result | Scan | Any",
    path: "str | os.PathLike[str]",
    *,
    names: "Sequence[str] | Sequence[float] | None" = None,
    column_shape: tuple[int, int] | None = None,
    row_shape: tuple[int, int] | None = None,
    rank: int | None = None,
    title: str | None = None,
) -> Path:
    """Write a page with the numbers and pictures of a result, or of a scan, that works offline.

    Of a result: its parameters, status, history, components and where they are, and the plan. Of a
    scan: the evidence for each rank, what it suggests and why, and the best result of one rank.

    Parameters
    ----------
    found : Result, Scan, or the place of one
    path : str or path
        An .html file; one that is there is replaced.
    names, column_shape
        Of the columns of V, as for `plot_component`; without both, components are drawn as lines.
    row_shape : (int, int), optional
        As `shape` for `plot_map`: the maps of the columns of W.
    rank : int, optional
        Which one of a scan is shown. None: as suggested; if none is, the last one whose components
        are stable, or the first.
    title : str, optional

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    FileNotFoundError
        If there is no result at `found`, or no folder to write in.
    ImportError
        If matplotlib is not there.
    ValueError, TypeError
        If an argument does not fit; nothing is written then.

    Notes
    -----
    Cost: no read of V. W is read once for the sums of its columns, once for each map and once for
    the scatter, chunk by chunk; it is never in memory as a whole. The 24 components with the
    largest shares of W H are drawn.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from dask_nmf import factorize
    >>> V = np.random.default_rng(0).random((60, 20))
    >>> path = report(factorize(V, 3), tempfile.mkdtemp() + "/report.html")
    >>> path.read_text().startswith("<!doctype html>")
    True
    """
    need_matplotlib()
    path = Path(path)
    if path.suffix != ".html" or path.is_dir():
        raise ValueError(f"path must be a file that ends in .html, got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {str(path.parent)!r}: make it first")
    if not isinstance(found, (Result, Scan)):
        found = open_either(found)
    told = Told(names, column_shape, row_shape)
    if isinstance(found, Scan):
        if rank is not None and rank not in found.ranks:
            raise ValueError(f"rank must be one of {list(found.ranks)}, got {rank!r}")
        _check(told, found.best(found.ranks[0]))
        sections = _of_scan(found, rank, told)
    else:
        if rank is not None:
            raise ValueError("rank chooses from a scan, and this is a single result: leave it out")
        _check(told, found)
        sections = _of_result(found, told)
    pages = Environment(
        loader=PackageLoader("dask_nmf", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = pages.get_template("report.html").render(
        title=title or ("A scan of ranks" if isinstance(found, Scan) else "A factorization"),
        sections=sections,
        version=version("dask_nmf"),
    )
    path.write_text(page, encoding="utf-8")
    return path


def _check(told: Told, result: Result) -> None:
    m, n = result.parameters["shape"]
    if told.names is not None and len(told.names) != n:
        raise ValueError(f"names must be {n}, one for each column of V, got {len(told.names)}")
    if told.names is not None and told.column_shape is not None:
        raise ValueError("names and column_shape cannot both be given: bars, or images")
    for name, shape, size, of in (
        ("column_shape", told.column_shape, n, "columns"),
        ("row_shape", told.row_shape, m, "rows"),
    ):
        if shape is not None:
            check_shape(name, shape, size, of)


# ------------------------------------------------------------------------------------ sections
def _of_result(result: Result, told: Told, title: str = "Result") -> list[Section]:
    history = [asdict(record) for record in result.history]
    parts = [
        Section(title, tables=[facts_as_html(result.rows())]),
        Section(
            "History",
            pictures=[
                _picture("against the reads of V", plot_history, result),
                _picture("against time", plot_history, result, x="seconds"),
                _picture("how far from stationary", plot_history, result, y="kkt"),
            ],
            tables=[as_html(ends(history, _SWEEPS))],
        ),
        *_components(result, told),
    ]
    if result.plan is not None:
        parts.append(Section("Plan", result.plan.advice, [facts_as_html(result.plan.rows())]))
    return [*parts, Section("Parameters", tables=[facts_as_html(result.parameters.items())])]


def _components(result: Result, told: Told) -> list[Section]:
    """The components, those first of which W H has most, and where they are."""
    W_total, H_total = dask.compute(result.W.sum(axis=0, dtype=float), result.H.sum(axis=1))
    shares = W_total * H_total / (W_total @ H_total or 1)
    order = [int(j) for j in np.argsort(-shares, kind="stable")]
    called, rows = told.names, []
    if called is None and told.column_shape is None:
        called = column_names(result.labels)
    for j in order:
        columns = largest(np.asarray(result.H[j]), 10)
        names = [str(i if called is None else called[i]) for i in columns]
        rows.append(
            {"component": j, "share": f"{shares[j]:.1%}", "largest columns": ", ".join(names)}
        )
    shown = order[:_COMPONENTS]
    notes = ["Share: of the sum of W H. They are drawn in that order."]
    if len(shown) < len(order):
        notes.append(f"The first {len(shown)} of {len(order)} are drawn.")
    drawn_as: dict[str, Any] = {"names": called, "shape": told.column_shape}
    H = [_picture(f"{shares[j]:.1%} of W H", plot_component, result, j, **drawn_as) for j in shown]
    parts = [Section("Components", notes, [as_html(rows)], H)]
    maps = []
    if told.row_shape is not None:
        maps = [_picture("", plot_map, result, j, told.row_shape) for j in shown]
    if len(order) > 1:
        caption = "rows of V by the two largest components"
        maps.append(_picture(caption, plot_scatter, result, *order[:2]))
    return [*parts, Section("Where they are", pictures=maps)] if maps else parts


def _of_scan(scan: Scan, rank: int | None, told: Told) -> list[Section]:
    try:
        suggestion = scan.suggest()
        notes, chosen = [f"Verdict: {suggestion.verdict}", *suggestion.reasons], suggestion.rank
        chosen = chosen or suggestion.votes["stability"]
    except ValueError as why:  # one rank, or one run of each
        notes, chosen = [f"No rank is suggested: {why}."], None
    chosen = rank or chosen or scan.ranks[0]
    runs = scan.runs(chosen)
    pictures = [_picture("for each rank", plot_ranks, scan, wide=True)]
    if len(runs) > 1:
        pictures += [
            _picture("columns that runs join", plot_consensus, scan, chosen, wide=True),
            _picture("components of all runs", plot_components, scan, chosen, wide=True),
            _picture("each run", plot_history, runs[:10], wide=True),
        ]
    return [
        Section("Which rank", notes, [as_html(scan.rows())], pictures, wide=True),
        *_of_result(runs[0], told, f"Rank {chosen}, the best of {len(runs)} runs"),
    ]


# ------------------------------------------------------------------------------------ pictures
def _picture(
    caption: str, draw: Callable[..., object], *told: Any, wide: bool = False, **options: Any
) -> tuple[str, str]:
    """The caption, and what is drawn as SVG that takes the colours of the page."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_LOOK):
        figure = Figure(figsize=(5.6, 4.2) if wide else (3.4, 2.5), layout="constrained")
        draw(*told, ax=figure.subplots(), **options)
        file = StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", dpi=144, metadata=nothing)
    svg = file.getvalue()
    return caption, svg[svg.index("<svg") :].replace(_INK, "currentColor")
