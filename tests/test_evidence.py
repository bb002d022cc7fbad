"""Stability of components: against scikit-learn and the laws of permutations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import silhouette_samples

from dask_nmf.evidence import (
    consensus,
    cophenetic,
    directions_of,
    distances,
    matched,
    silhouettes,
)
from tests.conftest import Array


def _runs(seed: int, runs: int, k: int, n: int, noise: float) -> tuple[list[Array], list[Array]]:
    """Components that are those of one H, permuted, scaled and with noise; the permutations."""
    random = np.random.default_rng(seed)
    H = random.gamma(0.3, 1, (k, n))
    orders = [random.permutation(k) for _ in range(runs)]
    scales = [random.random((k, 1)) + 0.1 for _ in range(runs)]
    noisy = [H + noise * H.mean() * random.random((k, n)) for _ in range(runs)]
    return [s * x[o] for s, x, o in zip(scales, noisy, orders, strict=True)], orders


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 5))
def test_permuted_components_are_matched(seed: int, runs: int, k: int) -> None:
    Hs, orders = _runs(seed, runs, k, 40, 0.01)
    components = [directions_of(H) for H in Hs]
    groups = matched(components)
    first = np.argsort(orders[0])
    for order, group in zip(orders, groups, strict=True):
        assert (group == groups[0][first[order]]).all()
    found = silhouettes(distances(components), groups)
    assert (found > 0.8).all()
    assert cophenetic(Hs) > 0.9


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(2, 5))
def test_silhouettes_are_scikit_learn_s(seed: int, runs: int, k: int) -> None:
    Hs, _ = _runs(seed, runs, k, 12, 3.0)
    components = [directions_of(H) for H in Hs]
    groups, apart = matched(components), distances(components)
    assert (np.sort(groups, axis=1) == np.arange(k)).all()  # one of each run in each group
    each = silhouette_samples(apart, groups.ravel(), metric="precomputed")
    wanted = [each[groups.ravel() == group].mean() for group in range(k)]
    np.testing.assert_allclose(silhouettes(apart, groups), wanted, atol=1e-12)


def test_components_by_chance_are_not_stable() -> None:
    random = np.random.default_rng(0)
    Hs = [random.random((5, 60)) for _ in range(8)]
    components = [directions_of(H) for H in Hs]
    assert silhouettes(distances(components), matched(components)).mean() < 0.2
    assert cophenetic(Hs) < 0.8


def test_consensus_leaves_out_what_stands_alone() -> None:
    Hs, _ = _runs(3, 9, 4, 50, 0.02)
    random = np.random.default_rng(1)
    Hs[4][2] = random.random(50) * (random.random(50) < 0.1)  # nothing like the others
    components = [directions_of(H) for H in Hs]
    groups, apart = matched(components), distances(components)
    found = consensus(components, groups, apart, 0.1)
    clean = consensus(components[:4], groups[:4], distances(components[:4]), 0.1)
    alike = (directions_of(found) * directions_of(clean)).sum(axis=1)
    assert alike == pytest.approx(1, abs=1e-3)
