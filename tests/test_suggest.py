"""The rank that a scan suggests: planted ones, none, and what is said where criteria disagree."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import dask_nmf
from dask_nmf import Scan, Suggestion
from dask_nmf.suggesting import Evidence, one_less, suggest, times_noise
from tests.benchmarks.planted import Planted
from tests.conftest import Array

SHAPE = (400, 60)
# 1, 2 .. 6: of a V of rank 3, where one component of noise takes some 0.0015 of V's squares.
LEFT = (0.5, 0.25, 0.05, 0.0485, 0.047, 0.0455)
STABILITY = (1.0, 0.95, 0.98, 0.2, -0.3, -0.2)
HIDDEN = (0.7, 0.5, 0.23, 0.235, 0.24, 0.25)
SEEN = np.array([0.01, -0.01, 0.02, 0.0])  # what hidden entries differ by, from run to run


def _evidence(
    left: tuple[float, ...] = LEFT,
    stability: tuple[float, ...] | None = STABILITY,
    hidden: tuple[float, ...] | None = None,
) -> list[Evidence]:
    found = [Evidence(i + 1, x) for i, x in enumerate(left)]
    if stability:
        found = [
            replace(one, stability=x, cophenetic=(1 + x) / 2)
            for one, x in zip(found, stability, strict=True)
        ]
    if hidden:
        found = [
            replace(one, held_out=tuple(x + SEEN * (1 + 0.1 * i)))
            for i, (one, x) in enumerate(zip(found, hidden, strict=True))
        ]
    return found


def _suggested(before: float = 0.9, **told: Any) -> Suggestion:
    return suggest(_evidence(**told), SHAPE, before)


# --------------------------------------------------------------------------------- from scans
def _scanned(V: Array, ranks: Any, share: float = 0.05, **options: Any) -> Scan:
    return dask_nmf.scan(V, ranks, restarts=4, max_passes=20, held_out=share, **options)


@pytest.mark.parametrize(
    ("planted", "share", "options"),
    [
        (Planted(3, (300, 50), "independent", 0.3, 2, "gaussian", 0.5), 0.05, {}),
        (Planted(4, (300, 60), "spectra", 0.5, 1, "gaussian", 0.3), 0.0, {}),
        (Planted(3, (300, 50), "shared", 0.5, 1, "poisson", 3), 0.05, {}),
        (
            Planted(3, (200, 40), "shared", 0.5, 1, "poisson", 2),
            0.0,
            {"loss": "kullback-leibler"},
        ),
    ],
    ids=["hidden", "plain", "counts", "kl"],
)
def test_planted_ranks_are_found(planted: Planted, share: float, options: dict[str, Any]) -> None:
    found = _scanned(planted.make(3), range(2, planted.rank + 3), share, **options)
    assert found.suggest().rank == planted.rank, found.suggest()
    assert ("held-out" in found.suggest().votes) == (share > 0)


def test_noise_has_no_structure() -> None:
    V = np.random.default_rng(0).random((300, 50))
    found = _scanned(V, range(1, 5))
    assert found.suggest().rank is None
    assert found.suggest().verdict == "no structure beyond a constant"
    larger = Scan({k: runs for k, runs in found.results.items() if k > 1}).suggest()
    assert larger.rank is None
    assert larger.verdict == "no structure beyond one component: scan smaller ranks too"


@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler"])
def test_one_component_is_not_a_constant(loss: str) -> None:
    random = np.random.default_rng(0)
    clean = random.gamma(4, 1, (200, 1)) @ random.gamma(4, 1, (1, 40))
    V = random.poisson(clean / 4).astype(float)
    found = _scanned(V, range(1, 4), 0.05 if loss == "frobenius" else 0, loss=loss)
    assert found.suggest().rank == 1, found.suggest()


def test_order_and_scale_do_not_matter() -> None:
    V = Planted(3, (300, 50), "independent", 0.3, 2, "gaussian", 0.5).make(0)
    found = _scanned(V, range(2, 5), 0)
    turned = Scan({k: found.results[k] for k in reversed(found.ranks)})
    assert turned.suggest() == found.suggest()
    scaled = _scanned(1000 * V, range(2, 5), 0)
    assert scaled.suggest().votes == found.suggest().votes
    assert scaled.suggest().rank == found.suggest().rank == 3


def test_it_says_how_the_runs_differ() -> None:
    V = np.random.default_rng(0).random((40, 10))
    call: dict[str, Any] = {"ranks": (1, 2), "restarts": 2, "max_passes": 4, "tol": 0.5}
    assert "(other starts; Alexandrov" in repr(dask_nmf.scan(V, **call).suggest())
    found = dask_nmf.scan(V, **call, perturb=0.03, held_out=0.025)
    wanted = "(other starts, V perturbed by up to 3 %, other 2.5 % of V hidden; Alexandrov"
    assert wanted in repr(found.suggest())


@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler"])
def test_a_scan_that_was_stored_says_the_same(tmp_path: Path, loss: str) -> None:
    V = scipy.sparse.random(200, 30, density=0.3, format="csr", random_state=0)
    found = dask_nmf.scan(
        V, (2, 3), restarts=2, out=tmp_path / "out.zarr", max_passes=4, tol=0.5, loss=loss
    )
    assert dask_nmf.open_scan(tmp_path / "out.zarr").suggest() == found.suggest()


def test_scans_that_say_too_little_are_refused() -> None:
    V = np.random.default_rng(0).random((40, 10))
    with pytest.raises(ValueError, match=r"needs 2 ranks or more to compare, got \[2\]"):
        dask_nmf.scan(V, 2, restarts=2, max_passes=4, tol=0.5).suggest()
    with pytest.raises(ValueError, match="needs restarts >= 2, or held-out entries"):
        dask_nmf.scan(V, (1, 2), restarts=1, max_passes=4, tol=0.5).suggest()
    one_run = dask_nmf.scan(V, (1, 2), restarts=1, max_passes=4, tol=0.5, held_out=0.1)
    assert set(one_run.suggest().votes) == {"error", "held-out"}


# ------------------------------------------------------------------------------- from evidence
def test_all_agree() -> None:
    found = _suggested(hidden=HIDDEN)
    assert found.rank == 3
    assert found.verdict == "rank 3, by error, held-out, stability"
    assert found.votes == {
        "error": 3,
        "held-out": 3,
        "stability": 3,
        "cophenetic": 3,
        "elbow": 3,
    }


def test_it_prints_its_reasons_with_numbers_and_sources() -> None:
    lines = repr(_suggested(hidden=HIDDEN)).splitlines()
    assert lines[0] == "<Suggestion: rank 3, by error, held-out, stability>"
    for line, name, number, source in zip(
        lines[1:],
        ("error", "held-out", "stability", "cophenetic", "elbow"),
        ("0.05", "0.2", "0.98", "0.600", "0.05"),
        ("Marchenko", "Owen and Perry 2009", "Nebgen", "Brunet", "Satopaa"),
        strict=True,
    ):
        assert line.startswith(f"  {name}: ")
        assert number in line
        assert source in line


@given(st.permutations(range(6)))
def test_ranks_in_any_order(order: list[int]) -> None:
    evidence = _evidence(hidden=HIDDEN)
    found = suggest([evidence[i] for i in order], SHAPE, 0.9)
    assert found == suggest(evidence, SHAPE, 0.9)


@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        # Components that stay alike beyond what they gain: the error has the last word.
        (
            {"stability": (1.0, 0.95, 0.98, 0.97, 0.2, 0.1)},
            "rank 3, by error, stability; components are alike at 4 too",
        ),
        # Two of three, and who is against it.
        (
            {"stability": (1.0, 0.95, 0.5, 0.2, 0.2, 0.1), "hidden": HIDDEN},
            "rank 3, by error, held-out; against it: stability",
        ),
        (
            {"left": (0.5, 0.25, 0.24, 0.239, 0.238, 0.237), "hidden": HIDDEN},
            "rank 2, by error, stability; against it: held-out; components are alike at 3 too",
        ),
        (
            {"stability": (1.0, 0.95, 0.5, 0.2, 0.2, 0.1)},
            "the evidence is split: error says 3, stability says 2",
        ),
        (
            {
                "stability": (1.0, 0.95, 0.5, 0.2, 0.2, 0.1),
                "hidden": (0.7, 0.5, 0.3, 0.2, 0.3, 0.4),
            },
            "the evidence is split: error says 3, held-out says 4, stability says 2",
        ),
        (
            {"left": (0.5, 0.4, 0.3, 0.2, 0.1, 0.05)},
            "6 or more: scan larger ranks; components are alike up to 3",
        ),
        # The largest rank gains 2 to 3 times what even noise could: so do all after the first.
        (
            {
                "left": (0.5, 0.48, 0.46, 0.44, 0.42, 0.4),
                "stability": (1.0, 0.1, 0.2, 0.2, 0.2, 0.1),
            },
            "rank 1, by error, stability",
        ),
        # Two that could be, and are far from each other.
        (
            {"left": (0.5, 0.49, 0.48, 0.47, 0.46, 0.45), "hidden": HIDDEN},
            "the evidence is split: error says 1, held-out says 3, stability says 3",
        ),
        # Hidden entries alone do not make a structure of what gains nothing.
        (
            {
                "left": (0.5, 0.49, 0.48, 0.47, 0.46, 0.45),
                "stability": (1.0, 0.5, 0.1, 0.2, 0.2, 0.1),
                "hidden": HIDDEN,
                "before": 0.51,
            },
            "the evidence is split: error says none, held-out says 3, stability says 1",
        ),
    ],
)
def test_who_is_for_it_and_who_against(told: dict[str, Any], verdict: str) -> None:
    found = _suggested(**told)
    assert found.verdict == verdict
    assert (found.rank is None) == (not verdict.startswith("rank"))


def test_the_least_hidden_error_within_its_spread() -> None:
    """The smaller rank, if the larger one is better by less than the runs differ in that."""
    for better, rank in ((0.0001, 3), (0.02, 4)):
        hidden = (*HIDDEN[:3], HIDDEN[2] - better, *HIDDEN[4:])
        assert _suggested(hidden=hidden).votes["held-out"] == rank


def test_stability_that_no_rank_has() -> None:
    found = _suggested(stability=(0.5, 0.4, 0.6, 0.2, 0.1, 0.0))
    assert found.votes["stability"] is None
    assert "at best 0.60, at 3" in found.reasons[1]
    assert found.verdict == "the evidence is split: error says 3, stability says none"


@pytest.mark.parametrize(
    ("gains", "rank"),
    [
        ((30, 1, 0.9, 0.9), 2),  # even noise
        ((1.9, 1, 0.9, 0.9), None),
        ((30, 4, 2.3, 2.2), 2),  # uneven noise: twice the later ranks
        ((30, 4.8, 2.3, 2.2), 3),
        ((9, 7, 6, 4.9), 4),  # a slow decay is not noise
        ((9, 7, 6, 5.1), 5),
    ],
)
def test_what_a_rank_has_to_gain(gains: tuple[float, ...], rank: int | None) -> None:
    ranks = list(range(2, 2 + len(gains)))
    (m, n), last = SHAPE, 0.1
    noise = last * (np.sqrt(m) + np.sqrt(n)) ** 2 / ((m - ranks[-1]) * (n - ranks[-1]))
    before, *left = last + noise * np.cumsum([0, *gains[::-1]])[::-1]
    assert times_noise(ranks, left, SHAPE, before) == pytest.approx(gains)
    evidence = [Evidence(k, x, 0.95) for k, x in zip(ranks, left, strict=True)]
    found = suggest(evidence, SHAPE, before)
    assert found.votes["error"] == rank, found
    assert found.rank == (None if rank == ranks[-1] else rank)


# ------------------------------------------------------------------------------------ measures
def test_noise_gains_as_much_as_noise() -> None:
    """Truncated SVDs, which no factorization of their rank can beat."""
    random = np.random.default_rng(0)
    m, n = 600, 100
    noise = random.standard_normal((m, n))
    signal = 6 * (np.sqrt(m) + np.sqrt(n)) * np.outer(np.ones(m), np.ones(n)) / np.sqrt(m * n)
    for V, first in ((noise, 1.0), (noise + signal, 36.0)):
        squares = np.linalg.svd(V, compute_uv=False) ** 2
        left = 1 - np.cumsum(squares)[:6] / squares.sum()
        gains = times_noise([1, 2, 3, 4, 5, 6], list(left), (m, n), 1.0)
        assert gains[0] == pytest.approx(first, rel=0.1)
        assert gains[1:] == pytest.approx(1, abs=0.15)
        fewer = times_noise([2, 4, 6], list(left[1::2]), (m, n), left[0])
        assert fewer[0] == pytest.approx(gains[1])
        assert fewer[1:] == pytest.approx((gains[2::2] + gains[3::2]) / 2)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_one_less_is_the_best_fit_of_one_rank_less(seed: int, k: int) -> None:
    random = np.random.default_rng(seed)
    W, H = random.random((30, k)), random.random((k, 12))
    squares = np.linalg.svd(W @ H, compute_uv=False) ** 2
    found = one_less(0.1, W.T @ W, W.sum(axis=0), H, 30)
    assert found == pytest.approx(0.1 + 0.9 * squares[k - 1] / squares.sum())


def test_less_than_one_component_is_a_constant() -> None:
    random = np.random.default_rng(0)
    W, H = random.random((30, 1)), random.random((1, 12))
    V = W @ H
    found = one_less(0.1, W.T @ W, W.sum(axis=0), H, 30)
    assert found == pytest.approx(0.1 + 0.9 * ((V - V.mean()) ** 2).sum() / (V**2).sum())
    # Of the deviance from the mean a constant leaves all.
    assert one_less(0.1, W.T @ W, W.sum(axis=0), H, 30, squares=False) == pytest.approx(1)


def test_an_exact_fit_is_not_learned_from() -> None:
    """Beyond V's own rank the errors are rounding, however much smaller one is than another."""
    left = (0.5, 0.2, 1e-20, 1e-24, 1e-28, 1e-30)
    assert _suggested(left=left).rank == 3
