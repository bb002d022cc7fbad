"""What a run returns."""

from dataclasses import asdict, dataclass, field
from typing import Any

import dask.array as da
import numpy as np
from dask.utils import format_bytes, format_time

from dask_nmf.labels import Labels, column_names, dataset, maps
from dask_nmf.options import check_int
from dask_nmf.plans import Plan
from dask_nmf.stopping import Status
from dask_nmf.tables import as_html, ends, facts_as_html
from dask_nmf.types import AnyArray, DaskArray, SweepRecord


def _selection(name: str, index: Any, size: int) -> Any:
    """What dask takes, or an error that names the argument."""
    if isinstance(index, slice):
        return index
    found = np.asarray(index)
    kind, longest = found.dtype.kind, found.ndim <= 1
    good = longest and (kind in "iu" or (kind == "b" and found.shape == (size,)) or not found.size)
    if not good or (kind in "iu" and found.size and not -size <= found.min() <= found.max() < size):
        raise IndexError(
            f"{name} must be a slice, ints from {-size} to {size - 1}, or {size} bools, got "
            f"{index!r}"
        )
    return np.atleast_1d(found if found.size else found.astype(int))


@dataclass(frozen=True)
class Result:
    """The factors and how they were found.

    Attributes
    ----------
    W : (m, k) dask array
        Lazy: over the zarr array in `out`, or the blocks in the workers' memory.
    H : (k, n) numpy array
        A dask array where it was the large factor (``plan.transposed``) and is above 256 MiB.
    history : tuple of SweepRecord
        One per sweep.
    status : Status
        Why the run stopped; ``status.value`` is the sentence.
    parameters : dict
        The arguments as they were understood, JSON types.
    dead : int
        Components that ended as zero: the rank in use is this much smaller.
    out : str or None
        Where the results lie.
    plan : Plan
        What the run did with V.
    resumed_from : int or None
        Passes over V that earlier calls had made, when this call went on from them.
    labels : Labels or None
        Of V's rows and columns, where it had any.

    Examples
    --------
    >>> import dask_nmf
    >>> result = dask_nmf.factorize(np.outer([1.0, 2, 3], [4.0, 5]), rank=1)
    >>> result.reconstruct(rows=2).compute().round(6)
    array([[12., 15.]])
    >>> result.summary()["converged"]
    True
    """

    W: DaskArray
    H: AnyArray
    history: tuple[SweepRecord, ...]
    status: Status
    parameters: dict[str, Any]
    dead: int = 0
    out: str | None = None
    plan: Plan | None = None
    resumed_from: int | None = None
    labels: Labels | None = field(default=None, repr=False, compare=False)

    @property
    def error(self) -> float:
        """||V - W @ H|| / ||V||."""
        return self.history[-1].error

    def reconstruct(
        self, rows: Any = slice(None), columns: Any = slice(None), block_bytes: int = 2**26
    ) -> DaskArray:
        """(W @ H)[rows, columns] as a dask array: lazy, so of any part, and never whole.

        Parameters
        ----------
        rows, columns : slice, or array of int or bool
            An int takes one row or column, as a slice of that does.
        block_bytes : int
            About so large are its blocks.

        Raises
        ------
        IndexError
            If they are not of V's shape.
        """
        rows = _selection("rows", rows, self.W.shape[0])
        columns = _selection("columns", columns, self.H.shape[1])
        W, H = self.W[rows], self.H[:, columns]
        if not isinstance(H, da.Array):
            height = max(1, max(W.chunks[0], default=1))
            H = da.from_array(H, chunks=(len(H), max(1, block_bytes // (height * W.itemsize))))
        return da.matmul(W, H.rechunk({0: -1}))

    def to_xarray(self) -> Any:
        """The factors as an xarray.Dataset, with the dimensions and coordinates that V had.

        W (*dims, component) is folded back to V's sample dimensions, and lazy; H is (component,
        column). "row" and "column" are the names where V had none, "obs" and "var" for AnnData.

        Raises
        ------
        ImportError
            If xarray is not installed.

        Examples
        --------
        >>> import numpy as np, xarray
        >>> from dask_nmf import factorize
        >>> cube = xarray.DataArray(np.ones((6, 4, 5)), dims=("band", "y", "x"))
        >>> factorize(cube, rank=1, feature_dim="band").to_xarray().W.dims
        ('y', 'x', 'component')
        """
        labels = self.labels or Labels()
        told = {"error": self.error, "status": self.status.name.lower()}
        factors = {"W": maps(self.W, labels), "H": (("component", labels.column), self.H)}
        return dataset(factors, labels, told)

    def top_features(self, n: int = 10, names: Any = None) -> Any:
        """The columns with the largest entries of each component, largest first.

        Parameters
        ----------
        n : int
            So many of each component, or as many as are not zero.
        names : sequence, optional
            Of all columns. None: the coordinate that V had, or the genes of AnnData; where there
            are none, the columns' numbers.

        Returns
        -------
        pandas.DataFrame
            With the columns component, feature, weight; without pandas, a list of such dicts.

        Raises
        ------
        TypeError, ValueError
            If there is not a name for each column, or n is below 1.
        """
        check_int("n", n, 1)
        H = np.asarray(self.H)
        found = column_names(self.labels) if names is None else np.asarray(names)
        found = np.arange(H.shape[1]) if found is None else found
        if found.shape != H.shape[1:]:
            raise ValueError(f"names must be {H.shape[1]}, one per column, got shape {found.shape}")
        order = np.argsort(-H, axis=1, kind="stable")[:, :n]
        rows = [
            {"component": k, "feature": found[j], "weight": h[j]}
            for k, h in enumerate(H)
            for j in order[k]
            if h[j] > 0
        ]
        return as_table(rows, ("component", "feature", "weight"))

    def summary(self) -> dict[str, Any]:
        """The outcome as a flat dict of JSON types, for logs and orchestrators."""
        last = self.history[-1]
        return {
            "status": self.status.name.lower(),
            "why": self.status.value,
            "converged": self.status.converged,
            "error": last.error,
            "sweeps": last.sweep,
            "passes": last.passes,
            "seconds": last.seconds,
            "bytes_read": last.bytes_read,
            "dead_components": self.dead,
            "resumed_from": self.resumed_from,
            "out": self.out,
            "rows": self.parameters["shape"][0],
            "columns": self.parameters["shape"][1],
            **{k: v for k, v in self.parameters.items() if k != "shape"},
        }

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line of the table that a notebook shows."""
        (m, n), last = self.parameters["shape"], self.history[-1]
        facts = [
            ("V", f"{m:,} x {n:,} {self.W.dtype}"),
            ("rank", f"{len(self.H)}" + (f", {self.dead} of them ended as zero" * bool(self.dead))),
            ("error", f"{last.error:.6g}"),
            ("status", f"{self.status.name.lower()}: {self.status.value}"),
            ("passes", f"{last.passes}, for {last.sweep} sweeps"),
            ("time", f"{format_time(last.seconds)}, {format_bytes(last.bytes_read)} read"),
            ("results", self.out or "in memory"),
        ]
        if last.held_out is not None:
            facts.insert(3, ("error of hidden entries", f"{last.held_out:.6g}"))
        return facts

    def _repr_html_(self) -> str:
        history = as_html(ends([asdict(record) for record in self.history]))
        folded = {"history": history, "parameters": facts_as_html(self.parameters.items())}
        return facts_as_html(self.rows()) + "".join(
            f"<details><summary>{name}</summary>{table}</details>" for name, table in folded.items()
        )

    def __repr__(self) -> str:
        m, n = self.parameters["shape"]
        dead = f" ({self.dead} components are zero)" if self.dead else ""
        return (
            f"<Result: V ({m}, {n}) = W @ H, rank {len(self.H)}{dead}, error {self.error:.6g} "
            f"after {len(self.history)} sweeps ({self.history[-1].passes} passes); "
            f"{self.status.value}>"
        )


def last_loss(result: Result) -> float:
    """What restarts are compared by: with penalties the objective, else the error."""
    last = result.history[-1]
    return last.error if last.objective is None else last.objective


def of_squares(result: Result) -> bool:
    """Whether its error is that of squares, rather than of another divergence."""
    return result.parameters["loss"] in ("frobenius", 2.0)


def as_table(rows: list[dict[str, Any]], columns: tuple[str, ...] | None = None) -> Any:
    """A DataFrame, if pandas is there; else the rows."""
    try:
        from pandas import DataFrame
    except ImportError:
        return rows
    return DataFrame(rows, columns=None if columns is None else list(columns))
