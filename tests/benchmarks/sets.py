"""The matrices that numbers of passes are compared on: real ones, and made ones of fixed seeds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from dask_nmf.types import Array

DATA = Path(__file__).parents[3] / "shared" / "data"
M, N = 6000, 400  # of the made ones


@dataclass(frozen=True)
class Named:
    """A matrix, the rank it is factored at, and the lowest error that any run has reached.

    The errors are the least of `python -m tests.benchmarks.passes --best` (40 passes of "auto" from
    10 seeds, 120 of HALS with 10 inner sweeps from 3) and of all runs of this benchmark.
    """

    make: Callable[[], Array]
    rank: int
    best: float


def _indian_pines() -> Array:
    return np.asarray(np.load(DATA / "indian_pines.npz")["cube"], dtype=np.float64).reshape(-1, 200)


def _orl_faces() -> Array:
    images = np.load(DATA / "orl_faces.npz")["images"]
    return np.ascontiguousarray(images.reshape(len(images), -1).T, dtype=np.float64)


def _bbc_news() -> Array:
    saved = np.load(DATA / "bbc_news_counts.npz")
    V = np.zeros(tuple(saved["shape"]))
    rows = np.repeat(np.arange(len(V)), np.diff(saved["indptr"]))
    V[rows, saved["indices"]] = saved["data"]
    return V


def _all_aml() -> Array:
    return np.asarray(np.load(DATA / "all_aml.npz")["V"], dtype=np.float64)


def _digits() -> Array:
    return np.asarray(load_digits().data, dtype=np.float64)


def low_rank(m: int = M, n: int = N) -> Array:
    """A product of uniform factors, and 5 % of noise."""
    rng = np.random.default_rng(0)
    V: Array = rng.random((m, 20)) @ rng.random((20, n))
    return np.maximum(V * (1 + 0.05 * rng.standard_normal(V.shape)), 0)


def smooth_spectra(m: int = M, n: int = 300) -> Array:
    """Mixtures of broad peaks that overlap, and 1 % of noise: ill-conditioned."""
    rng = np.random.default_rng(0)
    centre, width = rng.random((20, 1)), 0.05 + 0.15 * rng.random((20, 1))
    H = np.exp(-(((np.linspace(0, 1, n) - centre) / width) ** 2) / 2)
    V = rng.dirichlet(np.full(20, 0.3), m) @ H
    noise = 0.01 * np.sqrt((V**2).mean()) * rng.standard_normal(V.shape)
    return np.asarray(np.maximum(V + noise, 0))


def counts(m: int = M, n: int = N) -> Array:
    """Poisson counts with skewed factors and many zeros, as of words or genes."""
    rng = np.random.default_rng(0)
    mean = rng.gamma(0.2, size=(m, 20)) @ rng.gamma(0.3, size=(20, n))
    return rng.poisson(2 * mean).astype(np.float64)


SETS = {
    "indian_pines k=16": Named(_indian_pines, 16, 0.019611),
    "orl_faces k=25": Named(_orl_faces, 25, 0.174745),
    "bbc_news_counts k=20": Named(_bbc_news, 20, 0.83148496),
    "all_aml k=5": Named(_all_aml, 5, 0.43197873070),
    "digits k=16": Named(_digits, 16, 0.256480),
    "low rank + 5 % k=20": Named(low_rank, 20, 0.04856807),
    "smooth spectra k=20": Named(smooth_spectra, 20, 0.00960917),
    "Poisson counts k=20": Named(counts, 20, 0.38420663),
}
