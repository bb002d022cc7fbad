"""MatrixMarket files as pieces of lines, in the order of the file."""

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np

from dask_nmf.sources import Piece, Source
from dask_nmf.types import Array

_FIRST = 2**16  # bytes of a MatrixMarket file in which its header ends


def open_mtx(path: str) -> Source:
    with _text(path) as file:
        banner, size, _ = _header(path, file)
    *_, kind, symmetry = banner
    m, n, stored = size
    mirrored = 2 if symmetry == "symmetric" else 1
    dtype = np.dtype(np.float64 if kind == "real" else np.int64)

    def pieces(at_once: int) -> Iterator[Piece]:
        with _text(path) as file:
            _, _, line = _header(path, file)
            seen, rest = 0, b""
            while read := file.read(16 * max(1, at_once // mirrored)):
                text, newline, rest = (rest + read).rpartition(b"\n")
                if newline:
                    count, *piece = _parse(path, text + newline, banner, (m, n), line)
                    line, seen = line + text.count(b"\n") + 1, seen + count
                    yield piece[0], piece[1], piece[2]
                if seen > stored:
                    break
            if rest.strip():
                count, *piece = _parse(path, rest + b"\n", banner, (m, n), line)
                seen += count
                yield piece[0], piece[1], piece[2]
        if seen != stored:
            raise ValueError(
                f"source: the header of {path!r} announces {stored} entries, but "
                + (f"there are {seen}: it is cut short" if seen < stored else "there are more")
                + "; get the file again, or correct its header"
            )

    return Source((m, n), dtype, mirrored * stored, False, pieces)


def _parse(
    path: str, text: bytes, banner: list[str], shape: tuple[int, int], line: int
) -> tuple[int, Array, Array, Array]:
    """The entries of some whole lines, by scipy: it reads them as a small file of its own."""
    from scipy.io import mmread

    text = re.sub(rb"\n\s*\n", b"\n", b"\n" + text).removeprefix(b"\n")  # no blank lines
    count = text.count(b"\n")
    *_, kind, symmetry = banner
    kind = kind if kind == "pattern" else "real"  # scipy cuts 2.5 to the integer 2 without a word
    head = f"%%MatrixMarket matrix coordinate {kind} {symmetry}\n{shape[0]} {shape[1]} {count}\n"
    try:
        found = mmread(BytesIO(head.encode() + text))
    except (ValueError, OverflowError) as error:
        told = re.sub(r"Line (\d+)", lambda at: f"line {int(at[1]) - 3 + line}", str(error))
        raise ValueError(f"source: cannot read {path!r}: {told}") from error
    if (
        banner[3] == "integer"
        and (np.trunc(found.data) != found.data)[np.isfinite(found.data)].any()
    ):
        raise ValueError(
            f"source: the header of {path!r} says integer, but some values are not: write "
            "'real' there"
        )
    return count, found.row, found.col, found.data


def _header(path: str, file: Any) -> tuple[list[str], tuple[int, int, int], int]:
    """The banner's words, the sizes, and how many lines that were; the file goes on after them."""
    banner = file.readline(_FIRST).decode("latin-1").lower().split()
    if banner[:2] != ["%%matrixmarket", "matrix"] or len(banner) != 5:
        raise ValueError(
            f"source: {path!r} does not begin with a line such as '%%MatrixMarket matrix "
            "coordinate real general'"
        )
    allowed = {"real", "integer", "pattern", "double"}, {"general", "symmetric"}
    if banner[2] != "coordinate":
        raise ValueError(
            f"source: {path!r} is a dense MatrixMarket file ('array'): `factorize` takes its "
            "array as scipy.io.mmread reads it"
        )
    if banner[3] not in allowed[0] or banner[4] not in allowed[1]:
        raise ValueError(
            f"source: {path!r} is {banner[3]} and {banner[4]}, but only real, integer or pattern, "
            "and general or symmetric, have non-negative entries"
        )
    banner[3] = "real" if banner[3] == "double" else banner[3]
    lines, line = 1, b"%"
    while line.startswith(b"%") or (line and not line.strip()):
        line = file.readline(_FIRST)
        lines += 1
    sizes = line.split()
    if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        raise ValueError(
            f"source: line {lines} of {path!r} must hold rows, columns and entries, got {line!r}"
        )
    m, n, stored = map(int, sizes)
    if banner[4] == "symmetric" and m != n:
        raise ValueError(f"source: {path!r} is symmetric, but {m} x {n}: correct its header")
    return banner, (m, n, stored), lines + 1


@contextmanager
def _text(path: str) -> Iterator[Any]:
    try:
        with gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"source: {path!r} is damaged: {error}; get the file again") from error
