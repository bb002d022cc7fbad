"""Pictures of a scan, by matplotlib: what its table, its consensus and its components say."""

from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster.hierarchy import average, leaves_list
from scipy.spatial.distance import squareform

from dask_nmf.evidence import aligned, cophenetic, together
from dask_nmf.pictures import axes, error_of, thinned
from dask_nmf.scans import Scan

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_ranks(scan: Scan, ax: "Axes | None" = None) -> "Axes":
    """Error (left) and stability of the components (right) against the rank.

    A point for each run and a line through the best ones; dashed, the least error of hidden
    entries, where there are any. On the second axis the mean and the least stability.

    Parameters
    ----------
    scan : Scan
    ax : matplotlib Axes, optional
        Where to draw; None: in a new figure.

    Returns
    -------
    Axes
        Of the errors.

    Raises
    ------
    ImportError
        If a new figure is wanted, and matplotlib is not there.

    Notes
    -----
    Cost: no read of V, nor of W.

    Examples
    --------
    >>> import dask_nmf
    >>> from matplotlib.figure import Figure
    >>> V = np.kron(np.eye(2), np.ones((20, 5))) + 0.1
    >>> found = dask_nmf.scan(V, [1, 2], restarts=2)
    >>> ax = plot_ranks(found, ax=Figure().subplots())
    >>> ax.get_xlabel()
    'rank'
    """
    ax = axes(ax)
    rows = sorted(scan.rows(), key=lambda row: int(row["rank"]))
    ranks = [row["rank"] for row in rows]
    runs = [(rank, result.error) for rank in ranks for result in scan.runs(rank)]
    best = [row["error"] for row in rows]
    lines = ax.plot(ranks, best, ".-", color="C0", label="error, best run")
    lines += ax.plot(*zip(*runs, strict=True), ".", color="C0", alpha=0.5, label="error, each run")
    if any(row["held_out"] is not None for row in rows):
        hidden = [row["held_out"] for row in rows]
        lines += ax.plot(ranks, hidden, ".--", color="C0", label="error, hidden entries")
    ax.set(xlabel="rank", xlim=(ranks[0] - 0.5, ranks[-1] + 0.5))
    ax.locator_params(axis="x", integer=True, min_n_ticks=1)
    ax.set_ylabel(error_of(result for rank in scan.ranks for result in scan.runs(rank)), color="C0")
    if all("stability" in row for row in rows):
        right = ax.twinx()
        for name, style, label in (("stability", ".-", "mean"), ("stability_least", ".:", "least")):
            found = [row[name] for row in rows]
            lines += right.plot(ranks, found, style, color="C1", label=f"stability, {label}")
        right.set_ylim(min(0.0, *(row["stability_least"] for row in rows)) - 0.05, 1.05)
        right.set_ylabel("stability of components: silhouette", color="C1")
    names = [str(line.get_label()) for line in lines]
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 2, "frameon": False}
    ax.legend(lines, names, **above)  # inside, it would hide a line at some ranks
    return ax


def plot_consensus(scan: Scan, rank: int, ax: "Axes | None" = None) -> "Axes":
    """How often two columns of V have the same largest component: blocks where the runs agree.

    Parameters
    ----------
    scan : Scan
    rank : int
    ax : matplotlib Axes, optional
        Where to draw; None: in a new figure.

    Returns
    -------
    Axes

    Raises
    ------
    ImportError
        If a new figure is wanted, and matplotlib is not there.

    Notes
    -----
    Cost: no read of V, nor of W.
    Of more than 1000 columns so many are drawn, by chance. Their order is that of an average
    linkage tree.
    Source: Brunet et al. 2004.

    Examples
    --------
    >>> import dask_nmf
    >>> from matplotlib.figure import Figure
    >>> V = np.kron(np.eye(2), np.ones((20, 5))) + 0.1
    >>> found = dask_nmf.scan(V, [1, 2], restarts=2)
    >>> ax = plot_consensus(found, 2, ax=Figure().subplots())
    >>> ax.get_title()[:14]
    'rank 2, 2 runs'
    """
    ax = axes(ax)
    Hs = [np.asarray(result.H) for result in scan.runs(rank)]
    shares = together(Hs)
    agreement = cophenetic(shares)
    if len(shares) > 1:
        order = leaves_list(average(squareform(1 - shares, checks=False)))
        shares = shares[np.ix_(order, order)]
    image = ax.imshow(shares, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="share of the runs that join two columns")
    ax.set(xlabel="columns of V, ordered", ylabel="columns of V, ordered", xticks=[], yticks=[])
    ax.set_title(f"rank {rank}, {len(Hs)} runs: cophenetic correlation {agreement:.3f}")
    return ax


def plot_components(scan: Scan, rank: int, ax: "Axes | None" = None) -> "Axes":
    """Each component as a line, one above the other: the median of the runs, and 10 to 90 %.

    Parameters
    ----------
    scan : Scan
    rank : int
    ax : matplotlib Axes, optional
        Where to draw; None: in a new figure.

    Returns
    -------
    Axes

    Raises
    ------
    ImportError
        If a new figure is wanted, and matplotlib is not there.
    ValueError
        If there is one run only.

    Notes
    -----
    Cost: no read of V, nor of W.
    Components are of norm 1 in each run, in the order of the best one's, and drawn to the same
    height. Of more than 1000 columns neighbours are drawn as one: the largest of each quantile.

    Examples
    --------
    >>> import dask_nmf
    >>> from matplotlib.figure import Figure
    >>> V = np.kron(np.eye(2), np.ones((20, 5))) + 0.1
    >>> found = dask_nmf.scan(V, [1, 2], restarts=2)
    >>> ax = plot_components(found, 2, ax=Figure().subplots())
    >>> ax.get_title()[:14]
    'rank 2: median'
    """
    ax = axes(ax)
    alike = scan._of(rank)
    members = aligned(alike.components, alike.groups)
    quantiles = np.quantile(members, [0.1, 0.5, 0.9], axis=0)  # (3, k, n)
    n = members.shape[2]
    columns, quantiles = thinned(quantiles)
    heights = quantiles[2].max(axis=1)
    width = 1.0 if len(columns) == n else 0.5
    names = []
    for j, stability in enumerate(scan.stability(rank)):
        low, median, high = quantiles[:, j] / (heights[j] or 1) * 0.9 + (rank - 1 - j)
        ax.axhline(rank - 1 - j, color="0.85", linewidth=0.8, zorder=0)
        ax.fill_between(columns, low, high, color=f"C{j % 10}", alpha=0.4, linewidth=0)
        ax.plot(columns, median, color=f"C{j % 10}", linewidth=width)
        names.append(f"{j}  ({stability:.2f})")
    ax.set(xlim=(-0.5, n - 0.5), xlabel="column of V", ylabel="component (its stability)")
    ax.set_yticks(range(rank - 1, -1, -1), names)
    ax.set_title(f"rank {rank}: median of {len(members)} runs, and 10 to 90 %")
    return ax
