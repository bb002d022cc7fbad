"""Matrices whose rank is known, and matrices without structure, for the benchmark of ranks."""

from dataclasses import dataclass

import numpy as np

from tests.conftest import Array


@dataclass(frozen=True)
class Planted:
    """How V is made: W H of a rank, and noise.

    Attributes
    ----------
    components : str
        What the rows of H are: "independent", "shared" (each has half of its columns in common
        with the next), or "spectra" (smooth, overlapping).
    sparse : float
        Share of W that is zero.
    sizes : float
        How much larger the largest component is than the smallest.
    noise : str
        "gaussian" (negative entries become zero), or "poisson".
    level : float
        Gaussian: standard deviation, in those of W H. Poisson: mean count.
    """

    rank: int
    shape: tuple[int, int]
    components: str
    sparse: float
    sizes: float
    noise: str
    level: float

    def make(self, seed: int) -> Array:
        random = np.random.default_rng(seed)
        (m, n), k = self.shape, self.rank
        W = random.gamma(1.0, 1, (m, k)) * (random.random((m, k)) >= self.sparse)
        H = _COMPONENTS[self.components](random, k, n)
        H *= np.geomspace(1, 1 / self.sizes, k)[:, None] / np.linalg.norm(H, axis=1, keepdims=True)
        return _noisy(random, W @ H, self.noise, self.level)

    def __str__(self) -> str:
        m, n = self.shape
        level = f"mean {self.level:g}" if self.noise == "poisson" else f"{self.level:.0%}"
        return (
            f"{m} x {n}, {self.components}, W {self.sparse:.0%} zeros, sizes 1:{self.sizes:g}, "
            f"{self.noise} {level}"
        )


def _noisy(random: np.random.Generator, clean: Array, noise: str, level: float) -> Array:
    if noise == "poisson":
        return np.asarray(random.poisson(clean * (level / clean.mean())), float)
    noisy = clean + level * clean.std() * random.standard_normal(clean.shape)
    return np.asarray(np.clip(noisy, 0, None))


def _independent(random: np.random.Generator, k: int, n: int) -> Array:
    return random.gamma(0.4, 1, (k, n))


def _shared(random: np.random.Generator, k: int, n: int) -> Array:
    order, width = random.permutation(n), n // k
    H = np.zeros((k, n))
    for i in range(k):
        own = order[np.arange(i * width, (i + 2) * width) % n]
        H[i, own] = random.gamma(2.0, 1, len(own))
    return H


def _spectra(random: np.random.Generator, k: int, n: int) -> Array:
    at, H = np.arange(n), np.full((k, n), 0.01)
    for i in range(k):
        own = n * (i + 0.5 + random.uniform(-0.2, 0.2)) / k
        for centre, height in (
            (own, 1.0),
            (random.uniform(0, n), 0.6),
            (random.uniform(0, n), 0.4),
        ):
            H[i] += height * np.exp(-(((at - centre) / (n * random.uniform(0.03, 0.08))) ** 2))
    return H


_COMPONENTS = {"independent": _independent, "shared": _shared, "spectra": _spectra}

PLANTED = (
    Planted(3, (400, 60), "independent", 0.0, 1, "gaussian", 0.3),
    Planted(3, (600, 80), "spectra", 0.5, 2, "poisson", 5),
    Planted(4, (500, 100), "shared", 0.3, 1, "gaussian", 1.2),
    Planted(4, (800, 60), "independent", 0.7, 3, "poisson", 2),
    Planted(4, (400, 150), "spectra", 0.0, 1, "gaussian", 0.1),
    Planted(5, (1000, 80), "independent", 0.5, 2, "gaussian", 1.0),
    Planted(5, (600, 120), "shared", 0.7, 4, "gaussian", 0.8),
    Planted(5, (500, 100), "spectra", 0.3, 1, "poisson", 20),
    Planted(5, (1500, 60), "shared", 0.5, 1, "poisson", 0.4),
    Planted(6, (800, 100), "independent", 0.0, 1, "gaussian", 1.0),
    Planted(6, (600, 150), "independent", 0.7, 4, "poisson", 5),
    Planted(6, (1000, 120), "spectra", 0.5, 2, "gaussian", 0.3),
    Planted(6, (700, 100), "shared", 0.3, 2, "poisson", 1),
    Planted(7, (1200, 100), "independent", 0.5, 4, "gaussian", 0.5),
    Planted(7, (800, 140), "shared", 0.5, 1, "gaussian", 1.0),
    Planted(7, (600, 200), "spectra", 0.7, 1, "poisson", 1),
    Planted(8, (1000, 150), "independent", 0.7, 2, "poisson", 0.7),
    Planted(8, (1500, 120), "shared", 0.5, 2, "gaussian", 0.5),
    Planted(9, (1200, 200), "independent", 0.5, 2, "gaussian", 0.8),
    Planted(9, (1000, 160), "spectra", 0.7, 1, "gaussian", 0.1),
)


def _shuffled(which: int, seed: int) -> Array:
    V = PLANTED[which].make(seed)
    return np.random.default_rng(seed + 1).permutation(V.ravel()).reshape(V.shape)


def without_structure(seed: int) -> dict[str, Array]:
    """By name; "rank 1" has one component and noise, the others are the same everywhere."""
    random = np.random.default_rng(seed)
    one = random.gamma(2.0, 1, (600, 1)) @ random.gamma(2.0, 1, (1, 90))
    return {
        "uniform": random.random((500, 80)),
        "poisson, mean 3": random.poisson(3.0, (800, 100)).astype(float),
        "exponential": random.exponential(1.0, (600, 120)),
        "entries of 1, permuted": _shuffled(0, seed),
        "entries of 11, permuted": _shuffled(10, seed),
        "entries of 12, permuted": _shuffled(11, seed),
        "rank 1, gaussian": _noisy(random, one, "gaussian", 0.5),
        "rank 1, poisson": _noisy(random, one, "poisson", 4.0),
    }
