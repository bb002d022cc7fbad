"""Many runs over one V, ranks x restarts, that share each read of it."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from dask_nmf.driver import factorize
from dask_nmf.io import open_weighted
from dask_nmf.matrix import Missing
from dask_nmf.options import check_int
from dask_nmf.output import find_group, open_result, scan_places
from dask_nmf.result import Result
from dask_nmf.scans import Scan
from dask_nmf.streams import in_streams
from dask_nmf.transforming import transform

_REFIT = ("loss", "alpha_W", "l1_ratio", "sum_to_one")
_OURS = {"rank", "seed", "out", "callback", "memory", "weights", "missing", "layer", "feature_dim"}


def scan(
    V: Any,
    ranks: int | Iterable[int],
    *,
    restarts: int = 10,
    seed: int = 0,
    out: Any = None,
    memory: int | str | None = None,
    weights: Any = None,
    missing: Missing = "error",
    layer: str | None = None,
    feature_dim: Any = None,
    **options: Any,
) -> Scan:
    """Factor V at several ranks, from several starts each, with one read of V per sweep for all.

    Each run is what `factorize` with that rank and seed gives, to the bit: it only shares its reads
    with the others, and leaves the stream when it has converged.

    Parameters
    ----------
    V, weights, missing, layer, feature_dim
        As for `factorize`.
    ranks : int or iterable of int
    restarts : int
        Runs of each rank, with the seeds `seed`, `seed` + 1 and so on.
    out : path, URL or zarr group, optional
        Where the results go: each run's at "rank-005/seed-0" and so on, as `factorize` writes them.
        The same call made again returns what is finished, and goes on with what is not.
    memory : int or str, optional
        Limit for each worker process. Runs that do not fit beside each other make one stream after
        another.
    **options
        As for `factorize`: loss, solver, init, alpha_W, tol, max_passes and so on.

    Returns
    -------
    Scan

    Raises
    ------
    TypeError, ValueError, FileExistsError, RuntimeError, RunStopped
        As `factorize` does, for any of the runs; what the others have committed stays.

    Notes
    -----
    Cost: as many passes as the longest of the runs in a stream; products and steps of each run.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> V = rng.random((60, 3)) @ rng.random((3, 20))
    >>> found = scan(V, ranks=(2, 3), restarts=2, max_passes=40)
    >>> [len(results) for results in found.results.values()]
    [2, 2]
    >>> found.best(3).error < found.best(2).error
    True
    """
    if clash := sorted(_OURS & set(options)):
        raise TypeError(f"scan does not take {', '.join(clash)}: see ranks=, restarts=, seed=")
    seed = check_int("seed", seed, 0)
    seeds = range(seed, seed + check_int("restarts", restarts, 1))
    opened = open_weighted(V, missing, weights, layer, feature_dim)
    told = {"memory": memory, **options}
    found = in_streams(factorize, opened, _ranks(ranks), seeds, out, told)
    alike = {name: options[name] for name in _REFIT if name in options}
    refit = partial(transform, opened, memory=memory, **alike)
    return Scan({rank: tuple(results) for rank, results in found.items()}, refit)


def open_scan(out: Any) -> Scan:
    """The results of a scan, or of `factorize` with restarts, at `out`: path, URL or zarr group.

    Raises
    ------
    FileNotFoundError
        If there are none.
    ValueError
        If one of them has not finished: the same call again goes on with it.

    Notes
    -----
    Cost: no read of V. It has no V, so medians have no W: ``open_scan(out).consensus(k).H``.

    Examples
    --------
    >>> import tempfile
    >>> out = tempfile.mkdtemp() + "/scan.zarr"
    >>> found = scan(np.ones((6, 4)), [1], restarts=2, out=out)
    >>> open_scan(out).best(1).history == found.best(1).history
    True
    """
    group = find_group(out)
    places = {} if group is None else scan_places(group)
    if not places:
        raise FileNotFoundError(f"there is no dask_nmf scan at {out}")
    found = {k: tuple(open_result(group[name]) for name in names) for k, names in places.items()}
    return Scan(found)


def open_either(out: Any) -> Result | Scan:
    """What is at `out`: `open_scan` of the results of several runs, `open_result` of one."""
    group = find_group(out)
    return open_scan(out) if group is not None and scan_places(group) else open_result(out)


def _ranks(ranks: Any) -> list[int]:
    if isinstance(ranks, (str, bytes)) or not isinstance(ranks, (int, np.integer, Iterable)):
        raise TypeError(f"ranks must be ints, such as range(2, 11), got {ranks!r}")
    wanted = list(ranks) if isinstance(ranks, Iterable) else [ranks]
    if not wanted:
        raise ValueError("ranks must hold at least one rank")
    checked = [check_int("ranks", k, 1) for k in wanted]
    if len(set(checked)) < len(checked):
        raise ValueError(f"ranks must all be different, got {checked}")
    return checked
