"""Which rank the runs of a scan speak for, and why.

Three criteria vote. The error: a rank has to gain more than noise would give it. Stability: the
other runs have to find its components again. The error of hidden entries, where there are some:
what is learned from noise makes it larger.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dask_nmf.types import Array

_NOISE = 2.0  # what a rank must gain, in times what noise could give it
_UNEVEN = 2.5  # how much more than even noise uneven one may give, such as that of counts
_ALIKE = 0.9  # least silhouette of components that all runs have
_ROUNDING = 1e-8  # share of V's squares: of a closer fit nothing can be learned


@dataclass(frozen=True)
class Evidence:
    """What the runs of one rank say.

    Attributes
    ----------
    rank : int
    left : float
        Share of V's squares, or of its deviance, that the best run leaves unexplained.
    stability : float or None
        The least silhouette of its components; None of one run.
    cophenetic : float or None
    held_out : tuple of float
        Error of the hidden entries of each run, in the order of their seeds.
    """

    rank: int
    left: float
    stability: float | None = None
    cophenetic: float | None = None
    held_out: tuple[float, ...] = ()


@dataclass(frozen=True)
class Suggestion:
    """What `Scan.suggest` returns.

    Attributes
    ----------
    rank : int or None
        None where no rank can be named; `verdict` says why.
    verdict : str
        The outcome in a sentence.
    reasons : tuple of str
        What each criterion says, with its numbers and its source.
    votes : dict of int or None
        The rank that each criterion names; None where it names none. "cophenetic" and "elbow" have
        no say in the verdict.

    Examples
    --------
    >>> import dask_nmf
    >>> V = np.random.default_rng(0).random((60, 30))  # noise alone
    >>> dask_nmf.scan(V, [1, 2], restarts=2, held_out=0.1).suggest().rank is None
    True
    """

    rank: int | None
    verdict: str
    reasons: tuple[str, ...]
    votes: dict[str, int | None] = field(repr=False)

    def __repr__(self) -> str:
        return "\n".join([f"<Suggestion: {self.verdict}>", *(f"  {why}" for why in self.reasons)])


def suggest(
    evidence: Sequence[Evidence], shape: tuple[int, int], before: float, other: str = "other starts"
) -> Suggestion:
    """The rank for which most criteria speak, if there is one.

    Parameters
    ----------
    evidence : sequence of Evidence
        Of at least two ranks, in any order.
    shape : (int, int)
        Of V.
    before : float
        What one component less than the lowest rank would leave; of rank 1, a constant.
    other : str
        How the runs of a rank differ, for the reasons.

    Raises
    ------
    ValueError
        If there are too few ranks or runs to compare.

    Notes
    -----
    A rank is suggested if two of three hold: it is the last that gains enough, the components of
    its runs are alike, and the hidden entries want it. Where there is no hidden entry, or one run,
    both of the remaining two have to hold. Of two such ranks it is the smaller, if they are
    neighbours; else the evidence is split.
    """
    found = sorted(evidence, key=lambda one: one.rank)
    if len(found) < 2:
        raise ValueError(
            f"a suggestion needs 2 ranks or more to compare, got {[x.rank for x in found]}"
        )
    steady = [one.rank for one in found if one.stability is not None and one.stability >= _ALIKE]
    several = all(one.stability is not None for one in found)
    hidden = all(one.held_out for one in found)
    if not (several or hidden):
        raise ValueError("a suggestion needs restarts >= 2, or held-out entries: one run of a rank "
                         "has nothing to compare with")  # fmt: skip
    gains = times_noise([one.rank for one in found], [one.left for one in found], shape, before)
    votes: dict[str, int | None] = {}
    reasons: list[str] = []
    for name, told in (
        ("error", _by_error(found, gains)),
        ("held-out", _by_held_out(found) if hidden else None),
        ("stability", _by_stability(found, other) if several else None),
        ("cophenetic", _by_cophenetic(found)),
        ("elbow", _by_elbow(found)),
    ):
        if told is not None:
            votes[name] = told[0]
            reasons.append(f"{name}: {told[1]}")
    rank, verdict = _decided([one.rank for one in found], votes, steady)
    return Suggestion(rank, verdict, tuple(reasons), votes)


def _decided(
    ranks: list[int], votes: dict[str, int | None], steady: list[int]
) -> tuple[int | None, str]:
    error, hidden = votes["error"], votes.get("held-out")
    first, last = ranks[0], ranks[-1]
    if error is None and hidden in (None, first):
        beyond = "a constant" if first == 1 else f"{_count(first - 1)}: scan smaller ranks too"
        return None, f"no structure beyond {beyond}"
    able: dict[int, list[str]] = {}
    for rank in sorted({one for one in (error, hidden) if one is not None} - {last}):
        voices = {"error": rank == error, "held-out": rank == hidden, "stability": rank in steady}
        if sum(voices.values()) >= 2:
            able[rank] = [name for name in voices if voices[name]]
    if able and ranks.index(max(able)) - ranks.index(min(able)) <= 1:
        rank = min(able)
        against = [name for name in _VOICES if name in votes and name not in able[rank]]
        dissent = f"; against it: {', '.join(against)}" if against else ""
        if "stability" in able[rank] and steady[-1] > rank:
            dissent += f"; components are alike at {steady[-1]} too"
        return rank, f"rank {rank}, by {', '.join(able[rank])}{dissent}"
    if last in (hidden, error):
        alike = f"; components are alike up to {votes['stability']}" if steady else ""
        return None, f"{last} or more: scan larger ranks{alike}"
    said = (f"{name} says {votes[name] or 'none'}" for name in votes if name in _VOICES)
    return None, f"the evidence is split: {', '.join(said)}"


_VOICES = ("error", "held-out", "stability")


def _count(components: int) -> str:
    return "one component" if components == 1 else f"{components} components"


# ------------------------------------------------------------------------------------ criteria
def times_noise(
    ranks: Sequence[int], left: Sequence[float], shape: tuple[int, int], before: float
) -> Array:
    """What each rank gains over the one before, per component, in times the most noise gives.

    Of what noise leaves, one more component takes at most the square of its largest singular value:
    (sqrt(m) + sqrt(n))^2 of the m n squares. The largest rank tells how much noise there is.
    Source: Marchenko and Pastur 1967; Gavish and Donoho 2014.
    """
    each = np.maximum([before, *left], _ROUNDING)
    steps = np.diff([ranks[0] - 1, *ranks])
    (m, n), most = shape, ranks[-1]
    a_square = each[-1] / (max(m - most, 1) * max(n - most, 1))
    return np.asarray(-np.diff(each) / steps / (a_square * (np.sqrt(m) + np.sqrt(n)) ** 2))


def one_less(
    left: float, WtW: Array, W_total: Array, H: Array, rows: int, squares: bool = True
) -> float:
    """What is left without the weakest direction of W H; at rank 1, by a constant.

    `left` is a share of V's squares, or (`squares` False) of the deviance from its mean.
    """
    HHt = H @ H.T
    whole = float(np.trace(WtW @ HHt))
    constant = float(W_total @ H.sum(axis=1)) ** 2 / (rows * H.shape[1])
    directions = np.linalg.eigvals(WtW @ HHt).real
    weakest = whole - constant if len(H) == 1 else float(directions.min())
    whole -= 0.0 if squares else constant
    return left + (1 - left) * max(weakest, 0.0) / whole if whole > 0 else left


def _by_error(found: list[Evidence], gains: Array) -> tuple[int | None, str]:
    """The last rank that gains more than noise: the noise of theory, or what later ranks gain.

    The theory is of noise that is even. Where it is not, the later ranks show how much more it
    gives, if it is not structure; after the largest rank there are none.
    """
    later = np.append(np.maximum.accumulate(gains[::-1])[::-1][1:], _UNEVEN)
    enough = np.flatnonzero(gains >= _NOISE * np.clip(later, 1.0, _UNEVEN))
    source = "(Marchenko and Pastur 1967, Gavish and Donoho 2014)"
    if not len(enough):
        best = int(gains.argmax())
        return None, (
            f"no rank gains {_NOISE:g} times what noise or later ranks do; the most is "
            f"{gains[best]:.3g} times noise, of rank {found[best].rank} {source}"
        )
    i = int(enough[-1])
    text = f"rank {found[i].rank} leaves {found[i].left:.3g}, a gain of {gains[i]:.3g} times noise"
    if i + 1 < len(found):
        text += f"; later ranks gain at most {later[i]:.3g}"
    return found[i].rank, f"{text} {source}"


def _by_held_out(found: list[Evidence]) -> tuple[int | None, str]:
    """The smallest rank whose error is within one standard error of the least."""
    errors = np.array([one.held_out for one in found])
    means = errors.mean(axis=1)
    best = int(means.argmin())
    above = errors - errors[best]  # seed by seed: runs of one seed have the same entries hidden
    runs = errors.shape[1]
    spread = above.std(axis=1, ddof=1) / np.sqrt(runs) if runs > 1 else np.zeros(len(found))
    i = int(np.flatnonzero(above.mean(axis=1) <= spread)[0])
    text = f"error of hidden entries {means[i]:.4g} at rank {found[i].rank}"
    if i != best:
        text += f", within one standard error of the least, {means[best]:.4g} at {found[best].rank}"
    else:
        text += ", the least"
    return found[i].rank, f"{text} (Wold 1978; Owen and Perry 2009)"


def _by_stability(found: list[Evidence], other: str) -> tuple[int | None, str]:
    """The largest rank whose components are alike in all runs."""
    each = [-1.0 if one.stability is None else one.stability for one in found]
    alike = [i for i, x in enumerate(each) if x >= _ALIKE]
    source = f"({other}; Alexandrov et al. 2013, Nebgen et al. 2021)"
    if not alike:
        i = int(np.argmax(each))
        return None, (
            f"at no rank are all components alike; the least silhouette is at best {each[i]:.2f}, "
            f"at {found[i].rank} {source}"
        )
    i = alike[-1]
    text = f"all components are alike up to rank {found[i].rank}, least silhouette {each[i]:.2f}"
    if less := [found[j].rank for j in range(i) if j not in alike]:
        text += f" (not at {', '.join(map(str, less))})"
    if i + 1 < len(found):
        text += f", {each[i + 1]:.2f} at {found[i + 1].rank}"
    return found[i].rank, f"{text} {source}"


def _by_cophenetic(found: list[Evidence]) -> tuple[int | None, str] | None:
    """The rank after which the cophenetic correlation falls most; of rank 1 it is always 1."""
    found = [one for one in found if one.rank > 1]
    each = [one.cophenetic for one in found if one.cophenetic is not None]
    if not 2 <= len(each) == len(found):
        return None
    i = int(np.diff(each).argmin())
    return found[i].rank, (
        f"the correlation falls most after rank {found[i].rank}, from {each[i]:.3f} to "
        f"{each[i + 1]:.3f} (Brunet et al. 2004)"
    )


def _by_elbow(found: list[Evidence]) -> tuple[int | None, str] | None:
    """The rank where the curve of the error is farthest below the line between its ends."""
    if len(found) < 3:
        return None
    ranks, left = (np.array([getattr(x, name) for x in found], float) for name in ("rank", "left"))
    line = left[0] + (left[-1] - left[0]) * (ranks - ranks[0]) / (ranks[-1] - ranks[0])
    i = int((line - left).argmax())
    return found[i].rank, (
        f"the curve of what is left bends most at rank {found[i].rank}, {left[i]:.4g} "
        "(Satopaa et al. 2011)"
    )
