"""A pytest plug-in: scikit-learn's own tests of NMF, unmodified, run against `dask_nmf.NMF`.

    SWAP_NMF=dask pytest -p tests.swap_nmf --pyargs sklearn.decomposition.tests.test_nmf

Loaded with -p, so that the names are swapped before the tests take them. SWAP_NMF says what X
becomes on the way in: "numpy" (what it is), "dask" (2-D chunks) or "zarr"; W comes back as numpy,
which the tests' own arithmetic needs. SWAP_NMF_SMALL=0 keeps small X from being read at once.
"""

import os
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse
import sklearn.decomposition
import zarr

import dask_nmf
from dask_nmf import estimator

MODE = os.environ.get("SWAP_NMF", "numpy")
estimator._SMALL = int(os.environ.get("SWAP_NMF_SMALL", estimator._SMALL))

_OTHERS = "tests scikit-learn's MiniBatchNMF"
_INSIDE = "tests functions inside scikit-learn"
DESELECTED = {
    "MiniBatchNMF": _OTHERS,
    "minibatch": _OTHERS,
    "mbnmf": _OTHERS,
    "solver2": _OTHERS,
    "test_initialize_": _INSIDE,
    "test_beta_divergence": _INSIDE,
    "test_special_sparse_dot": _INSIDE,
    "test_nmf_underflow": _INSIDE,
    "test_nmf_custom_init_dtype_error": "W and H of another dtype are cast, not refused",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    dropped = [item for item in items if any(part in item.name for part in DESELECTED)]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


def _in(X: Any) -> Any:
    """X in the container of the mode."""
    if MODE == "numpy" or scipy.sparse.issparse(X) or not isinstance(X, np.ndarray) or X.ndim != 2:
        return X
    chunks = -(-X.shape[0] // 3), -(-X.shape[1] // 2)
    if MODE == "dask":
        return da.from_array(X, chunks=chunks)
    return zarr.create_array({}, data=X, chunks=chunks)


def _out(W: Any, X: Any) -> Any:
    """W as numpy, if it was a dask array where it had to be."""
    assert isinstance(W, np.ndarray if isinstance(X, np.ndarray) or _sparse(X) else da.Array)
    return np.asarray(W)


def _sparse(X: Any) -> bool:
    return bool(scipy.sparse.issparse(X))


class NMF(dask_nmf.NMF):
    """The class, with the containers of the mode."""

    def fit(self, X: Any, y: Any = None, **params: Any) -> "NMF":
        super().fit(_in(X), y, **params)
        return self

    def fit_transform(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> Any:
        X = _in(X)
        return _out(super().fit_transform(X, y, W, H), X)

    def transform(self, X: Any) -> Any:
        X = _in(X)
        return _out(super().transform(X), X)


def non_negative_factorization(X: Any, *args: Any, **kwargs: Any) -> Any:
    X = _in(X)
    W, *rest = dask_nmf.non_negative_factorization(X, *args, **kwargs)
    return _out(W, X), *rest


if "SWAP_NMF" in os.environ:  # not where this file is only looked through for doctests
    sklearn.decomposition.NMF = NMF
    sklearn.decomposition.non_negative_factorization = non_negative_factorization
