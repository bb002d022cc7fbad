"""Our reader gives what zarr gives, for any layout, and notices what is missing or damaged."""

import pickle
import sys
from itertools import product
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import Zlib
from zarr.buffer import default_buffer_prototype
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.core.sync import sync
from zarr.registry import register_pipeline
from zarr.storage import LocalStore, MemoryStore

from dask_nmf.layout import find_layout, is_mapped, stored_share
from dask_nmf.reader import Reader, empty
from tests.conftest import Array
from tests.stores import CountingStore

SHAPE = (40, 30)
BOXES = [(0, 40, 0, 30), (3, 17, 0, 30), (0, 40, 4, 9), (7, 8, 29, 30), (20, 40, 0, 3)]

CODECS: dict[str, dict[str, Any]] = {
    "default": {},
    "none": {"compressors": None},
    "zstd": {"compressors": ZstdCodec(checksum=True)},
    "lz4 + crc32c": {"compressors": [BloscCodec(cname="lz4"), Crc32cCodec()]},
    "lz4": {"compressors": BloscCodec(cname="lz4")},
    "crc32c": {"compressors": Crc32cCodec()},
    "gzip": {"compressors": GzipCodec()},
    "shards": {"shards": (12, 6), "chunks": (4, 3)},
    "raw shards": {"shards": (12, 6), "chunks": (4, 3), "compressors": None},
    "v2": {"zarr_format": 2},
    "v2 none": {"zarr_format": 2, "compressors": None},
    "v2 zlib": {"zarr_format": 2, "compressors": Zlib()},
    "transposed": {"filters": TransposeCodec(order=(1, 0))},  # read by zarr itself
    "v2 Fortran": {"zarr_format": 2, "order": "F"},
}


def stored(store: Any, dtype: str, size: tuple[int, int], **options: Any) -> tuple[Any, Array]:
    """1..1200 in some order: no chunk is all zeros, which zarr would leave out."""
    values = np.random.default_rng(0).permutation(1200).reshape(SHAPE) + 1
    options = {"shape": SHAPE, "dtype": dtype, "chunks": size} | options
    array = zarr.create_array(store, overwrite=True, **options)
    array[:] = values
    return array, values.astype(dtype)


# Any codec with any dtype and with any chunks; what converts does not know which chunk it is of.
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("dtype", "chunks"), [("f4", (5, 7)), ("f8", (40, 3)), ("u2", (3, 30)), (">f4", (40, 30))]
)
@pytest.mark.parametrize("where", ["file", "memory"])
def test_any_box_of_any_layout(
    tmp_path: Path, codec: str, dtype: str, chunks: tuple[int, int], where: str
) -> None:
    store: Any = LocalStore(tmp_path) if where == "file" else MemoryStore()
    array, values = stored(store, dtype, chunks, **CODECS[codec])
    wanted = np.dtype("f4" if dtype == "f4" else "f8")
    reader = Reader(array, wanted)
    for top, bottom, left, right in BOXES:
        block = reader[top:bottom, left:right]
        assert block.dtype == wanted
        assert block.flags.c_contiguous
        assert block.flags.aligned
        assert np.array_equal(block, values[top:bottom, left:right])


def test_which_layouts_are_read_here() -> None:
    for codec, options in CODECS.items():
        array, _ = stored(MemoryStore(), "f4", (5, 7), **options)
        assert (find_layout(array) is None) == (codec in ("transposed", "v2 Fortran")), codec


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 30),
    box=st.tuples(
        st.integers(0, 39), st.integers(1, 40), st.integers(0, 29), st.integers(1, 30)
    ).filter(lambda box: box[0] < box[1] and box[2] < box[3]),
)
def test_any_box_of_any_chunks(rows: int, columns: int, box: tuple[int, int, int, int]) -> None:
    array, values = stored(MemoryStore(), "f4", (rows, columns))
    top, bottom, left, right = box
    block = Reader(array, np.dtype("f4"))[top:bottom, left:right]
    assert np.array_equal(block, values[top:bottom, left:right])


def test_an_uncompressed_chunk_is_not_copied(tmp_path: Path) -> None:
    array, values = stored(LocalStore(tmp_path), "f4", (10, 30), compressors=None)
    assert is_mapped(array)
    reader = Reader(array, np.dtype("f4"))
    assert not reader[10:20, 0:30].flags.writeable  # the file itself
    assert not reader[12:17, 0:30].flags.writeable
    assert reader[5:15, 0:30].flags.writeable  # of two chunks
    assert np.array_equal(reader[12:17, 0:30], values[12:17])


@pytest.mark.parametrize("codec", ["default", "none", "lz4", "crc32c", "transposed", "v2"])
def test_an_absent_chunk(tmp_path: Path, codec: str) -> None:
    array, values = stored(LocalStore(tmp_path), "f4", (10, 30), **CODECS[codec])
    key = array.metadata.encode_chunk_key((2, 0))
    (tmp_path / key).unlink()
    with pytest.raises(ValueError, match=f"chunk '{key}' is not in file://.*missing='zero'"):
        Reader(array, np.dtype("f4"))[0:40, 0:30]
    values[20:30] = 0
    assert np.array_equal(Reader(array, np.dtype("f4"), strict=False)[0:40, 0:30], values)


def test_inner_chunks_that_a_writer_left_out_of_its_shard(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path, shape=SHAPE, dtype="f4", shards=(20, 30), chunks=(5, 10))
    array[0:3, 0:3] = 7
    array[39, 29] = 7
    assert np.array_equal(Reader(array, np.dtype("f4"))[0:40, 0:30], array[:])


@pytest.mark.parametrize(
    ("codec", "harm"),
    [
        *product(["default", "none", "lz4", "gzip", "shards", "v2"], ["cut", "empty"]),
        ("none", "longer"),  # codecs know where their data ends
        *product(["default", "gzip", "v2 zlib"], ["garbled"]),
    ],
)
def test_a_damaged_chunk_is_named(tmp_path: Path, codec: str, harm: str) -> None:
    array, _ = stored(LocalStore(tmp_path), "f4", (10, 30), **CODECS[codec])
    key = array.metadata.encode_chunk_key((1, 0))
    content = (tmp_path / key).read_bytes()
    harmed = {"cut": content[: len(content) // 2], "empty": b"", "longer": content + b"1234"}
    harmed["garbled"] = b"????" + content[4:]
    (tmp_path / key).write_bytes(harmed[harm])
    with pytest.raises(ValueError, match=f"chunk '{key}' of .* is damaged"):
        Reader(array, np.dtype("f4"))[0:40, 0:30]


@pytest.mark.parametrize("codec", ["transposed", "v2 Fortran"])
def test_a_damaged_chunk_that_zarr_reads(tmp_path: Path, codec: str) -> None:
    array, _ = stored(LocalStore(tmp_path), "f4", (10, 30), **CODECS[codec])
    (tmp_path / array.metadata.encode_chunk_key((1, 0))).write_bytes(b"?!")
    with pytest.raises(ValueError, match="a chunk of .* in rows 5 to 25, columns 0 to 30 is dam"):
        Reader(array, np.dtype("f4"))[5:25, 0:30]


@pytest.mark.parametrize("codec", ["lz4", "zstd", "gzip"])
def test_a_chunk_of_another_shape_is_noticed(tmp_path: Path, codec: str) -> None:
    """A smaller one would leave the rest of the block as it was in memory."""
    array, _ = stored(LocalStore(tmp_path / "a"), "f4", (10, 30), **CODECS[codec])
    small, _ = stored(LocalStore(tmp_path / "b"), "f4", (5, 30), **CODECS[codec])
    (tmp_path / "a" / "c/1/0").write_bytes((tmp_path / "b" / "c/1/0").read_bytes())
    assert small.chunks == (5, 30)
    with pytest.raises(ValueError, match="chunk 'c/1/0' of .* is damaged: it holds 600 bytes"):
        Reader(array, np.dtype("f4"))[0:40, 0:30]


@pytest.mark.parametrize("codec", ["lz4 + crc32c", "crc32c", "zstd"])
def test_a_flipped_bit_is_noticed_where_there_is_a_checksum(tmp_path: Path, codec: str) -> None:
    array, _ = stored(LocalStore(tmp_path), "f4", (10, 30), **CODECS[codec])
    content = bytearray((tmp_path / "c/1/0").read_bytes())
    for place in range(20, len(content), 37):
        content[place] ^= 4
        (tmp_path / "c/1/0").write_bytes(content)
        with pytest.raises(ValueError, match="chunk 'c/1/0' of .* is damaged"):
            Reader(array, np.dtype("f4"))[0:40, 0:30]
        content[place] ^= 4


def test_files_are_opened_once_per_block(tmp_path: Path) -> None:
    """What a store cannot count: the files are read around it."""
    array, _ = stored(LocalStore(tmp_path), "f4", (10, 30), compressors=None)
    opened: list[str] = []

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(tmp_path) in str(args[0]):
            opened.append(str(args[0]).removeprefix(f"{tmp_path}/"))

    sys.addaudithook(note)
    reader = Reader(array, np.dtype("f4"))
    for top in range(0, 40, 20):
        reader[top : top + 20, 0:30]
    assert opened == [f"c/{i}/0" for i in range(4)]


def test_stored_sizes_are_asked_for_and_not_read(tmp_path: Path) -> None:
    array, _ = stored(LocalStore(tmp_path), "f4", (10, 30), compressors=None)
    assert stored_share(array) == (1.0, 1.0)
    (tmp_path / "c/0/0").unlink()
    assert stored_share(array) == (0.75, 1.0)
    store = CountingStore(LocalStore(tmp_path), tmp_path / "log")
    assert stored_share(zarr.open_array(store, mode="r")) is None  # it could only read them
    assert not store.reads()


class OtherPipeline(BatchedCodecPipeline):
    """What a user may set in zarr's configuration instead of zarr's own."""


def test_a_codec_pipeline_that_the_user_has_chosen_is_used(tmp_path: Path) -> None:
    stored(LocalStore(tmp_path / "lz4"), "f4", (10, 30), **CODECS["lz4"])
    _, values = stored(LocalStore(tmp_path / "none"), "f4", (10, 30), compressors=None)
    register_pipeline(OtherPipeline)
    with zarr.config.set({"codec_pipeline.path": f"{__name__}.OtherPipeline"}):
        lz4, none = (zarr.open_array(tmp_path / name, mode="r") for name in ("lz4", "none"))
    assert find_layout(lz4) is None
    assert find_layout(none) is not None  # nothing to decode
    for array in (lz4, none):
        assert np.array_equal(Reader(array, np.dtype("f4"))[3:23, 0:30], values[3:23])
    (tmp_path / "lz4/c/2/0").unlink()
    with pytest.raises(ValueError, match="chunk 'c/2/0' is not in"):
        Reader(lz4, np.dtype("f4"))[3:23, 0:30]


def test_large_blocks_are_not_of_malloc() -> None:
    small, large = empty((3, 4), np.dtype("f8")), empty((2**17, 2), np.dtype("f8"))
    assert small.base is None
    assert large.base is not None
    large[:] = 3
    assert large.sum() == 3 * 2**18


@pytest.mark.parametrize("place", ["disk", "memory"])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kept", [0, 1])
def test_a_shard_cut_short_that_zarr_reads(
    tmp_path: Path, place: str, strict: bool, kept: int
) -> None:
    """zarr takes an empty shard for one of zeros."""
    store: Any = MemoryStore() if place == "memory" else LocalStore(tmp_path / "V.zarr")
    array = zarr.create_array(
        store,
        data=np.ones((20, 12)),
        chunks=(5, 6),
        shards=(10, 12),
        filters=[TransposeCodec(order=(1, 0))],
    )
    body = sync(store.get("c/1/0", default_buffer_prototype()))
    sync(store.set("c/1/0", body[:kept]))
    reader = Reader(array, np.dtype("f8"), strict)
    assert reader.layout is None
    assert reader[0:10, 0:12].sum() == 120
    with pytest.raises(ValueError, match="chunk.* is damaged"):
        reader[0:20, 0:12]


def test_it_is_sent_small_and_unpacked_once(tmp_path: Path) -> None:
    """A scheduler sends it with each block; a worker reads the array's metadata once."""
    array = zarr.create_array(tmp_path / "V.zarr", data=np.arange(12.0).reshape(4, 3))
    reader = Reader(array, np.dtype("f8"))
    sent = cloudpickle.dumps(reader)
    found = pickle.loads(sent)
    assert found is pickle.loads(sent)
    assert np.array_equal(found[1:3, 0:3], array[1:3])
    other = Reader(zarr.open_array(tmp_path / "V.zarr"), np.dtype("f4"))
    assert pickle.loads(pickle.dumps(other)).dtype == np.float32
