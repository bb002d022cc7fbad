"""`factorize`: one run, or the best of several that share their reads of V."""

from functools import partial
from typing import Any

from dask_nmf.io import open_weighted
from dask_nmf.losses import Loss
from dask_nmf.matrix import Missing
from dask_nmf.newton import AnySolver
from dask_nmf.options import check_int
from dask_nmf.result import Result, last_loss
from dask_nmf.running import run, warn_of_budget
from dask_nmf.streams import in_streams
from dask_nmf.types import Callback


def factorize(
    V: Any,
    rank: int,
    *,
    out: Any = None,
    loss: str | float | Loss = "frobenius",
    solver: str | AnySolver = "auto",
    init: Any = "random",
    weights: Any = None,
    alpha_W: float = 0.0,
    alpha_H: float | str = "same",
    l1_ratio: float = 0.0,
    fixed_H: Any = None,
    sum_to_one: bool = False,
    perturb: float = 0.0,
    held_out: float = 0.0,
    tol: float = 5e-3,
    max_passes: int = 200,
    max_seconds: float | None = None,
    seed: int = 0,
    restarts: int = 1,
    memory: int | str | None = None,
    block_rows: int | None = None,
    missing: Missing = "error",
    layer: str | None = None,
    feature_dim: Any = None,
    overwrite: bool = False,
    checkpoint_every: int | None = None,
    callback: Callback | None = None,
) -> Result:
    """Find non-negative W (m, k) and H (k, n) with V ≈ W @ H, reading V once per sweep.

    Runs on the active dask scheduler: threads if there is none, the cluster of a
    ``distributed.Client`` if there is one.

    Parameters
    ----------
    V : zarr array, path or URL of one, dask array or numpy array; (m, n)
        Finite and non-negative. Any 2-D chunks; a block of whole rows must fit in memory. Or
        sparse: a zarr group with a csr_matrix or csc_matrix as anndata writes it, a matrix of
        scipy.sparse, or a dask array with blocks of scipy.sparse or of the package sparse. Or with
        names: an xarray.DataArray of any number of dimensions, an AnnData object, or the path, URL
        or zarr group of its store, of which the rows are the cells.
    rank : int
        k, the number of components.
    out : path, URL or zarr group, optional
        Where W, H and the history go, as a zarr group; W lies there between sweeps, too. The same
        call made again returns what is finished there, and goes on with what is not. None keeps W
        in the workers' memory, and nothing for a next call.
    loss : "frobenius", "kullback-leibler", "itakura-saito" or float
        A beta-divergence; as a number its beta, of which those are 2, 1 and 0. With beta <= 0 V
        must not have zeros.
    solver : "auto", "hals", "mu", "newton" or an object
        "auto" needs the fewest reads, mostly 3 to 10: it is ``LookAhead()`` for Frobenius,
        ``Newton()`` for beta from 1 to 2 and for weighted entries, else ``MU(inner=10)``. "hals" is
        for Frobenius only.
    init : "random", "nndsvd", "nndsvda", "nndsvdar", (W0, H0) or an object
        The start. The NNDSVD family costs 3 passes more.
    weights : (m, n) array, path or URL as V, optional
        Of each entry in the loss. Where it is 0, or False, the entry has no influence whatever, and
        may be anything; its error is `SweepRecord.held_out`. A masked array V brings its own.
    alpha_W, alpha_H, l1_ratio : float
        Penalties on W and H, as in scikit-learn: the loss (of Frobenius half the square) gets
        n alpha_W (l1_ratio ||W||_1 + (1 - l1_ratio) / 2 ||W||^2), and m alpha_H likewise for H.
        alpha_H="same" is alpha_W.
    fixed_H : (r, n) array, path or URL, optional
        The first r <= rank rows of H, which stay as they are: known spectra, programs or topics,
        beside which others are looked for. If all are known, each row of W is solved for them, in
        one pass after the first (for other losses some more, where V is streamed by columns).
    sum_to_one : bool
        Whether each row of W sums to one, as shares of materials do. For Frobenius without weights;
        then W's half-step is solved under this constraint, whatever the solver.
    perturb : float
        Noise on each entry of V, drawn from the seed where it is read: V_ij (1 + perturb u), u
        uniform between -1 and 1. Components that are there survive it, from seed to seed.
    held_out : float
        Share of the entries, drawn from the seed, that the run does not see; their error is
        `SweepRecord.held_out`: cross-validation, for a rank. As with weights, each sweep then takes
        several times the arithmetic.
    tol : float
        Stop when the KKT residual (`SweepRecord.kkt`) is below this, or when two sweeps have gained
        no more than rounding; 0 never does.
    max_passes : int
        At most this many reads of V, the first pass and the start's included; one more where a
        very close fit has to be measured (see Notes).
    max_seconds : float, optional
        Stop after the sweep that ends later than this.
    seed : int
        The start depends on (seed, shape, rank) only.
    restarts : int
        Runs, with the seeds `seed`, `seed` + 1 and so on, that share each read of V: the best is
        returned. Their results lie below `out`, as `scan` writes them.
    memory : int or str, optional
        Limit in bytes, or such as "2GiB", for each worker process: blocks are made to fit, and
        what is to spare keeps blocks of V. None: 60 % of what the workers, the container or the
        machine allow.
    block_rows : int, optional
        Rows per block; chosen by size (64 MiB) and `memory` when None.
    missing : "error", "zero" or "nan"
        What is not there: "zero" takes a chunk that V's store does not hold for zeros; "nan" takes
        entries that are NaN for entries of weight 0, which are an error else.
    layer : str, optional
        Of AnnData: this layer rather than X.
    feature_dim : str, optional
        Of a DataArray, the dimension whose entries are the columns; each row is a place in all
        others. None: the last of two. With it V, and weights, may be paths of arrays in a store
        that xarray opens.
    overwrite : bool
        Replace a finished result at `out`, and drop the unfinished run of another call there.
    checkpoint_every : int, optional
        Sweeps from one commit to the next: what a killed run has to make again. None: each sweep,
        or less often where commits would take more than 5 % of the time.
    callback : callable, optional
        Called with each sweep's record; the run stops when it returns True. (``tqdm.update``
        returns True whenever it redraws: do not return its answer.)

    Returns
    -------
    Result
        The one with the lowest loss, of several restarts.

    Raises
    ------
    TypeError, ValueError
        Before V is read, if an argument is out of range, or V is not 2-D, empty, or not real; or
        if `memory` is too small. In the first pass, if V has a NaN, infinite or negative entry.
        In any pass, if a chunk of V is missing.
    FileExistsError
        If `out` holds a result or an unfinished run of another call, or of a V that has changed
        since (without `overwrite`); or anything that is not a result.
    RuntimeError
        If the active scheduler cannot run it.
    RunStopped
        If workers, scheduler or storage fail (`ClusterLost`, `PoisonBlock`, `StorageFailed`), or
        another call has taken over (`RunTakenOver`): the same call goes on from the last commit.

    Warns
    -----
    ConvergenceWarning
        If the budget ended the run.

    Notes
    -----
    Cost: one pass over V to check it, the start's, then one per sweep. With "auto" the first pass
    sketches V, too, and between passes the factors are improved on a model of it; the errors in
    the history are those of V, and never rise: a pass that leads to a worse one is dropped. A fit
    so close that its error cannot be told from the sums of a pass costs one more pass: once, or in
    each sweep where `rank` is above V's own.
    Memory per process: see ``geometry.Geometry.peak_bytes``.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> V = rng.random((60, 3)) @ rng.random((3, 20))
    >>> result = factorize(V, rank=3, tol=0, max_passes=60)
    >>> result.W.shape, result.H.shape
    ((60, 3), (3, 20))
    >>> bool(result.error < 0.01)
    True
    """
    told: dict[str, Any] = {
        "memory": memory,
        "overwrite": overwrite,
        "checkpoint_every": checkpoint_every,
        "loss": loss,
        "solver": solver,
        "init": init,
        "alpha_W": alpha_W,
        "alpha_H": alpha_H,
        "l1_ratio": l1_ratio,
        "fixed_H": fixed_H,
        "sum_to_one": sum_to_one,
        "perturb": perturb,
        "held_out": held_out,
        "tol": tol,
        "max_passes": max_passes,
        "max_seconds": max_seconds,
        "block_rows": block_rows,
    }
    if check_int("restarts", restarts, 1) == 1:
        more = {"weights": weights, "missing": missing, "seed": seed, "callback": callback}
        more |= {"layer": layer, "feature_dim": feature_dim}
        return run(V, rank, out=out, **more, **told)
    if callback is not None:
        raise ValueError("callback sees the sweeps of one run: it needs restarts=1")
    seeds = range(check_int("seed", seed, 0), seed + restarts)
    opened = open_weighted(V, missing, weights, layer, feature_dim)
    found = in_streams(
        partial(run, weights=None, missing=missing), opened, [rank], seeds, out, told
    )
    best = min(found[rank], key=last_loss)
    warn_of_budget(best, 3)
    return best
