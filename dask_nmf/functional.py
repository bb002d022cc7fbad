"""scikit-learn's `non_negative_factorization`, by name and signature."""

import warnings
from typing import Any

from dask_nmf.estimator import NMF
from dask_nmf.types import AnyArray
from dask_nmf.wording import W_NOT_USED


def non_negative_factorization(
    X: Any,
    W: Any = None,
    H: Any = None,
    n_components: int | str | None = "auto",
    *,
    init: str | None = None,
    update_H: bool = True,
    solver: str = "cd",
    beta_loss: str | float = "frobenius",
    tol: float = 1e-4,
    max_iter: int = 200,
    alpha_W: float = 0.0,
    alpha_H: float | str = "same",
    l1_ratio: float = 0.0,
    random_state: Any = None,
    verbose: int = 0,
    shuffle: bool = False,
) -> tuple[AnyArray, AnyArray, int]:
    """W, H and the number of iterations, as ``sklearn.decomposition.non_negative_factorization``.

    Parameters
    ----------
    X, W, H : as for `NMF.fit`
    update_H : bool
        False: H is what it is, and each row of W is solved for it to its end, in one pass.
    n_components, init, solver, beta_loss, tol, max_iter, alpha_W, alpha_H, l1_ratio, \
    random_state, verbose, shuffle
        As for `NMF`.

    Returns
    -------
    W : (n_samples, n_components) numpy array; a dask array for dask and zarr X
    H : (n_components, n_features) numpy array
    n_iter : int

    Raises
    ------
    ValueError, TypeError
        As `NMF.fit`.

    Notes
    -----
    Cost: as for `NMF`.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.outer([1.0, 2.0, 3.0], [4.0, 5.0])
    >>> W, H, n_iter = non_negative_factorization(X, n_components=1, random_state=0)
    >>> bool(np.allclose(W @ H, X))
    True
    """
    model = NMF(
        n_components,
        init=init,
        solver=solver,
        beta_loss=beta_loss,
        tol=tol,
        max_iter=max_iter,
        random_state=random_state,
        alpha_W=alpha_W,
        alpha_H=alpha_H,
        l1_ratio=l1_ratio,
        verbose=verbose,
        shuffle=shuffle,
    )
    if update_H:
        W = model.fit_transform(X, W=W, H=H)
        return W, model.components_, model.n_iter_
    if W is not None:
        warnings.warn(W_NOT_USED, RuntimeWarning, stacklevel=2)
    return *model._with_known(X, H), 1
