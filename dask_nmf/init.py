"""Starts: W0 and H0 from (seed, shape, rank) and at most a few passes, never from the chunks."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import dask.array as da
import numpy as np
import zarr

from dask_nmf.blocks import Grid
from dask_nmf.geometry import FAN_IN
from dask_nmf.io import open_matrix
from dask_nmf.stream import from_rows, gram, matmul
from dask_nmf.types import Array, DaskArray, Once, Sums, at_once
from dask_nmf.watch import compute, hold

_STREAM_ROWS = 4096  # one random stream per so many rows
_DRAWN_AT_ONCE = 2**23  # entries of W
_OVERSAMPLE = 10  # directions more than asked for, which make the asked ones accurate
_W, _H, _SKETCH, _FILL_W, _FILL_H = range(5)  # what a stream is for


class Start(Protocol):
    """What the engine asks of a start."""

    @property
    def passes(self) -> int:
        """Reads of V it costs, beside the first pass."""
        ...

    @property
    def blind(self) -> bool:
        """Whether it knows nothing of V: a sketch of V then makes a better H of it."""
        ...

    def check(self, shape: tuple[int, int], rank: int) -> None:
        """Refuse what can be refused before V is read."""
        ...

    def width(self, rank: int) -> int:
        """Columns of the (m, width) array that it holds in the workers' memory."""
        ...

    def factors(
        self,
        V: DaskArray,
        rank: int,
        sums: Sums,
        seed: int,
        transposed: bool = False,
        once: Once = at_once,
    ) -> tuple[DaskArray, Array]:
        """W0 (m, k) with V's row blocks, lazy, and H0 (k, n); V.T's, if V is the transpose.

        What a pass over V gives is made by way of `once`: a call that resumes finds it.
        """
        ...


# --------------------------------------------------------------------------------- random
@dataclass(frozen=True)
class NormalRows:
    """scale * |N(0, 1)| of shape (m, k), made when sliced by rows; the same on any chunks.

    Rows come from counter-based streams (Philox) keyed by seed, purpose and block of 4096 rows.
    """

    shape: tuple[int, int]
    scale: float
    seed: int
    purpose: int
    dtype: np.dtype[Any]
    ndim: int = 2

    def __getitem__(self, index: Any) -> Array:
        rows = index[0] if isinstance(index, tuple) else index
        start, stop, _ = rows.indices(self.shape[0])
        first, last = start // _STREAM_ROWS, -(-stop // _STREAM_ROWS)
        drawn = np.concatenate([self._stream(block) for block in range(first, last)])
        offset = first * _STREAM_ROWS
        values: Array = self.scale * np.abs(drawn[start - offset : stop - offset])
        return values.astype(self.dtype)

    def _stream(self, block: int) -> Array:
        key = np.array([self.seed, self.purpose << 48 | block], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        return generator.standard_normal((_STREAM_ROWS, self.shape[1]))


@dataclass(frozen=True)
class Random:
    """sqrt(mean(V) / k) * |N(0, 1)|: scikit-learn's scale, so that W0 @ H0 is about V's size.

    Notes
    -----
    Cost: no pass beside the first one, which every run makes.

    Examples
    --------
    >>> import dask_nmf
    >>> dask_nmf.factorize(np.ones((6, 4)), 1, init=Random()).parameters["init"]
    'Random()'
    """

    passes: ClassVar[int] = 0
    blind: ClassVar[bool] = True

    def check(self, shape: tuple[int, int], rank: int) -> None:
        """Any shape and rank will do."""

    def width(self, rank: int) -> int:
        return 0

    def factors(
        self,
        V: DaskArray,
        rank: int,
        sums: Sums,
        seed: int,
        transposed: bool = False,
        once: Once = at_once,
    ) -> tuple[DaskArray, Array]:
        (m, n), scale = V.shape, float(np.sqrt(sums.total / (sums.weight or V.size) / rank))
        for_W, for_H = (_H, _W) if transposed else (_W, _H)
        W = NormalRows((m, rank), scale, seed, for_W, V.dtype)
        H = NormalRows((n, rank), scale, seed, for_H, V.dtype)
        return from_rows(W, V.chunks[0]), np.ascontiguousarray(H[:].T)


@dataclass(frozen=True)
class ScikitRandom(Random):
    """The numbers that scikit-learn draws, where W is so small that it can be drawn in one piece.

    Else those of `Random`: in either case a function of (seed, shape, rank).
    """

    def factors(
        self,
        V: DaskArray,
        rank: int,
        sums: Sums,
        seed: int,
        transposed: bool = False,
        once: Once = at_once,
    ) -> tuple[DaskArray, Array]:
        """As `Start.factors`."""
        m, n = V.shape[::-1] if transposed else V.shape
        if m * rank > _DRAWN_AT_ONCE or seed >= 2**32:
            return super().factors(V, rank, sums, seed, transposed, once)
        normal = np.random.RandomState(seed).standard_normal
        scale = np.sqrt(sums.total / (m * n) / rank)
        H = np.abs(scale * normal((rank, n))).astype(V.dtype)
        W = np.abs(scale * normal((m, rank))).astype(V.dtype)
        W, H = (H.T, W.T) if transposed else (W, H)
        chunks = (V.chunks[0], rank)
        return da.from_array(W, chunks=chunks, name=False), np.ascontiguousarray(H)


# --------------------------------------------------------------------------------- NNDSVD
@dataclass(frozen=True)
class NNDSVD:
    """The positive parts of V's leading singular triplets.

    Parameters
    ----------
    fill : {None, "mean", "random"}
        What replaces zeros, which MU could never leave: nothing ("nndsvd"), mean(V) ("nndsvda"),
        or mean(V) / 100 * |N(0, 1)| ("nndsvdar").
    power : int
        Subspace iterations, one read of V each.

    Notes
    -----
    Cost: power + 1 passes, and m (k + 10) numbers in the workers' memory.
    Source: Boutsidis and Gallopoulos 2008; the range finder with V.T @ (V @ Q) from one read:
    Halko, Martinsson and Tropp 2011, algorithm 4.4.

    Examples
    --------
    >>> import dask_nmf
    >>> V = np.outer(np.arange(1.0, 7), np.arange(1.0, 5))
    >>> found = dask_nmf.factorize(V, 1, init=NNDSVD(power=1))
    >>> bool(found.error < 1e-9), found.history[0].passes >= 3
    (True, True)
    """

    fill: str | None = "mean"
    power: int = 2
    blind: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.fill not in (None, "mean", "random"):
            raise ValueError(f"fill must be None, 'mean' or 'random', got {self.fill!r}")
        if not isinstance(self.power, int) or self.power < 1:
            raise ValueError(f"power must be an int >= 1, got {self.power!r}")

    @property
    def passes(self) -> int:
        return self.power + 1

    def check(self, shape: tuple[int, int], rank: int) -> None:
        if rank > min(shape):
            raise ValueError(
                f"init = {self!r} can only be used when rank <= min(m, n) = {min(shape)}, got "
                f"rank {rank}: use init='random'"
            )

    def width(self, rank: int) -> int:
        return rank + _OVERSAMPLE

    def factors(
        self,
        V: DaskArray,
        rank: int,
        sums: Sums,
        seed: int,
        transposed: bool = False,
        once: Once = at_once,
    ) -> tuple[DaskArray, Array]:
        U, singular, Rt = singular_triplets(V, rank, seed, self.power, once=once)
        halves = [da.maximum(sign * U, 0) for sign in (1, -1)]
        U_squares = [(half**2).sum(axis=0, split_every=FAN_IN) for half in halves]
        U_norms = np.sqrt(compute(*U_squares))  # (2, k): of the positive, the negative parts
        R_norms = np.array([np.linalg.norm(np.maximum(sign * Rt, 0), axis=1) for sign in (1, -1)])
        # Of each triplet keep the parts of that sign which carry more. With u+, r+ those,
        # sigma |u+| |r+| is their weight, half of which goes to either factor.
        chosen = np.argmax(U_norms * R_norms, axis=0), np.arange(rank)
        sign, U_norm, R_norm = np.array([1, -1])[chosen[0]], U_norms[chosen], R_norms[chosen]
        weight = np.sqrt(singular * U_norm * R_norm)
        W = da.maximum(U * (sign * _quotient(weight, U_norm)), 0)
        H = np.maximum(Rt * (sign * _quotient(weight, R_norm))[:, None], 0)
        return self._filled(W, H, V, sums.total / V.size, seed, transposed)

    def _filled(
        self, W: DaskArray, H: Array, V: DaskArray, mean: float, seed: int, transposed: bool
    ) -> tuple[DaskArray, Array]:
        if self.fill == "mean":
            W, H = da.where(W > 0, W, mean), np.where(H > 0, H, mean)
        elif self.fill == "random":
            k, dtype = len(H), np.dtype(np.float64)
            for_W, for_H = (_FILL_H, _FILL_W) if transposed else (_FILL_W, _FILL_H)
            noise_W = NormalRows((V.shape[0], k), mean / 100, seed, for_W, dtype)
            noise_H = NormalRows((V.shape[1], k), mean / 100, seed, for_H, dtype)
            W = da.where(W > 0, W, from_rows(noise_W, V.chunks[0]))
            H = np.where(H > 0, H, noise_H[:].T)
        return W.astype(V.dtype), np.ascontiguousarray(H, dtype=V.dtype)


def singular_triplets(
    V: DaskArray,
    rank: int,
    seed: int,
    power: int,
    oversample: int = _OVERSAMPLE,
    once: Once = at_once,
) -> tuple[DaskArray, Array, Array]:
    """U (m, k) as a dask array, singular values (k,) and right vectors (k, n) of V, leading first.

    Cost: power + 1 passes; V @ Q (m, k + oversample) stays in the workers' memory while U lives.
    """
    m, n = V.shape
    width = min(rank + oversample, m, n)
    sketch = NormalRows((n, width), 1.0, seed, _SKETCH, np.dtype(np.float64))
    Q = _orthonormal(sketch[:] - np.sqrt(2 / np.pi), V.dtype)
    for i in range(power):
        Z = once(f"nndsvd-{i + 1}", np.ndarray, partial(_refined, V, Q))
        Q = _orthonormal(Z.T, V.dtype)
    P = matmul(V, Q)
    P, (PtP,) = hold(P, gram(P))
    squares, E = np.linalg.eigh(PtP)
    leading = np.argsort(squares)[::-1][:rank]
    singular, E = np.sqrt(np.maximum(squares[leading], 0)), E[:, leading]
    return matmul(P, E * _quotient(1.0, singular)), singular, E.T @ Q.T


def _refined(V: DaskArray, Q: Array) -> Array:
    """Q.T V.T V from one read."""
    (Z,) = compute(matmul(matmul(V, Q).T, V))
    return np.asarray(Z)


def _orthonormal(Z: Array, dtype: np.dtype[Any]) -> Array:
    return np.ascontiguousarray(np.linalg.qr(Z)[0], dtype=dtype)


def _quotient(numer: Any, denom: Array) -> Array:
    """numer / denom, and 0 where denom is 0."""
    return np.asarray(np.divide(numer, denom, out=np.zeros_like(denom), where=denom > 0))


# ---------------------------------------------------------------------------------- given
@dataclass(frozen=True)
class Given:
    """The caller's W0 (m, k) and H0 (k, n); both are copied, never written."""

    W: Any
    H: Any
    passes: ClassVar[int] = 0
    blind: ClassVar[bool] = False

    def check(self, shape: tuple[int, int], rank: int) -> None:
        for name, factor, wanted in (
            ("W0", self.W, (shape[0], rank)),
            ("H0", self.H, (rank, shape[1])),
        ):
            found = getattr(factor, "shape", None)
            if found != wanted:
                raise ValueError(f"init: {name} must be an array of shape {wanted}, got {found}")
            dense = isinstance(factor, (np.ndarray, da.Array, zarr.Array))
            if not dense or isinstance(factor, np.ma.MaskedArray):
                raise TypeError(
                    f"init: {name} must be a numpy, dask or zarr array, got {type(factor).__name__}"
                )
            if not isinstance(getattr(factor, "_meta", factor[:0, :0]), np.ndarray):
                raise TypeError(f"init: {name} must be dense, got sparse dask blocks")
            if factor.dtype.kind not in "fiub":
                raise TypeError(f"init: {name} must hold real numbers, got dtype {factor.dtype}")
        H = np.asarray(self.H)
        _check_values("H0", H.min(), H.sum(dtype=np.float64))

    def width(self, rank: int) -> int:
        return 0

    def factors(
        self,
        V: DaskArray,
        rank: int,
        sums: Sums,
        seed: int,
        transposed: bool = False,
        once: Once = at_once,
    ) -> tuple[DaskArray, Array]:
        names, matrices = ["W0", "H0"], [open_matrix(x).unchecked for x in (self.W, self.H)]
        if transposed:
            names, matrices = ["H0", "W0"], [matrices[1].T, matrices[0].T]
        heights, widths = V.chunks[0], (V.shape[1],)
        W = matrices[0].blocks(Grid(heights, (rank,))).astype(V.dtype)
        plain = [x.source.T if x.transposed else x.source for x in matrices]
        if all(isinstance(x, np.ndarray) for x in plain):  # at hand: no graph
            H, low, total = plain[1], plain[0].min(), plain[0].sum(dtype=np.float64)
        else:
            H = matrices[1].blocks(Grid((rank,), widths))
            H, low, total = compute(H, W.min(), W.sum(dtype=np.float64))
        _check_values(names[0], low, total)
        _check_values(names[1], H.min(), H.sum(dtype=np.float64))
        return W, np.array(H, dtype=V.dtype, order="C")


def _check_values(name: str, low: float, total: float) -> None:
    if not (low >= 0 and np.isfinite(total)):
        raise ValueError(f"init: {name} must be finite and non-negative; its minimum is {low}")
    if total == 0:
        raise ValueError(f"init: {name} is full of zeros, which no update can leave")


_BY_NAME: dict[str, Start] = {
    "random": Random(),
    "nndsvd": NNDSVD(fill=None),
    "nndsvda": NNDSVD(fill="mean"),
    "nndsvdar": NNDSVD(fill="random"),
}


def make_start(init: Any) -> Start:
    """The start of that name, the object itself, or the given pair (W0, H0)."""
    if isinstance(init, str):
        if init not in _BY_NAME:
            raise ValueError(
                f"init must be one of {sorted(_BY_NAME)}, a pair (W0, H0) or an object such as "
                f"dask_nmf.NNDSVD(power=3), got {init!r}"
            )
        return _BY_NAME[init]
    if isinstance(init, (tuple, list)) and len(init) == 2:
        return Given(*init)
    if isinstance(init, (Random, NNDSVD, Given)):
        return init
    raise TypeError(
        f"init must be a name, a pair (W0, H0) or a start object, got {type(init).__name__}"
    )
