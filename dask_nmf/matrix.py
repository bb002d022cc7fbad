"""V behind one door, and how its blocks are read: zarr, dask, numpy or sparse; with weights."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal
from weakref import WeakValueDictionary

import dask.array as da
import numpy as np
import zarr

from dask_nmf.blocks import Grid
from dask_nmf.boxes import Boxes, Checked, Transposed, as_block, as_dense, check_entries
from dask_nmf.csr import CSR, index_dtype, row_slabs
from dask_nmf.devices import cast, dtype_of, is_on_device, on_host
from dask_nmf.draws import Drawn, perturbed, shown, without_unweighted
from dask_nmf.labels import Labels
from dask_nmf.layout import is_mapped, stored_share
from dask_nmf.reader import Reader
from dask_nmf.sparse import not_as_told, regrouped, unlike
from dask_nmf.stream import from_boxes
from dask_nmf.types import AnyArray, Array, DaskArray, FirstPass, working_dtype

_SLAB_BYTES = 2**22  # of a block in float64, that is checked beside its weights

Missing = Literal["error", "zero", "nan"]


@dataclass(frozen=True)
class Shared:
    """What runs have in common that go over V in step.

    passing : blocks of V, and products of them, until the pass is over. held : V in the workers'
    memory, if it was here. first : what first passes have found, as long as a run needs it.
    """

    passing: dict[Any, Any] = field(default_factory=dict)
    held: dict[Any, "Matrix"] = field(default_factory=dict)
    first: WeakValueDictionary[Any, FirstPass] = field(default_factory=WeakValueDictionary)


@dataclass(frozen=True)
class Matrix:
    """V (m, n) behind one door; its transpose behind another of the same kind.

    Attributes
    ----------
    source : zarr.Array, dask array, numpy array or CSR
    shape : (int, int)
        Of what is streamed: of V.T if transposed.
    uri : str
        Where it lies, for people and for comparing with `out`.
    strict : bool
        Whether a chunk that the store does not hold is an error.
    transposed : bool
        Whether it is the source's transpose.
    kept : dask array, optional
        The first row blocks, which the workers keep decoded.
    checked : bool
        Whether an entry that is NaN, infinite or negative is an error wherever it is read.
    weights : Matrix, optional
        Of each entry; where that is 0 the entry is not looked at.
    nan : bool
        Whether NaN is an entry that is missing.
    name : str
        Of the argument, for people.
    nnz : int, optional
        Entries of a sparse V; of a dask array as if 10 % were there.
    shared : Shared, optional
        What several runs make of it together.
    drawn : Drawn, optional
        Noise on its entries, and which of them a run does not see.
    flipped : bool
        Whether the rows of the source, in the workers' memory, are V's columns.
    block : array, optional
        The only block there is, if it is at hand.
    labels : Labels, optional
        What V's rows and columns are.
    """

    source: Any
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    uri: str
    strict: bool = True
    transposed: bool = False
    kept: Any = None
    checked: bool = True
    weights: "Matrix | None" = None
    nan: bool = False
    name: str = "V"
    nnz: int | None = None
    shared: "Shared | None" = None
    drawn: Drawn | None = None
    flipped: bool = False
    block: AnyArray | None = None
    labels: Labels | None = None

    @property
    def missing(self) -> Missing:
        """The option that it was opened with."""
        return "nan" if self.nan else "error" if self.strict else "zero"

    @property
    def partial(self) -> bool:
        """Whether its entries have weights."""
        held_out = self.drawn is not None and self.drawn.held_out > 0
        return self.nan or self.weights is not None or held_out

    @property
    def weight_bytes(self) -> int:
        """Beside each entry of a block: its weight; and of a sparse V what is made dense for it."""
        return (24 if self.sparse else 8) if self.partial else 0

    @property
    def unchecked(self) -> "Matrix":
        """The same, whatever its entries."""
        return replace(self, checked=False)

    @property
    def T(self) -> "Matrix":
        weights = None if self.weights is None else self.weights.T
        found = replace(self, shape=self.shape[::-1], transposed=not self.transposed)
        return replace(found, weights=weights)

    @property
    def sparse(self) -> bool:
        """Whether its blocks are csr_arrays."""
        return self.nnz is not None

    @property
    def nbytes(self) -> int:
        """Decoded; of a sparse one, as CSR."""
        if self.nnz is not None:
            return self._csr_bytes(self.nnz)
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def _csr_bytes(self, nnz: int) -> int:
        return nnz * (self.dtype.itemsize + index_dtype(self.shape[1]).itemsize)

    @property
    def kept_bytes(self) -> int:
        """Of the source that later passes need not read."""
        if self.kept is None:
            return 0
        if isinstance(self.source, CSR):
            return self._csr_bytes(int(self.source.indptr[self.kept.shape[0]]))
        return int(self.kept.size) * self.dtype.itemsize

    @property
    def in_memory(self) -> bool:
        return not self.stored and isinstance(self.source, (np.ndarray, CSR))

    @property
    def stored(self) -> bool:
        """Whether it lies in a zarr store, rather than in memory or behind a dask graph."""
        return self.source.stored if self._csr else isinstance(self.source, zarr.Array)

    @property
    def _csr(self) -> bool:
        return isinstance(self.source, CSR)

    @property
    def mapped(self) -> bool:
        """Whether the page cache keeps its blocks as they are."""
        return self.stored and (self.source.mapped if self._csr else is_mapped(self.source))

    @cached_property
    def stored_share(self) -> tuple[float, float] | None:
        """Stored over decoded bytes, mean and maximum over some chunks, where that is known."""
        if self._csr:
            share: tuple[float, float] | None = self.source.stored_share
            return share
        return stored_share(self.source) if self.stored else None

    def blocks(self, grid: Grid, dtype: np.dtype[Any] | None = None) -> DaskArray:
        """A dask array of these blocks; None: the working dtype.

        Its keys are unique, so that it is always read again; of a shared V, in the next pass.
        """
        dtype = dtype or working_dtype(self.dtype)
        if self.block is not None:
            return self.block
        V = self._shared_blocks(grid, dtype)
        if self.drawn is None or not self.drawn.perturb:
            return V
        told = {"meta": np.empty((0, 0), dtype), "dtype": dtype}
        return V.map_blocks(perturbed, self.drawn, self._flipped, token="nmf-perturb", **told)

    def _shared_blocks(self, grid: Grid, dtype: np.dtype[Any]) -> DaskArray:
        key = self.name, self.transposed, self.checked, grid, dtype
        V: DaskArray = self.in_pass(key, lambda: self._blocks(grid, dtype))
        return V

    def in_pass(self, key: Any, make: Callable[[], Any]) -> Any:
        """What is made once in a pass, for all runs that share it."""
        if self.shared is None:
            return make()
        if key not in self.shared.passing:
            self.shared.passing[key] = make()
        return self.shared.passing[key]

    def only_once(self, first: FirstPass, key: Any) -> FirstPass:
        """The sketch of a first pass, or the same one that another run has in memory."""
        if self.shared is None or first.sketch is None:
            return first
        return self.shared.first.setdefault((key, self.transposed, self.drawn), first)

    @property
    def _flipped(self) -> bool:
        """Whether the rows of what is streamed are V's columns."""
        return self.transposed or self.flipped or (self._csr and self.source.of_transpose)

    def _blocks(self, grid: Grid, dtype: np.dtype[Any]) -> DaskArray:
        if self.sparse:
            assert not self.transposed, "only rows of what is stored can be read"
            if isinstance(self.source, da.Array):
                return regrouped(self.source, grid.heights, dtype, self.checked)
            return self._with_kept(self.source.blocks(grid.heights, dtype, self.checked))
        if isinstance(self.source, da.Array):
            told = {"dtype": self.source.dtype, "meta": np.empty((0, 0), self.source.dtype)}
            V = self.source.map_blocks(_as_told, self.source.dtype, **told)
            V = (V.T if self.transposed else V).rechunk(grid.chunks)
            meta = np.empty((0, 0), dtype)
            if not self.checked:
                return V.map_blocks(as_block, dtype, dtype=dtype, meta=meta)
            told = {"dtype": dtype, "meta": meta}
            return V.map_blocks(_as_checked_block, self.transposed, self.name, **told)
        boxes: Any = Boxes(self.source, dtype)
        if isinstance(self.source, zarr.Array):
            boxes = Reader(self.source, dtype, self.strict)
        if self.checked:
            boxes = Checked(boxes, self.name)
        return self._with_kept(
            from_boxes(Transposed(boxes) if self.transposed else boxes, grid.chunks)
        )

    def _with_kept(self, V: DaskArray) -> DaskArray:
        if self.kept is None:
            return V
        if self.kept.shape == V.shape:
            return self.kept
        return da.concatenate([self.kept, V.blocks[self.kept.numblocks[0] :]])

    def observed(self, grid: Grid) -> tuple[DaskArray, DaskArray | None]:
        """V's blocks, and those of its weights where entries have any: 0 is not there.

        All on the host, where entries are looked at one by one.
        """
        if isinstance(self.source, da.Array) and not self.sparse:
            told = {"meta": np.empty((0, 0), self.dtype), "dtype": self.dtype}
            self = replace(self, source=self.source.map_blocks(on_host, **told))
        if not self.partial:
            return self.blocks(grid), None
        V, M = self.blocks(grid), None
        told = {"meta": np.empty((0, 0), V.dtype), "dtype": V.dtype}
        if self.nan or self.weights is not None:
            V = self.unchecked.blocks(grid)
            M = None if self.weights is None else self.weights.blocks(grid)
            if self.nan:
                M = V.map_blocks(_there, *(() if M is None else (M,)), token="nmf-there", **told)
            V = V.map_blocks(_checked_where, M, self._flipped, token="nmf-check", **told)
        if self.drawn is not None and self.drawn.held_out:
            if M is not None:
                V = V.map_blocks(without_unweighted, M, token="nmf-there", **told)
            M = V.map_blocks(shown, M, self.drawn, self._flipped, token="nmf-hide", **told)
        return V, M

    def keep(self, grid: Grid, blocks: int) -> "Matrix":
        """Read the first row blocks now, and keep them in the workers' memory."""
        if not blocks:
            return self
        plain = replace(self.unchecked if self.partial else self, drawn=None)
        return replace(self, kept=plain.blocks(grid).blocks[:blocks].persist())

    def held_by_workers(self, grid: Grid) -> "Matrix":
        """A V in memory sent to the workers of a cluster once, instead of with every pass."""
        if self.shared is not None:
            key = self.name, self.transposed, grid
            if key not in self.shared.held:
                found = replace(self, shared=None, drawn=None).held_by_workers(grid)
                self.shared.held[key] = replace(found, shared=self.shared)
            return replace(self.shared.held[key], drawn=self.drawn)
        if self.weights is not None:
            weights = self.weights.held_by_workers(grid)
            return replace(replace(self, weights=None).held_by_workers(grid), weights=weights)
        if not self.in_memory:
            return self
        if self.sparse:
            plain = replace(self, drawn=None).blocks(grid)
            return replace(self, source=plain.persist(), checked=False, flipped=self._flipped)
        V = self.source.T if self.transposed else self.source
        rows, columns = (np.cumsum(sizes)[:-1] for sizes in grid.chunks)
        parts = [
            [
                da.from_array(part, chunks=part.shape, name=False)
                for part in np.split(row, columns, 1)
            ]
            for row in np.split(V, rows)
        ]
        held = da.block(parts).persist()
        return replace(self, source=held, transposed=False, flipped=self._flipped)


def _as_told(x: Any, dtype: np.dtype[Any], block_info: Any = None) -> AnyArray:
    """A block of a dask array as a plain array, if it is what the array says that it is."""
    shape, wrong, there = block_info[None]["chunk-shape"], "", is_on_device(x)
    if isinstance(x, np.ma.MaskedArray) or not (there or isinstance(x, np.ndarray)):
        wrong = f"is a {type(x).__name__}, not a dense numpy array"
    if wrong := wrong or unlike(x, shape, dtype):
        raise not_as_told(block_info[0]["chunk-location"], wrong)
    # No subclass: np.matrix multiplies in its own way.
    return cast(x, dtype) if there else np.asarray(x, dtype)


def _as_checked_block(x: AnyArray, transposed: bool, name: str, block_info: Any = None) -> AnyArray:
    block = as_block(x, working_dtype(dtype_of(x)))
    if block_info:
        rows, columns = (start for start, _ in block_info[0]["array-location"])
        whole = (block.T, (columns, rows)) if transposed else (block, (rows, columns))
        check_entries(*whole, name=name)
    return block


def _there(V_b: Any, M_b: Array | None = None) -> Array:
    """The weights: 0 where V is NaN."""
    there = ~np.isnan(as_dense(V_b))
    return np.asarray(there if M_b is None else np.where(there, M_b, 0), V_b.dtype)


def _checked_where(V_b: Any, M_b: Array, transposed: bool, block_info: Any = None) -> Any:
    """V_b, if what has a weight there is finite and non-negative."""
    if block_info:
        rows, columns = (start for start, _ in block_info[0]["array-location"])
        for slab in row_slabs(M_b, _SLAB_BYTES):
            seen, row = np.where(M_b[slab] > 0, as_dense(V_b[slab]), 0), rows + slab.start
            whole = (seen.T, (columns, row)) if transposed else (seen, (row, columns))
            check_entries(np.ascontiguousarray(whole[0]), whole[1])
    return V_b
