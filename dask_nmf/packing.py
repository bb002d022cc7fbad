"""Records as flat dicts of arrays, and back: what a file of arrays can hold."""

import types
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import numpy as np

from dask_nmf.errors import Damaged
from dask_nmf.types import Array, SweepRecord


def pack(value: Any, name: str = "value") -> dict[str, Any]:
    """A record of arrays, numbers and records as a flat dict of arrays; None is left out."""
    return dict(_packed(value, name))


def _packed(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value):
        yield name, np.array(True)
        for field in fields(value):
            yield from _packed(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, tuple):  # the history: a column for each of its fields
        for column, values in to_columns(value).items():
            yield f"{name}.{column}", values
    elif isinstance(value, str):
        pass
    elif value is not None:
        yield name, np.asarray(value)


def unpack(kind: Any, flat: dict[str, Any], name: str = "value") -> Any:
    """The record of that type, as `pack` took it apart.

    Raises
    ------
    Damaged
        If something is missing.
    """
    kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    record: Any = next((k for k in kinds if is_dataclass(k)), None)
    if kind == tuple[SweepRecord, ...]:
        names = [field.name for field in fields(SweepRecord)]
        known = {each: flat[key] for each in names if (key := f"{name}.{each}") in flat}
        return from_columns({each: column.tolist() for each, column in known.items()})
    if name not in flat:
        if type(None) in kinds or kind is Any:
            return None
        if kind is str:
            return ""
        raise Damaged(f"{name} is missing")
    if record is not None:
        hints = get_type_hints(record)
        values = {
            f.name: unpack(hints[f.name], flat, f"{name}.{f.name}")
            for f in fields(record)
            # Older runs lack the fields that have a default.
            if f.default is MISSING or f"{name}.{f.name}" in flat or _nested(hints[f.name])
        }
        return record(**values)
    plain = next((k for k in kinds if k in (int, float, bool)), None)
    return flat[name] if plain is None else plain(flat[name])


def _nested(kind: Any) -> bool:
    """Whether its own fields are in the dict, not itself."""
    return bool(kind == tuple[SweepRecord, ...])


def to_columns(history: Sequence[SweepRecord]) -> dict[str, Array]:
    """A history as arrays, NaN for what is None."""

    def column(name: str) -> Array:
        found = [getattr(record, name) for record in history]
        return np.array([np.nan if x is None else x for x in found])

    return {field.name: column(field.name) for field in fields(SweepRecord)}


def from_columns(columns: dict[str, list[Any]]) -> tuple[SweepRecord, ...]:
    """The history again; older ones lack the fields that may be None."""
    rows = zip(*columns.values(), strict=True)
    no_nan = ({k: None if x != x else x for k, x in zip(columns, row, strict=True)} for row in rows)
    return tuple(SweepRecord(**row) for row in no_nan)  # type: ignore[arg-type]
