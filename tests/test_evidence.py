"""Stability of components: against scikit-learn and the laws of permutations."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import silhouette_samples

from dask_nmf.evidence import (
    aligned,
    consensus,
    cophenetic,
    directions_of,
    distances,
    matched,
    silhouettes,
    together,
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
    assert cophenetic(together(Hs)) > 0.9


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
    assert cophenetic(together(Hs)) < 0.8


def test_consensus_leaves_out_what_stands_alone() -> None:
    Hs, orders = _runs(3, 9, 4, 50, 0.02)
    random = np.random.default_rng(1)
    Hs[4][2] = random.random(50) * (random.random(50) < 0.1)  # nothing like the others
    components = [directions_of(H) for H in Hs]
    norms = np.array([np.linalg.norm(H, axis=1) for H in Hs])
    groups = matched(components)
    found, left_out = consensus(components, norms, groups, distances(components), 0.1)
    assert left_out == 1
    own = [H[np.argsort(order)[orders[0]]] for H, order in zip(Hs, orders, strict=True)]
    lone = int(np.argsort(orders[4])[orders[0]].tolist().index(2))
    for j, H in enumerate(found):  # in the order of the first
        members = np.array([run[j] for r, run in enumerate(own) if (r, j) != (4, lone)])
        lengths = np.linalg.norm(members, axis=1)
        median = np.median(members / lengths[:, None], axis=0)
        wanted = np.median(lengths) * median / np.linalg.norm(median)
        np.testing.assert_allclose(H, wanted, rtol=1e-12)
    other = np.array([2, 0, 3, 1])[groups]  # what the groups are called does not matter
    again, _ = consensus(components, norms, other, distances(components), 0.1)
    assert (again == found).all()
    all_of_them = consensus(components, norms, groups, distances(components), 0.0)
    assert all_of_them[1] == 0  # a group keeps what it would lose as a whole


def test_aligned_is_the_order_of_the_first() -> None:
    Hs, orders = _runs(5, 4, 3, 30, 0.01)
    components = [directions_of(H) for H in Hs]
    groups = matched(components)
    found = aligned(components, groups)
    assert (aligned(components, np.array([1, 2, 0])[groups]) == found).all()
    for run, order, H in zip(found, orders, components, strict=True):
        assert (run == H[np.argsort(order)[orders[0]]]).all()


def test_together_is_the_share_of_the_runs() -> None:
    Hs = [np.array([[4.0, 3, 0, 0], [0, 1, 2, 2]]), np.array([[1.0, 0, 0, 0], [0, 3, 2, 2]])]
    wanted = [[1, 0.5, 0, 0], [0.5, 1, 0.5, 0.5], [0, 0.5, 1, 1], [0, 0.5, 1, 1]]
    assert (together(Hs) == wanted).all()
    assert together([np.ones((2, 3_000))]).shape == (1_000, 1_000)
