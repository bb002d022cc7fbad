"""The reference against a published run, scikit-learn and first principles."""

import numpy as np
import pytest
from sklearn.decomposition import non_negative_factorization

from dask_nmf import oracle
from tests.conftest import low_rank

# The from-scratch demo this project grew out of, and what it printed.
DEMO = np.array(
    [[2, 4, 6, 8, 10], [4, 8.1, 12, 16, 19.9], [1, 1.9, 3, 4, 4.9], [5, 11, 17.1, 23, 29]]
)
PRINTED_W = [[0.3506, 0.1713], [0.7772, 0.3054], [0.1614, 0.0901], [0.2606, 0.8463]]
PRINTED_H = [
    [3.2376, 6.0156, 8.5402, 11.2752, 13.8126],
    [4.9139, 11.1413, 17.5771, 23.7062, 30.0129],
]
PRINTED_WH = [
    [1.9768, 4.0175, 6.0050, 8.0137, 9.9836],
    [4.0169, 8.0777, 12.0052, 16.0026, 19.9005],
    [0.9654, 1.9750, 2.9625, 3.9563, 4.9343],
    [5.0023, 10.9965, 17.1011, 23.0009, 28.9995],
]
PRINTED_ERROR = 0.1161


def test_every_printed_digit_of_the_demo() -> None:
    W, H = oracle.nmf(DEMO, 2, sweeps=10_000, seed=2, order="HW")
    assert W.round(4).tolist() == PRINTED_W
    assert H.round(4).tolist() == PRINTED_H
    assert (W @ H).round(4).tolist() == PRINTED_WH
    assert round(float(np.linalg.norm(DEMO - W @ H)), 4) == PRINTED_ERROR


def test_scikit_learn_gives_the_same_error() -> None:
    W, H, _ = non_negative_factorization(
        DEMO, n_components=2, init="random", solver="cd", tol=1e-10, max_iter=20_000, random_state=2
    )
    assert round(float(np.linalg.norm(DEMO - W @ H)), 4) == PRINTED_ERROR


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scikit_learns_multiplicative_updates_agree() -> None:
    V, W, H = low_rank(12, 9, 3), low_rank(12, 3, 2), low_rank(3, 9, 2)
    theirs = non_negative_factorization(
        V, W.copy(), H.copy(), n_components=3, init="custom", solver="mu", tol=0, max_iter=7
    )
    for _ in range(7):
        W = oracle.update_W(V, W, H)
        H = oracle.update_H(V, W, H)
    np.testing.assert_allclose(W, theirs[0], rtol=1e-11)
    np.testing.assert_allclose(H, theirs[1], rtol=1e-11)


def test_hals_sets_each_column_to_its_optimum() -> None:
    """No other non-negative value of the column updated last has a smaller error."""
    V, W, H = low_rank(8, 6, 3), low_rank(8, 3, 2), low_rank(3, 6, 2)
    W = oracle.hals_W(V, W, H)
    best = oracle.error(V, W, H)
    random = np.random.default_rng(0)
    for scale in (1e-3, 1e-1, 1.0):
        other = W.copy()
        other[:, -1] = np.maximum(0, W[:, -1] + scale * random.standard_normal(8))
        assert oracle.error(V, other, H) > best


def test_half_steps_stay_at_a_stationary_point() -> None:
    W, H = low_rank(7, 2, 2), low_rank(2, 5, 2)
    V = W @ H
    for found, expected in (
        (oracle.update_W(V, W, H), W),
        (oracle.update_H(V, W, H), H),
        (oracle.hals_W(V, W, H, 3), W),
        (oracle.hals_H(V, W, H, 3), H),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_best_of_is_the_smallest_error() -> None:
    errors = [oracle.error(DEMO, *oracle.nmf(DEMO, 2, 50, seed)) for seed in range(5)]
    best = oracle.error(DEMO, *oracle.best_of(DEMO, 2, 50, range(5)))
    assert best == min(errors) < max(errors)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="order must be 'WH' or 'HW', got 'WHW'"):
        oracle.nmf(DEMO, 2, 1, 0, order="WHW")
    with pytest.raises(ValueError, match="at least one seed"):
        oracle.best_of(DEMO, 2, 1, [])
