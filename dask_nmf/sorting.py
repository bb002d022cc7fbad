"""Entries of a sparse matrix in order, sorted by way of temporary files that a kill takes along.

An entry's key is row * columns + column, so that the order of CSR is that of the keys.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from math import ceil
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from dask_nmf.types import Array

Entries = tuple[Array, Array]  # keys (int64) and values

_FILES = 100  # open at a time: some systems allow 256 per process


def merged(keys: Array, values: Array) -> Entries:
    """By ascending key, each one once, with the sum of its values."""
    if (keys[1:] > keys[:-1]).all():
        return keys, values
    order = np.argsort(keys, kind="stable")  # the same sums on every machine
    keys, values = keys[order], values[order]
    first = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    if len(first) == len(keys):
        return keys, values
    sums = np.add.reduceat(values, first, dtype=np.float64)
    with np.errstate(over="ignore"):  # the writer refuses what is infinite
        return keys[first], sums.astype(values.dtype)


def in_order(
    entries: Iterable[Entries], span: tuple[int, int], count: int, at_once: int, folder: str | None
) -> Iterator[Entries]:
    """The entries, merged, in runs of which each has larger keys than the one before.

    Parameters
    ----------
    entries : iterable of (keys, values)
        In any order; read once.
    span : (int, int)
        The least key, and one more than the largest.
    count : int
        About how many entries there are.
    at_once : int
        How many are held in memory.
    folder : str, optional
        Where the temporary files lie, which have no names.
    """
    first, last = span
    parts = min(_FILES, max(1, ceil(2 * count / at_once)))  # half full, for rows are not alike
    width = ceil((last - first) / parts)
    edges = first + width * np.arange(1, parts)
    with ExitStack() as stack:
        files: list[Any] = [stack.enter_context(TemporaryFile(dir=folder)) for _ in range(parts)]
        counts = np.zeros(parts, np.int64)
        record = None
        for keys, values in entries:
            keys, values = merged(keys, values)
            record = np.dtype([("key", keys.dtype), ("value", values.dtype)])
            records = np.empty(len(keys), record)
            records["key"], records["value"] = keys, values
            cuts = np.searchsorted(keys, edges)
            for i, part in enumerate(np.split(records, cuts)):
                files[i].write(part.view(np.uint8).data)
                counts[i] += len(part)
        for i, file in enumerate(files):
            if record is None or not counts[i]:
                continue
            file.seek(0)
            if counts[i] <= at_once:
                yield merged(*next(_read(file, record, int(counts[i]))))
            else:
                inside = first + i * width, min(first + (i + 1) * width, last)
                again = _read(file, record, at_once)
                yield from in_order(again, inside, int(counts[i]), at_once, folder)
            file.close()  # its disk is free from here on


def _read(file: Any, record: np.dtype[Any], at_once: int) -> Iterator[Entries]:
    while content := file.read(at_once * record.itemsize):
        records = np.frombuffer(content, record)
        yield records["key"].copy(), records["value"].copy()
