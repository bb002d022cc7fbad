"""Geometry: blocks are whole chunks, cover V, and stay within the memory asked for."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_nmf.blocks import MAX_BLOCKS, TARGET_BYTES, Geometry, even, row_blocks

BASE = Geometry(
    m=200_000,
    n=2_000,
    rank=32,
    itemsize=4,
    stored=4,
    heights=5_000,
    threads=2,
    processes=1,
)


@given(
    m=st.integers(1, 10**9),
    n=st.integers(1, 10**6),
    chunk=st.integers(1, 10**6),
    threads=st.integers(1, 64),
    memory=st.integers(2**28, 2**40),
)
def test_blocks_are_whole_chunks_within_memory(
    m: int, n: int, chunk: int, threads: int, memory: int
) -> None:
    geometry = replace(BASE, m=m, n=n, heights=min(chunk, m), threads=threads)
    if geometry.peak_bytes(geometry.tallest) > memory:
        with pytest.raises(ValueError, match="is too small"):
            row_blocks(geometry, memory)
        return
    heights = row_blocks(geometry, memory)
    assert sum(heights) == m
    assert all(height % geometry.tallest == 0 for height in heights[:-1])
    assert geometry.peak_bytes(max(heights)) <= memory
    assert len(heights) <= max(MAX_BLOCKS, -(-m // geometry.tallest))


@given(chunks=st.lists(st.integers(1, 50), min_size=1, max_size=40), target=st.integers(1, 200))
def test_irregular_chunks_are_joined_not_cut(chunks: list[int], target: int) -> None:
    geometry = replace(BASE, m=sum(chunks), n=1, itemsize=1, heights=tuple(chunks), target=target)
    heights = row_blocks(geometry)
    edges = {sum(chunks[:i]) for i in range(len(chunks) + 1)}
    assert {sum(heights[:i]) for i in range(len(heights) + 1)} <= edges
    assert sum(heights) == sum(chunks)
    assert max(heights) <= max(target, *chunks)


def test_sizes_that_people_have() -> None:
    assert row_blocks(BASE) == (5_000,) * 40  # chunks of 40 MB are blocks
    assert row_blocks(replace(BASE, heights=100)) == even(200_000, 8_300)  # small ones are joined
    assert row_blocks(replace(BASE, heights=200_000)) == (200_000,)
    assert row_blocks(replace(BASE, m=7, heights=7)) == (7,)
    assert max(row_blocks(replace(BASE, heights=100))) * 2_000 * 4 <= TARGET_BYTES


def test_a_terabyte_makes_ten_thousand_blocks() -> None:
    geometry = replace(BASE, m=10**9, n=1_000, heights=1_000)
    assert len(row_blocks(geometry)) == 10_000


def test_memory_makes_smaller_blocks() -> None:
    geometry = replace(BASE, heights=500)
    heights = row_blocks(geometry, 300 * 2**20)
    assert 500 <= max(heights) < max(row_blocks(geometry))
    assert geometry.peak_bytes(max(heights)) <= 300 * 2**20


def test_the_refusal_says_what_would_do() -> None:
    with pytest.raises(ValueError, match="too small") as refused:
        row_blocks(BASE, 300 * 2**20)
    text = str(refused.value)
    assert "blocks of 5,000 rows on 2 threads need" in text
    assert "rechunk V to at most" in text
    fits = int(text.split("at most ")[1].split(" rows")[0].replace(",", ""))
    assert BASE.peak_bytes(fits) <= 300 * 2**20 < BASE.peak_bytes(fits + 1)
    with pytest.raises(ValueError, match="a smaller rank"):
        row_blocks(BASE, 50 * 2**20)


@pytest.mark.parametrize(("total", "height", "expected"), [(10, 5, (5, 5)), (11, 5, (5, 5, 1))])
def test_even(total: int, height: int, expected: Any) -> None:
    assert even(total, height) == expected
