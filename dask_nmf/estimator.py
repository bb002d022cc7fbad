"""scikit-learn's face: `NMF` with its names, by `factorize`'s run.

Needs scikit-learn (``pip install "dask_nmf[sklearn]"``), which nothing else here imports.
"""

import os
import warnings
from contextlib import nullcontext
from numbers import Integral, Real
from typing import Any, ClassVar

import dask
import dask.array as da
import numpy as np
import zarr

from dask_nmf.divergences import Beta
from dask_nmf.init import ScikitRandom
from dask_nmf.io import open_matrix
from dask_nmf.losses import Loss, make_loss
from dask_nmf.matrix import Matrix
from dask_nmf.options import Rule
from dask_nmf.planner import Job, prepare
from dask_nmf.result import Result
from dask_nmf.running import carried_out
from dask_nmf.solvers import HALS, MU, LookAhead
from dask_nmf.transforming import transform
from dask_nmf.types import AnyArray, DaskArray, SweepRecord, working_dtype
from dask_nmf.watch import active_client, compute
from dask_nmf.wording import CD_LOSS, IGNORED, MU_AND_ZEROS, NOT_CONVERGED, ZEROS

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils._param_validation import Interval, StrOptions
    from sklearn.utils.validation import check_is_fitted, check_non_negative, validate_data
except ImportError as error:
    raise ImportError(
        'NMF and non_negative_factorization need scikit-learn: pip install "dask_nmf[sklearn]"'
    ) from error

_SMALL = 2**24  # bytes of a lazy X that is read once, as arrays in memory are faster
_SOLVERS: dict[str, Any] = {"cd": HALS(inner=1), "mu": MU(), "auto": LookAhead()}
_RULES: dict[str, Rule] = {"cd": "gradient", "mu": "decrease", "auto": "kkt"}


class NMF(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Non-negative matrix factorization with the names of ``sklearn.decomposition.NMF``.

    X (n_samples, n_features) is what `factorize` calls V, and `components_` is H. What goes in
    comes out: numpy or scipy.sparse X gives a numpy W; dask or zarr X, or a path of one, gives a
    dask W, and is read block by block, never whole (unless it is below 16 MiB).

    Parameters
    ----------
    n_components : int, "auto" or None
        The rank. None: n_features; so is "auto", unless W and H are given, whose rank it is then.
        For dask and zarr arrays it has to be given.
    init : {None, "random", "nndsvd", "nndsvda", "nndsvdar", "custom"}
        None is "nndsvda" (3 passes more), or "random" where n_components is above min(X.shape).
    solver : {"cd", "mu", "auto"}
        "cd" is HALS with one inner sweep, for Frobenius, and "mu" the multiplicative update: both
        with the updates of scikit-learn's. "auto" is that of `factorize`, with the fewest reads.
    beta_loss : {"frobenius", "kullback-leibler", "itakura-saito"} or float
    tol : float
        For "cd": stop when the projected gradient (in H, each component over the norm of its
        column of W) is below tol times that of the first iteration. For "mu": when ten iterations
        lower the error by less than tol times the first one. For "auto": as for `factorize`. 0
        makes all iterations, and never warns.
    max_iter : int
        Sweeps, each one read of X; "mu" with another loss than Frobenius ends with one read more.
    random_state : int, RandomState or None
        For init="random" an int gives scikit-learn's numbers, where W has up to 2**23 entries.
    alpha_W, alpha_H, l1_ratio : float
        Penalties, as in scikit-learn and `factorize`.
    verbose : int
        Print a line for each iteration.
    shuffle : bool
        Without effect: the order of components in "cd" is fixed.
    out : path, URL or zarr group, optional
        Where `fit` keeps the factors, as `factorize` does; W is then read from there.
    memory : int or str, optional
        Limit for each worker process.

    Attributes
    ----------
    components_ : (n_components, n_features) numpy array
    n_components_, n_iter_, n_features_in_ : int
    feature_names_in_ : array of str
        If X has column names.
    reconstruction_err_ : float
        ||X - W H||; of another loss the root of twice the divergence. Without penalties.
    converged_ : bool
        Whether the run ended by `tol`, or at the limit of rounding.
    history_ : tuple of SweepRecord
        One for each read of X that improved the factors.

    Notes
    -----
    Cost: a pass over X to check it, that of the start, and one per iteration. `transform` is one
    pass: each row is solved by itself to its end, so it does not depend on the others.
    W and H are cast to X's dtype where scikit-learn raises TypeError; they and X are not written.
    An X that has negative entries is refused with init="custom", too.

    Examples
    --------
    >>> import dask.array as da
    >>> X = da.random.default_rng(0).random((60, 20), chunks=(20, 10))
    >>> model = NMF(n_components=3, solver="auto", random_state=0)
    >>> W = model.fit_transform(X)
    >>> W.chunks, model.components_.shape
    (((20, 20, 20), (3,)), (3, 20))
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None, StrOptions({"auto"})],
        "init": [StrOptions({"random", "nndsvd", "nndsvda", "nndsvdar", "custom"}), None],
        "solver": [StrOptions({"mu", "cd", "auto"})],
        "beta_loss": [StrOptions({"frobenius", "kullback-leibler", "itakura-saito"}), Real],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
        "alpha_W": [Interval(Real, 0, None, closed="left")],
        "alpha_H": [Interval(Real, 0, None, closed="left"), StrOptions({"same"})],
        "l1_ratio": [Interval(Real, 0, 1, closed="both")],
        "verbose": ["verbose"],
        "shuffle": ["boolean"],
        "out": "no_validation",  # type: ignore[dict-item]
        "memory": "no_validation",  # type: ignore[dict-item]
    }

    def __init__(
        self,
        n_components: int | str | None = "auto",
        *,
        init: str | None = None,
        solver: str = "cd",
        beta_loss: str | float = "frobenius",
        tol: float = 1e-4,
        max_iter: int = 200,
        random_state: Any = None,
        alpha_W: float = 0.0,
        alpha_H: float | str = "same",
        l1_ratio: float = 0.0,
        verbose: int = 0,
        shuffle: bool = False,
        out: Any = None,
        memory: int | str | None = None,
    ) -> None:
        self.n_components = n_components
        self.init = init
        self.solver = solver
        self.beta_loss = beta_loss
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.alpha_W = alpha_W
        self.alpha_H = alpha_H
        self.l1_ratio = l1_ratio
        self.verbose = verbose
        self.shuffle = shuffle
        self.out = out
        self.memory = memory

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X: Any, y: Any = None, *, W: Any = None, H: Any = None) -> "NMF":
        """Find `components_`; W is not kept, but in `out`.

        Parameters
        ----------
        X : (n_samples, n_features) array
            numpy, scipy.sparse, dask or zarr, or a path or URL of the latter; finite and >= 0.
        y : ignored
        W, H : (n_samples, n_components) and (n_components, n_features) arrays, optional
            The start, for init="custom".

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            Before X is read, where a parameter is out of range or W and H do not fit; in the
            first pass, where X has a NaN, infinite or negative entry.

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If `max_iter` ended the run.
        """
        self._fit(X, W, H)
        return self

    def fit_transform(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> AnyArray:
        """Find `components_`, and return W (n_samples, n_components); as for `fit`."""
        return self._fit(X, W, H)

    def transform(self, X: Any) -> AnyArray:
        """The best W (n_samples, n_components) for `components_`, each row by itself.

        For dask and zarr X it is lazy, and one pass over X when computed; what is not finite or
        negative there is an error only then.
        """
        check_is_fitted(self)
        matrix, like = self._opened(X, reset=False)
        return _as_given(self._solved(matrix, self.components_), like)

    def inverse_transform(self, X: Any) -> AnyArray:
        """X @ components_, of X (n_samples, n_components): lazy for a dask array."""
        check_is_fitted(self)
        return X @ self.components_

    @property
    def _n_features_out(self) -> int:
        return int(self.components_.shape[0])

    # ----------------------------------------------------------------------------------- the run
    def _fit(self, X: Any, W: Any, H: Any) -> AnyArray:
        self._validate_params()
        matrix, like = self._opened(X, reset=True)
        if self.init == "custom":
            W, H = _checked_start(matrix, W, H, self.n_components)
        elif W is not None or H is not None:
            warnings.warn(IGNORED, RuntimeWarning, stacklevel=3)
        self._n_components = _rank(self.n_components, matrix, H if self.init == "custom" else None)
        job = self._job(matrix, W, H)
        result = carried_out(job, self.out, callback=_printed if self.verbose else None)
        W = _as_given(result.W, like)
        self.components_ = np.asarray(result.H)
        self.n_components_ = len(self.components_)
        self.reconstruction_err_ = _distance(result, W, job)
        self.history_ = result.history
        self.n_iter_ = len(result.history)
        self.converged_ = result.status.converged
        if not self.converged_ and self.tol > 0:
            warnings.warn(NOT_CONVERGED % self.max_iter, ConvergenceWarning, stacklevel=3)
        return W

    def _job(self, matrix: Matrix, W: Any, H: Any) -> Job:
        loss, solver = self._loss(), _SOLVERS[self.solver]
        if self.solver == "cd" and isinstance(loss, Beta):
            raise ValueError(CD_LOSS.format(self.beta_loss))
        init = self.init
        fits = self._n_components <= min(matrix.shape)
        if init is None:
            init = "nndsvda" if fits else "random"
        if init.startswith("nndsvd") and not fits:
            raise ValueError(
                f"init = '{init}' can only be used when n_components <= min(n_samples, n_features)"
            )
        if init == "nndsvd" and self.solver == "mu":
            warnings.warn(MU_AND_ZEROS, UserWarning, stacklevel=4)
        start = ScikitRandom() if init == "random" else init
        return prepare(
            matrix,
            self._n_components,
            out=self.out,
            loss=loss,
            solver=solver,
            init=(W, H) if init == "custom" else start,
            weights=None,
            tol=min(float(self.tol), 1 - 1e-12),
            max_passes=4 * int(self.max_iter) + 16,  # a sweep may take a second read, and tiles do
            max_sweeps=int(self.max_iter),
            rule=_RULES[self.solver],
            seed=_seed(self.random_state),
            memory=self.memory,
            block_rows=None,
            missing="error",
            alpha_W=self.alpha_W,
            alpha_H=self.alpha_H,
            l1_ratio=self.l1_ratio,
        )

    def _opened(self, X: Any, reset: bool) -> tuple[Matrix, Any]:
        """X behind the one door, checked; and what W is to look like."""
        if isinstance(X, (str, os.PathLike, zarr.Array, zarr.Group, da.Array)):
            matrix = open_matrix(X, name="X")
            validate_data(self, matrix, reset=reset, skip_check_array=True)
            like = X if isinstance(X, da.Array) else matrix
            if matrix.sparse or matrix.nbytes > _SMALL:
                return matrix, like
            X = X if isinstance(X, da.Array) else matrix.source
            X = X.compute(scheduler="synchronous") if isinstance(X, da.Array) else X[:]
            X = check_array(X, dtype=[np.float64, np.float32], estimator=self, input_name="X")
        else:
            like = None
            dtypes = [np.float64, np.float32]
            X = validate_data(self, X, accept_sparse=("csr", "csc"), dtype=dtypes, reset=reset)
        check_non_negative(X, "NMF initialization" if reset else "X in NMF")
        loss = self._loss()
        if isinstance(loss, Beta) and loss.beta <= 0 and X.min() == 0:
            raise ValueError(ZEROS)
        return open_matrix(X if isinstance(X, np.ndarray) else X.tocsr(), name="X"), like

    def _with_known(self, X: Any, H: Any) -> tuple[AnyArray, AnyArray]:
        """W for that H, and H in X's dtype."""
        self._validate_params()
        matrix, like = self._opened(X, reset=True)
        rank = self.n_components if isinstance(self.n_components, Integral) else None
        H = _checked_factor(H, (rank, matrix.shape[1]), "NMF (input H)", matrix)
        return _as_given(self._solved(matrix, H), like), H

    def _loss(self) -> Loss:
        return make_loss(self.beta_loss)

    def _solved(self, matrix: Matrix, H: AnyArray) -> DaskArray:
        told: dict[str, Any] = {"alpha_W": self.alpha_W, "l1_ratio": self.l1_ratio}
        return transform(matrix, H, loss=self._loss(), memory=self.memory, **told)


# --------------------------------------------------------------------------------------- helpers
def _as_given(W: DaskArray, like: Any) -> AnyArray:
    """numpy for what was in memory; for a dask X in its blocks of rows."""
    if like is None:
        at_hand = W.npartitions == 1 and active_client() is None  # not worth a thread
        with dask.config.set(scheduler="synchronous") if at_hand else nullcontext():
            return np.asarray(compute(W)[0])
    return W.rechunk((like.chunks[0], -1)) if isinstance(like, da.Array) else W


def _distance(result: Result, W: AnyArray, job: Job) -> float:
    """sqrt(2 D(X, W H)): what was minimized, without the penalties."""
    found, H, terms = result.history[-1].objective or 0.0, result.H, job.terms
    if terms.W:
        found -= terms.W.value(*(float(x) for x in compute(W.sum(dtype="f8"), (W**2).sum())))
    if terms.H:
        H = np.asarray(H, np.float64)
        found -= terms.H.value(float(H.sum()), float(np.vdot(H, H)))
    return float(np.sqrt(2 * max(found, 0.0)))


def _printed(record: SweepRecord) -> None:
    print(f"iteration {record.sweep}: error {record.error:.6g}, {record.seconds:.1f} s")


def _seed(random_state: Any) -> int:
    """An int as it is; else one from the stream."""
    if isinstance(random_state, (int, np.integer)) and random_state >= 0:
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31))


def _checked_start(matrix: Matrix, W: Any, H: Any, n_components: Any) -> tuple[Any, Any]:
    (m, n), rank = matrix.shape, None if n_components == "auto" else n_components or matrix.shape[1]
    H = _checked_factor(H, (rank, n), "NMF (input H)", matrix)
    return _checked_factor(W, (m, len(H)), "NMF (input W)", matrix), H


def _checked_factor(F: Any, shape: tuple[Any, int], whom: str, matrix: Matrix) -> Any:
    """In X's dtype; a W that is not in memory is checked when it is read."""
    lazy = isinstance(F, (da.Array, zarr.Array)) and whom.endswith("W)")
    if not lazy:
        F = check_array(np.asarray(F), dtype=[working_dtype(matrix.dtype)])
    for axis, name in enumerate(("first", "second")):
        if shape[axis] is not None and F.shape[axis] != shape[axis]:
            raise ValueError(
                f"Array with wrong {name} dimension passed to {whom}. Expected {shape[axis]}, but "
                f"got {F.shape[axis]}."
            )
    if not lazy:
        check_non_negative(F, whom)
        if not F.any():
            raise ValueError(f"Array passed to {whom} is full of zeros.")
    return F


def _rank(n_components: Any, matrix: Matrix, H: Any) -> int:
    if isinstance(n_components, Integral):
        return int(n_components)
    if n_components == "auto" and H is not None:
        return int(H.shape[0])
    if not matrix.in_memory:
        raise ValueError(
            f"n_components={n_components!r} would be the number of features, "
            f"{matrix.shape[1]:,}, so W as large as X: pass n_components"
        )
    return matrix.shape[1]
