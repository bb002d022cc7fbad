"""What a scan returns: all its results, and what they say about the rank."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from statistics import median
from typing import Any

import dask
import numpy as np

from dask_nmf.evidence import (
    consensus,
    cophenetic,
    directions_of,
    distances,
    matched,
    silhouettes,
    together,
)
from dask_nmf.result import Result, as_table, last_loss, of_squares
from dask_nmf.suggesting import Evidence, Suggestion, one_less, suggest
from dask_nmf.tables import as_html, as_text
from dask_nmf.types import Array, DaskArray

_HEARD = 0.75  # of the runs of a rank, those that have a say in `suggest`


@dataclass(frozen=True)
class _Alike:
    """The components of a rank's runs, best run first, and how they go together."""

    components: list[Array]
    norms: Array
    groups: Array
    apart: Array

    @cached_property
    def agreement(self) -> float:
        """See `evidence.cophenetic`."""
        return cophenetic(together(self.components))


@dataclass(frozen=True, eq=False)
class Consensus:
    """What the runs of a rank have in common.

    Attributes
    ----------
    H : (k, n) array
        The median components, in the order of the best run's, and as long as the runs' are.
    left_out : int
        Components of the runs that are in no median, as too little is like them.

    Examples
    --------
    >>> import dask_nmf
    >>> V = np.kron(np.eye(2), np.ones((20, 5))) + 0.1
    >>> agreed = dask_nmf.scan(V, [2], restarts=3).consensus(2)
    >>> agreed.H.shape, agreed.W.shape, agreed.left_out
    ((2, 10), (40, 2), 0)
    """

    H: Array
    left_out: int
    _refit: Callable[[Array], DaskArray] | None = field(default=None, repr=False)

    @cached_property
    def W(self) -> DaskArray:
        """(m, k), as `transform` finds it for H with the runs' loss, weights and penalties: lazy.

        Computed, it costs one pass over V.

        Raises
        ------
        ValueError
            If the `Scan` was made by hand.
        """
        if self._refit is None:
            raise ValueError("W needs V, which only a Scan by scan() has: use transform(V, H)")
        return self._refit(self.H)


@dataclass(frozen=True)
class Scan:
    """The results of `scan`.

    Attributes
    ----------
    results : dict of tuple of Result
        By rank, in the order of the seeds.

    Examples
    --------
    >>> import dask_nmf
    >>> V = np.kron(np.eye(2), np.ones((20, 5))) + 0.1
    >>> found = dask_nmf.scan(V, [1, 2], restarts=2)
    >>> found.best(2).error < found.best(1).error, len(found.runs(2))
    (True, 2)
    """

    results: dict[int, tuple[Result, ...]]
    _refit: Callable[[Array], DaskArray] | None = field(default=None, repr=False, compare=False)
    _alike: dict[int, _Alike] = field(default_factory=dict, repr=False, compare=False)

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(self.results)

    def runs(self, rank: int) -> tuple[Result, ...]:
        """The results of a rank, the one with the lowest loss first."""
        if rank not in self.results:
            raise KeyError(f"rank must be one of {list(self.results)}, got {rank!r}")
        return tuple(sorted(self.results[rank], key=last_loss))

    def best(self, rank: int) -> Result:
        """The result with the lowest loss."""
        return self.runs(rank)[0]

    def stability(self, rank: int) -> Array:
        """Of each component of the best run, how alike it is in all others: 1, the same.

        Raises
        ------
        ValueError
            If there is one run only.
        """
        alike = self._of(rank)
        found = silhouettes(alike.apart, alike.groups)
        return np.asarray(found[alike.groups[0]])

    def consensus(self, rank: int, most: float = 0.5) -> Consensus:
        """The median components of the runs, and W for them.

        most : mean cosine distance to its nearest neighbours above which a component is left out.
        Source: Kotliar et al. 2019 (cNMF).
        """
        alike = self._of(rank)
        found = consensus(alike.components, alike.norms, alike.groups, alike.apart, most)
        return Consensus(*found, self._refit)

    def suggest(self) -> Suggestion:
        """A rank and the reasons for it; or none, where they disagree or there is no structure.

        Best from runs that have other entries hidden each, of ranks from 1 to some beyond what is
        expected: ``scan(V, range(1, 13), restarts=10, held_out=0.05)``. What runs learn from noise
        then differs; by their starts alone, or by a V that is perturbed a little, it may be alike
        in all. For counts also ``loss="kullback-leibler"``, whose noise is even.

        Raises
        ------
        ValueError
            If there is one rank only, or one run of each without held-out entries.

        Notes
        -----
        Cost: no read of V, one of the W of one run. The quarter of the runs of a rank with the
        highest loss has no say in its stability: those are where the solver was stuck.
        """
        lowest = min(self.ranks)
        best = self.best(lowest)
        rows, columns = best.parameters["shape"]
        squares = of_squares(best)
        W, H = best.W.astype(np.float64), np.asarray(best.H, np.float64)
        WtW, W_total = dask.compute(W.T @ W, W.sum(axis=0))
        every = [self._evidence(rank, squares) for rank in self.ranks]
        left = next(one.left for one in every if one.rank == lowest)
        before = one_less(left, WtW, W_total, H, rows, squares)
        return suggest(every, (rows, columns), before, _difference(best.parameters))

    def _evidence(self, rank: int, squares: bool) -> Evidence:
        runs = self.runs(rank)
        error = min(result.error for result in runs)
        hidden = [x for one in self.results[rank] if (x := one.history[-1].held_out) is not None]
        stability, agreement = None, None
        if len(runs) > 1:
            components = self._of(rank).components[: max(2, ceil(len(runs) * _HEARD))]
            found = silhouettes(distances(components), matched(components))
            stability = float(found.min())
            agreement = self._of(rank).agreement
        left = error**2 if squares else error
        return Evidence(rank, left, stability, agreement, tuple(hidden))

    def table(self) -> Any:
        """A row for each rank: losses, stability, and what it cost.

        A pandas.DataFrame with the rank as its index; without pandas, a list of dicts.

        error, error_median, error_worst : of the runs. held_out : the least, of hidden entries.
        stability, stability_least : mean and least silhouette of the components' groups.
        cophenetic : see `evidence.cophenetic`. converged : runs that did. passes : of the longest.
        """
        found = as_table(self.rows())
        if isinstance(found, list):
            return found
        return found.set_index("rank").astype({"held_out": float})

    def rows(self) -> list[dict[str, Any]]:
        """What `table` is made of: a dict of plain numbers for each rank."""
        return [self._row(rank) for rank in self.results]

    def _row(self, rank: int) -> dict[str, Any]:
        runs = self.runs(rank)
        errors = [result.error for result in runs]
        hidden = [x for result in runs if (x := result.history[-1].held_out) is not None]
        row: dict[str, Any] = {
            "rank": rank,
            "runs": len(runs),
            "error": min(errors),
            "error_median": median(errors),
            "error_worst": max(errors),
            "held_out": min(hidden) if hidden else None,
        }
        if len(runs) > 1:
            found = self.stability(rank)
            row |= {"stability": float(found.mean()), "stability_least": float(found.min())}
            row["cophenetic"] = self._of(rank).agreement
        row["converged"] = sum(result.status.converged for result in runs)
        row["passes"] = max(result.history[-1].passes for result in runs)
        return row

    def _of(self, rank: int) -> _Alike:
        runs = self.runs(rank)
        if len(runs) < 2:
            raise ValueError("stability needs restarts >= 2: one run has nothing to compare with")
        if rank not in self._alike:
            Hs = [np.asarray(result.H, np.float64) for result in runs]
            norms = np.array([np.linalg.norm(H, axis=1) for H in Hs])
            components = [directions_of(H) for H in Hs]
            groups, apart = matched(components), distances(components)
            self._alike[rank] = _Alike(components, norms, groups, apart)
        return self._alike[rank]

    def __repr__(self) -> str:
        rows = [row | {"rank": f"rank {row['rank']}"} for row in self.rows()]
        return f"<Scan of ranks {', '.join(map(str, self.results))}>\n{as_text(rows)}"

    def _repr_html_(self) -> str:
        return as_html(self.rows())


def _difference(parameters: dict[str, Any]) -> str:
    """How the runs of a rank differ, in words."""
    told = ["other starts"]
    if perturb := parameters.get("perturb"):
        told.append(f"V perturbed by up to {100 * perturb:g} %")
    if held_out := parameters.get("held_out"):
        told.append(f"other {100 * held_out:g} % of V hidden")
    return ", ".join(told)
