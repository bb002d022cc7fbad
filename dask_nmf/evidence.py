"""How alike the components of restarts are: what speaks for a rank, or against it."""

import numpy as np
from scipy.cluster.hierarchy import average, cophenet
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import squareform

from dask_nmf.types import Array

_ROUNDS = 100
_COLUMNS = 1000  # of V, at most, for which a consensus is counted


def directions_of(H: Array) -> Array:
    """The rows of H (k, n) as unit vectors; a row of zeros stays."""
    H = np.asarray(H, np.float64)
    norms = np.linalg.norm(H, axis=1, keepdims=True)
    return np.asarray(np.divide(H, norms, out=np.zeros_like(H), where=norms > 0))


def matched(components: list[Array]) -> Array:
    """Which group each component of each run belongs to, (R, k): one of each run in each group.

    Parameters
    ----------
    components : list of (k, n) arrays of unit rows
        The first one's are the groups to begin with: take the best run.

    Notes
    -----
    Source: Alexandrov et al. 2013, supplement (clusters of equal size); matching: Kuhn 1955.
    """
    centres = components[0]
    groups = np.zeros((len(components), len(centres)), dtype=np.intp)
    for _ in range(_ROUNDS):
        before = groups.copy()
        for r, H in enumerate(components):
            own, group = linear_sum_assignment(H @ centres.T, maximize=True)
            groups[r, own] = group
        total = np.zeros_like(centres)
        for r, H in enumerate(components):
            total[groups[r]] += H
        centres = directions_of(total)
        if (groups == before).all():
            break
    return groups


def distances(components: list[Array]) -> Array:
    """1 - cosine between all components of all runs, (R k, R k)."""
    every = np.vstack(components)
    found = np.clip(1 - every @ every.T, 0.0, None)
    np.fill_diagonal(found, 0.0)
    return np.asarray(found)


def silhouettes(apart: Array, groups: Array) -> Array:
    """Of each group the mean silhouette of its members: near 1, alike in all runs; near 0, not.

    apart : (R k, R k) distances. groups : (R, k). Of a single group it is 1 - the mean distance.
    Source: Rousseeuw 1987.
    """
    k, labels = groups.shape[1], groups.ravel()
    member = np.eye(k)[labels]  # (R k, k)
    sizes = member.sum(axis=0)
    sums = apart @ member
    own = sums[np.arange(len(labels)), labels] / np.maximum(sizes[labels] - 1, 1)
    if k == 1:
        return np.array([1 - own.mean()])
    others = np.where(member > 0, np.inf, sums / sizes)
    nearest = others.min(axis=1)
    larger = np.maximum(own, nearest)
    each = np.divide(nearest - own, larger, out=np.zeros_like(own), where=larger > 0)
    return np.asarray((each @ member) / sizes)


def together(Hs: list[Array]) -> Array:
    """The consensus on which columns of V go together: a square of at most 1000 of them.

    Two columns go together in a run if the same component is largest in both; the consensus is the
    share of the runs in which they do.
    Source: Brunet et al. 2004.
    """
    n = Hs[0].shape[1]
    random = np.random.Generator(np.random.Philox(key=np.array([n, 7], dtype=np.uint64)))
    columns = np.sort(random.choice(n, min(n, _COLUMNS), replace=False))
    total = np.zeros((len(columns), len(columns)))
    for H in Hs:
        largest = directions_of(H)[:, columns].argmax(axis=0)
        total += largest[:, None] == largest
    return total / len(Hs)


def cophenetic(shares: Array) -> float:
    """The cophenetic correlation of what `together` gives: 1 where all runs agree.

    Source: Brunet et al. 2004.
    """
    apart = squareform(1 - shares, checks=False)
    if len(apart) < 2 or np.ptp(apart) == 0:
        return 1.0
    return float(cophenet(average(apart), apart)[0])


def consensus(
    components: list[Array], norms: Array, groups: Array, apart: Array, most: float
) -> tuple[Array, int]:
    """The median component of each group, (k, n), without components that have no neighbours.

    In the order of the first run's components, each with the median norm of its group. A component
    is left out whose mean distance to the nearest 30 % of as many as there are runs is above
    `most`; a group that would lose all of them keeps them. Second: how many are left out.
    norms : (R, k). Source: Kotliar et al. 2019 (cNMF), "Determining consensus programs".
    """
    every = np.stack(components)
    near = max(1, round(0.3 * len(components)))
    lone = np.sort(apart, axis=1)[:, 1 : near + 1].mean(axis=1) > most
    rows, used = [], 0
    for group in groups[0]:
        members = groups == group
        kept = members & ~lone.reshape(groups.shape)
        kept = kept if kept.any() else members
        rows.append(np.median(norms[kept]) * directions_of(np.median(every[kept], 0)[None])[0])
        used += int(kept.sum())
    return np.array(rows), groups.size - used


def aligned(components: list[Array], groups: Array) -> Array:
    """The components, (R, k, n), of each run in the order of the first one's."""
    places = np.argsort(groups, axis=1)[:, groups[0]]
    return np.stack([H[own] for H, own in zip(components, places, strict=True)])
