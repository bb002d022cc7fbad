"""Geometry: blocks are whole chunks where they can be, cover V, and stay within the memory."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_nmf.blocks import MAX_BLOCKS, block_height, choose_grid, even
from dask_nmf.geometry import TARGET_BYTES, Geometry

MiB = 2**20
BASE = Geometry(
    m=200_000,
    n=2_000,
    rank=32,
    itemsize=4,
    stored=4,
    chunk=(5_000, 2_000),
    piece=(5_000, 2_000),
    payload=1.0,
    threads=2,
    processes=1,
)


def chunked(geometry: Geometry, rows: int, columns: int, piece: Any = None) -> Geometry:
    return replace(geometry, chunk=(rows, columns), piece=piece or (rows, columns))


@given(
    m=st.integers(1, 10**9),
    n=st.integers(1, 10**6),
    rows=st.integers(1, 10**5),
    columns=st.integers(1, 10**5),
    cut=st.booleans(),
    threads=st.integers(1, 64),
    memory=st.integers(2**28, 2**40),
    W_on_disk=st.booleans(),
)
def test_any_grid_is_within_memory_and_covers_V(
    m: int,
    n: int,
    rows: int,
    columns: int,
    cut: bool,
    threads: int,
    memory: int,
    W_on_disk: bool,
) -> None:
    rows, columns = min(rows, m), min(columns, n)
    geometry = replace(BASE, m=m, n=n, threads=threads, W_on_disk=W_on_disk)
    geometry = chunked(geometry, rows, columns, (1, 1) if cut else None)
    try:
        grid = choose_grid(geometry, memory)
    except ValueError:
        heights = [min(geometry.piece[0] * 2**i, m) for i in range(30)]
        least = min(geometry.peak_bytes(rows) for rows in heights)
        nothing_fits = memory < min(least, geometry.peak_bytes(*geometry.piece))
        assert nothing_fits, "refused, but it fits"
        return
    side = geometry.T if grid.transposed else geometry
    assert (sum(grid.heights), sum(grid.widths)) == (side.m, side.n)
    assert side.peak_bytes(max(grid.heights), max(grid.widths)) <= memory
    assert all(height % side.piece[0] == 0 for height in grid.heights[:-1])
    assert all(width % side.piece[1] == 0 for width in grid.widths[:-1])
    if grid.reads_per_sweep == 2:
        assert all(part.peak_bytes(part.chunk[0]) > memory for part in (geometry, geometry.T))
    if grid.reads_per_sweep == 1 and side.chunk[0] >= side.m / MAX_BLOCKS:
        assert grid.blocks <= max(MAX_BLOCKS, -(-side.m // side.piece[0]))


def test_sizes_that_people_have() -> None:
    assert choose_grid(BASE).heights == (5_000,) * 40  # chunks of 40 MB are blocks
    small = choose_grid(chunked(BASE, 100, 2_000))
    assert small.heights == even(200_000, 8_300)  # small ones are joined
    assert max(small.heights) * 2_000 * 4 <= TARGET_BYTES
    assert choose_grid(chunked(BASE, 200_000, 2_000)).heights == (200_000,)
    assert choose_grid(chunked(replace(BASE, m=7, n=5), 7, 5)).heights == (7,)
    # One chunk for all that can be read in parts: halves, thirds and so on of it.
    mapped = choose_grid(chunked(BASE, 200_000, 2_000, piece=(1, 1)))
    assert mapped.heights == (8_000,) * 25
    assert choose_grid(chunked(BASE, 1_000, 500)).heights == (8_000,) * 25


def test_columns_are_blocks_where_that_is_cheaper() -> None:
    grid = choose_grid(chunked(BASE, 200_000, 50))
    assert grid.transposed
    assert set(grid.heights[:-1]) == {250}  # not 50: each block adds 200,000 x 32 to the sums
    wide = replace(chunked(BASE, 100, 1_000), m=2_000, n=10**6)
    grid = choose_grid(wide)
    assert grid.transposed
    assert grid.widths == (2_000,)
    assert set(grid.heights[:-1]) == {8_000}
    assert not choose_grid(replace(BASE, m=10**6, n=2_000)).transposed


def test_tiles_where_neither_rows_nor_columns_fit() -> None:
    square = replace(chunked(BASE, 1_000, 1_000), m=10**6, n=10**6, W_on_disk=True)
    grid = choose_grid(square, 3_000 * MiB)
    assert grid.reads_per_sweep == 2
    assert grid.heights[0] % 1_000 == grid.widths[0] % 1_000 == 0
    assert grid.heights[0] * grid.widths[0] * 4 <= TARGET_BYTES
    assert choose_grid(square, 30_000 * MiB).reads_per_sweep == 1


def test_terabytes_take_ten_thousand_tasks_a_pass_where_memory_has_room() -> None:
    geometry = chunked(replace(BASE, m=10**9, n=1_000), 1_000, 1_000)
    assert 5_000 < choose_grid(geometry).tasks <= 10_000
    within = choose_grid(replace(geometry, W_on_disk=True), 2_000 * MiB)
    assert within.tasks > 10_000
    assert geometry.peak_bytes(within.heights[0]) > 0.7 * 2_000 * MiB  # as large as fit


def test_peak_memory_hardly_grows_with_the_number_of_chunks() -> None:
    """From 10^3 to 10^6 chunks of 40 kB: the tree of sums gets deeper, and the graph longer."""
    peaks = []
    for chunks in (10**3, 10**4, 10**5, 10**6):
        geometry = replace(chunked(BASE, 5, 2_000), m=chunks * 5, W_on_disk=True)
        peaks.append(geometry.peak_bytes(choose_grid(geometry).heights[0]))
    assert peaks[-1] < 1.1 * peaks[1]
    assert peaks[0] < peaks[1]


def test_memory_makes_smaller_blocks() -> None:
    geometry = chunked(BASE, 500, 2_000)
    rows = block_height(geometry, 360 * MiB)
    assert 500 <= rows < block_height(geometry, None)
    assert geometry.peak_bytes(rows) <= 360 * MiB


def test_the_refusal_says_what_would_do() -> None:
    with pytest.raises(ValueError, match="too small") as refused:
        choose_grid(BASE, 360 * MiB)
    text = str(refused.value)
    assert "blocks of 5,000 x 2,000 with 2 thread(s) need" in text
    assert "keep W on disk with out=" in text
    fits = int(text.split("at most ")[1].split(" rows")[0].replace(",", ""))
    alone = chunked(BASE, 1, 1)
    assert alone.peak_bytes(fits) <= 360 * MiB < alone.peak_bytes(fits + fits // 16)
    with pytest.raises(ValueError, match="a process alone"):
        choose_grid(BASE, 50 * MiB)
    with pytest.raises(ValueError, match="a smaller rank"):
        choose_grid(replace(BASE, rank=5_000, W_on_disk=True), 460 * MiB)


def test_block_rows_may_not_cut_what_is_decoded_at_once() -> None:
    assert choose_grid(BASE, block_rows=10_000).heights == (10_000,) * 20
    with pytest.raises(ValueError, match=r"multiple of the 5,000 rows.*got 7"):
        choose_grid(BASE, block_rows=7)
    assert choose_grid(chunked(BASE, 5_000, 2_000, (1, 1)), block_rows=7).heights[0] == 7


@pytest.mark.parametrize(("total", "height", "expected"), [(10, 5, (5, 5)), (11, 5, (5, 5, 1))])
def test_even(total: int, height: int, expected: Any) -> None:
    assert even(total, height) == expected
