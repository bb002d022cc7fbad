"""The plain options of a run, checked before the work starts."""

from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
from dask.utils import parse_bytes

from dask_nmf.terms import check_alpha

Rule = Literal["kkt", "gradient", "decrease"]


@dataclass(frozen=True)
class Options:
    """What `factorize` was asked for, as Python numbers; see there for what each means.

    rule : what tol is of: the KKT residual; or, as scikit-learn has it, the gradient beside the
    first one ("cd"), or what ten sweeps gain beside the first error ("mu"). max_sweeps : at most.
    """

    rank: int
    tol: float
    max_passes: int
    max_seconds: float | None
    seed: int
    memory: int | None
    block_rows: int | None
    alpha_W: float = 0.0
    alpha_H: float | str = "same"
    l1_ratio: float = 0.0
    perturb: float = 0.0
    held_out: float = 0.0
    rule: Rule = "kkt"
    max_sweeps: int | None = None


def check_options(
    *,
    rank: Any,
    tol: Any,
    max_passes: Any,
    max_seconds: Any,
    seed: Any,
    memory: Any,
    block_rows: Any,
    alpha_W: Any,
    alpha_H: Any,
    l1_ratio: Any,
    perturb: Any,
    held_out: Any,
    rule: Rule = "kkt",
    max_sweeps: int | None = None,
    start_passes: int,
) -> Options:
    """The options, or a ValueError or TypeError that names the one out of range."""
    least = 2 + start_passes
    if not (is_number(tol) and 0 <= tol < 1):
        raise ValueError(f"tol must be a number >= 0 and < 1, got {tol!r}")
    if max_seconds is not None and not (is_number(max_seconds) and max_seconds > 0):
        raise ValueError(f"max_seconds must be a positive number of seconds, got {max_seconds!r}")
    for name, share in (("perturb", perturb), ("held_out", held_out)):
        if isinstance(share, bool) or not (is_number(share) and 0 <= share < 1):
            raise ValueError(f"{name} must be a number >= 0 and < 1, got {share!r}")
    check_alpha(alpha_W, alpha_H, l1_ratio)
    return Options(
        rank=check_int("rank", rank, 1),
        tol=float(tol),
        max_passes=check_int(
            "max_passes", max_passes, least, f" (first pass, {start_passes} of the start, a sweep)"
        ),
        max_seconds=None if max_seconds in (None, float("inf")) else float(max_seconds),
        seed=_seed(seed),
        memory=None if memory is None else parse_memory(memory),
        block_rows=None if block_rows is None else check_int("block_rows", block_rows, 1),
        alpha_W=float(alpha_W),
        alpha_H=alpha_H if isinstance(alpha_H, str) else float(alpha_H),
        l1_ratio=float(l1_ratio),
        perturb=float(perturb),
        held_out=float(held_out),
        rule=rule,
        max_sweeps=max_sweeps,
    )


def is_number(value: Any) -> bool:
    return isinstance(value, Real)


def check_int(name: str, value: Any, least: int, why: str = "") -> int:
    """The int, or an error that names it."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}{why}, got {value}")
    return int(value)


def _seed(seed: Any) -> int:
    checked = check_int("seed", seed, 0)
    if checked >= 2**64:
        raise ValueError(f"seed must be below 2**64, got {seed}")
    return checked


def parse_memory(memory: Any) -> int:
    try:
        count = int(memory) if is_number(memory) else parse_bytes(memory)
    except (ValueError, TypeError, OverflowError, AttributeError):  # the last: not even a text
        count = 0
    if count <= 0:
        raise ValueError(f"memory must be bytes or such as '2GiB', got {memory!r}")
    return int(count)
