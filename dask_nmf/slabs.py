"""Rows of a block of V, dense or sparse, with weights or not, and what is summed over them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import csr_array, issparse

from dask_nmf.boxes import as_dense
from dask_nmf.divergences import Beta
from dask_nmf.geometry import SLAB, SPARSE_ROWS, SPARSE_SLAB
from dask_nmf.newton import pair_count, pair_products
from dask_nmf.types import Array

_PAIRS = 2**20  # products of pairs at a time, for sparse rows
_GATHERED = 2**18  # numbers of W, and of H, at a time: fewer make threads wait for each other
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Dense:
    """Rows of V, and the weights of their entries; hidden entries (weight 0) are blank in v."""

    v: Array
    weight: Array | None = None

    def product(self, W: Array, Ht: Array) -> Array:
        return np.asarray(W @ Ht.T)

    def per_row(self, values: Array) -> Array:
        """(s, 1) values, as they go with entries."""
        return np.asarray(np.maximum(values, _TINY))

    def weighted(self, values: Array) -> Array:
        return np.asarray(values if self.weight is None else values * self.weight)

    def times(self, values: Array, F: Array) -> Array:
        """values @ F, (s, p)."""
        return np.asarray(self.weighted(values) @ F)

    def transposed_times(self, values: Array, F: Array) -> Array:
        """values.T @ F, (n, p)."""
        return np.asarray(self.weighted(values).T @ F)

    def pair_sums(self, values: Array, W: Array) -> Array:
        """values.T @ the products of pairs of W's columns, (n, p)."""
        return self.transposed_times(values, pair_products(W))

    def distances(self, loss: Beta, x: Array, W: Array, H_sums: Array) -> Array:
        """The loss of each row."""
        return np.asarray(self.weighted(loss.distance(self.v, x)).sum(axis=1))


@dataclass(frozen=True)
class Sparse:
    """The same of sparse rows, for a loss that is linear in x where V is 0."""

    V: Any

    weight = None

    @cached_property
    def v(self) -> Array:
        return np.asarray(self.V.data, dtype=np.float64)

    @cached_property
    def rows(self) -> Array:
        """Of the entries."""
        return np.repeat(np.arange(self.V.shape[0]), np.diff(self.V.indptr))

    def product(self, W: Array, Ht: Array) -> Array:
        """W @ H at the entries, by pieces that stay in cache."""
        k = W.shape[1]
        size, piece = self.V.nnz, max(1, min(self.V.nnz, _GATHERED // k))
        of_W, of_H, x = np.empty((piece, k)), np.empty((piece, k)), np.empty(size)
        for start in range(0, size, piece):
            part = slice(start, min(start + piece, size))
            w, h = of_W[: part.stop - start], of_H[: part.stop - start]
            np.take(W, self.rows[part], axis=0, out=w, mode="clip")
            np.take(Ht, self.V.indices[part], axis=0, out=h, mode="clip")
            np.einsum("ij,ij->i", w, h, out=x[part])
        return x

    def per_row(self, values: Array) -> Array:
        return np.asarray(np.maximum(values[self.rows, 0], _TINY))

    def _with(self, values: Array) -> Any:
        return csr_array((values, self.V.indices, self.V.indptr), shape=self.V.shape)

    def times(self, values: Array, F: Array) -> Array:
        return np.asarray(self._with(values) @ F)

    def transposed_times(self, values: Array, F: Array) -> Array:
        return np.asarray(self._with(values).T @ F)

    def pair_sums(self, values: Array, W: Array) -> Array:
        V, found = self._with(values), np.zeros((self.V.shape[1], pair_count(W.shape[1])))
        step = max(1, _PAIRS // found.shape[1])
        for start in range(0, len(W), step):
            part = slice(start, start + step)
            found += V[part].T @ pair_products(W[part])
        return found

    def distances(self, loss: Beta, x: Array, W: Array, H_sums: Array) -> Array:
        at_entries = loss.distance(self.v, x) - x
        of_rows: Array = self._with(at_entries).sum(axis=1)
        return np.asarray(of_rows + W @ H_sums)


Slab = Dense | Sparse


def slabs(
    V_b: Any, weights: Array | None, loss: Beta, blank: float, rows: int = 0
) -> Iterator[tuple[slice, Slab]]:
    """Slabs of rows of a block, and where they lie in it. rows : of each; 0: as fits the cache.

    blank : what stands in for entries without weight.
    """
    m, n = V_b.shape
    sparse = issparse(V_b) and loss.linear and weights is None
    per_row = max(1, V_b.nnz // m if sparse else n)
    step = rows or max(1, SLAB // per_row)
    if sparse and not rows:  # thin rows have pairs of components all the same
        step = min(max(1, SPARSE_SLAB // per_row), SPARSE_ROWS)
    for start in range(0, m, step):
        part = slice(start, start + step)
        V_s = V_b[part]
        if sparse:
            yield part, Sparse(V_s)
            continue
        v = as_dense(V_s).astype(np.float64)
        if weights is None:
            yield part, Dense(v)
        else:
            M = weights[part].astype(np.float64)
            yield part, Dense(np.where(M > 0, v, blank), M)
