"""Random choices, and a call that is made of them, for `tests.fuzz`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import Array

BLOCK = "V's dask block"


class Draw:
    """Random choices, reproducible from (seed, index)."""

    def __init__(self, seed: int, index: int) -> None:
        self.random = np.random.default_rng([seed, index])

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def one(self, *options: Any) -> Any:
        return options[self.random.integers(len(options))]

    def integer(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high + 1))

    def cut(self, size: int) -> tuple[int, ...]:
        """Chunk sizes, sometimes empty ones among them."""
        edges = sorted(self.integer(0, size) for _ in range(self.one(0, 0, 1, 2, 4)))
        if not self.chance(0.1):
            edges = sorted({edge for edge in edges if 0 < edge < size})
        return tuple(np.diff([0, *edges, size]).tolist())


@dataclass
class Call:
    """A drawn call of `factorize`.

    wrong, late : words for what is plainly bad, to be refused before V is read or when it is; the
    message has to hold one of them. doubtful : of what may be refused.
    dense : V's numbers in float64; None where it has none. asked : whether for more than the
    plain Frobenius problem. weights : of the entries, in float64.
    """

    folder: Path
    V: Any = None
    kind: str = ""
    shape: tuple[int, ...] = ()
    dtype: Any = None
    dense: Array | None = None
    options: dict[str, Any] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)
    doubtful: set[str] = field(default_factory=set)
    dask: dict[str, Any] = field(default_factory=dict)
    tight: bool = False
    asked: bool = False
    weights: Array | None = None

    @property
    def refused(self) -> set[str]:
        return self.wrong | self.late

    def __str__(self) -> str:
        told = {**self.options, **self.dask, "tight": self.tight}
        lines = [f"V: {self.kind}, {self.shape}", *(f"{k} = {v!r}" for k, v in told.items())]
        expected = f"wrong {self.wrong}, late {self.late}, doubtful {self.doubtful}"
        return "\n".join(f"    {line[:300]}" for line in [*lines, expected])
