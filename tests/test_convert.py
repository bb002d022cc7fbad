"""Converted files are the matrix that scipy, numpy or pandas read there, in canonical CSR."""

import gzip
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from scipy import sparse
from scipy.io import mmread, mmwrite

import dask_nmf
from dask_nmf import converting
from dask_nmf.cli import BAD_INPUT, main
from dask_nmf.converting import convert
from dask_nmf.sorting import in_order
from tests import s3
from tests.matrix_files import FILES, counts, h5ad, parquet, plain, read, same
from tests.processes import CONTEXT

SMALL = 40_000  # bytes: about 300 entries at once


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that weighs nothing, and chunks that a small matrix fills."""
    for name, small in (("converting._FIXED", 0), ("converting._LEAST", 256), ("files._ARROW", 0)):
        monkeypatch.setattr(f"dask_nmf.{name}", small)
    monkeypatch.setattr(converting, "_CHUNK", 64)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    ("dtype", "scale", "expected", "memory"),
    [
        ("f4", 1, "f4", SMALL),
        ("f8", 1, "f8", "1GiB"),
        ("i8", 1, "f4", "1GiB"),
        ("i8", 2**24 - 1, "f8", SMALL),
        ("u2", 1, "f4", SMALL),
    ],
)
def test_any_file(
    tmp_path: Path, kind: str, dtype: str, scale: int, expected: str, memory: Any
) -> None:
    if kind == "mtx" and dtype in ("f4", "u2"):
        pytest.skip("such a file knows real and integer only")
    V = counts(dtype) * np.array(scale, dtype)
    V = sparse.csr_array(V[:, :-1] if kind.startswith("long") else V)
    if kind.startswith("long"):
        V = V[:-5]  # the last row and column that hold something say the shape
    name, write = FILES[kind]
    write(tmp_path / name, V)
    group = convert(tmp_path / name, tmp_path / "out.zarr", memory=memory)
    found = read(tmp_path / "out.zarr")
    assert same(found, V)
    assert found.dtype == np.dtype(expected)
    assert group.attrs["shape"] == list(V.shape)
    assert {path.name for path in tmp_path.iterdir()} == {name, "out.zarr"}


@pytest.mark.parametrize("memory", [SMALL, "1GiB"])
@pytest.mark.parametrize("field", ["real", "integer", "pattern"])
@pytest.mark.parametrize("symmetry", ["general", "symmetric"])
def test_matrix_market_is_as_scipy_reads_it(
    tmp_path: Path, memory: Any, field: str, symmetry: str
) -> None:
    path, V = tmp_path / "V.mtx.gz", counts("f8")[:47]
    V = V + V.T if symmetry == "symmetric" else V
    V = V.astype(np.int64) if field == "integer" else V * 1.1
    with gzip.open(path, "wb") as file:
        mmwrite(file, V, comment="made up", field=field, symmetry=symmetry)
    text = gzip.decompress(path.read_bytes()).rstrip(b"\n")
    path.write_bytes(gzip.compress(text.replace(b"\n", b"\r\n\n \n") + b"\n\n"))
    expected = mmread(path).tocsr()
    assert expected.nnz > 500
    convert(path, tmp_path / "out.zarr", memory=memory)
    found = read(tmp_path / "out.zarr")
    assert same(found, expected)
    assert found.dtype == np.dtype("f8" if field == "real" else "f4")


def test_entries_all_in_one_place(tmp_path: Path) -> None:
    """More than is held at once: sums of sums, in buckets that are split until they fit."""
    text = "%%MatrixMarket matrix coordinate integer general\n900 800 5001\n"
    (tmp_path / "V.mtx").write_text(text + "9 8 3\n" * 5000 + "900 800 1")
    convert(tmp_path / "V.mtx", tmp_path / "out.zarr", memory=SMALL)
    found = read(tmp_path / "out.zarr")
    assert (found.nnz, found[8, 7], found[899, 799]) == (2, 15_000, 1)


def test_no_run_is_larger_than_allowed(tmp_path: Path) -> None:
    keys = np.random.default_rng(0).integers(0, 10_000, 5_000)  # all in one bucket of the first cut
    pieces = [(part, np.ones(len(part))) for part in np.split(keys, 20)]
    runs = [*in_order(pieces, (0, 10**9), 5_000, 300, str(tmp_path))]
    assert max(len(run[0]) for run in runs) <= 300
    expected = np.unique(keys, return_counts=True)
    assert np.array_equal(np.concatenate([run[0] for run in runs]), expected[0])
    assert np.array_equal(np.concatenate([run[1] for run in runs]), expected[1])


def test_zeros_are_not_entries(tmp_path: Path) -> None:
    text = "%%MatrixMarket matrix coordinate real general\n3 2 2\n1 1 0\n3 2 -0.0\n"
    (tmp_path / "V.mtx").write_text(text)
    convert(tmp_path / "V.mtx", tmp_path / "out.zarr")
    assert same(read(tmp_path / "out.zarr"), sparse.csr_array((3, 2)))


def test_layers(tmp_path: Path) -> None:
    h5ad(tmp_path / "V.h5ad", counts())
    h5ad(tmp_path / "V.h5ad", counts(seed=5).tocsc(), "layers/raw")
    convert(tmp_path / "V.h5ad", tmp_path / "out.zarr", layer="raw", memory=SMALL)
    assert same(read(tmp_path / "out.zarr"), counts(seed=5))
    with pytest.raises(ValueError, match="has no layers/other; its layers: raw"):
        convert(tmp_path / "V.h5ad", tmp_path / "o.zarr", layer="other")


HEAD = "%%MatrixMarket matrix coordinate real general\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "does not begin with a line such as"),
        (HEAD + "3 2\n", "line 2 of .* must hold rows, columns and entries, got b'3 2"),
        (HEAD + "3 0 0\n", "at least a row and a column, .* is 3 x 0"),
        (HEAD + "3 2 2\n1 1 1\n", "announces 2 entries, but there are 1: it is cut short"),
        (HEAD + "3 2 1\n1 1 1\n2 2 2\n", "announces 1 entries, but there are more"),
        (HEAD + "3 2 1\n4 1 1\n", "line 3: Row index out of bounds"),
        (HEAD + "%\n3 2 2\n1 1 1\n1 0 1\n", "line 5: Column index out of bounds"),
        (HEAD + "3 2 1\n1 1 x\n", "line 3: Invalid floating-point"),
        (HEAD + "3 2 1\n3 2 -1\n", r"row 2, column 1 .*holds -1.0: mask, clip"),
        (HEAD + "3 2 1\n3 2 nan\n", r"row 2, column 1 .*holds nan"),
        (HEAD + "3 2 1\n3 2 inf\n", r"row 2, column 1 .*holds inf"),
        (HEAD.replace("real", "integer") + "3 2 1\n3 2 2.5\n", "says integer, but"),
        (HEAD.replace("real", "complex") + "3 2 1\n3 2 2 1\n", "is complex and general, but"),
        (HEAD.replace("coordinate", "array") + "1 1\n1\n", "a dense MatrixMarket file"),
        (HEAD.replace("general", "symmetric") + "3 2 1\n1 1 1\n", "is symmetric, but 3 x 2"),
    ],
)
def test_bad_matrix_market(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "V.mtx").write_text(text)
    with pytest.raises(ValueError, match=error):
        convert(tmp_path / "V.mtx", tmp_path / "out.zarr")
    assert {path.name for path in tmp_path.iterdir()} == {"V.mtx"}


def test_bad_files(tmp_path: Path) -> None:
    V, out = counts("f8"), tmp_path / "out.zarr"
    V.data[500] = -2.5
    row, column = (int(at[500]) for at in (V.tocoo().row, V.tocoo().col))
    for kind in FILES:
        if kind != "plain" and kind != "mtx" and kind != "coo" and "long" not in kind:
            FILES[kind][1](tmp_path / FILES[kind][0], V)
            told = f"row {row}, column {column} of .* holds -2.5"
            with pytest.raises(ValueError, match=told):
                convert(tmp_path / FILES[kind][0], out, memory=SMALL)
            (tmp_path / FILES[kind][0]).unlink()
    V, path = counts("f8"), tmp_path / "V.npz"
    for more, error in (
        ({"indices": V.indices + 40}, "column .* of an entry .* lies outside of the 61 x 47"),
        ({"indices": V.indices + 0.5}, "column .*5 of an entry .* lies outside"),
        ({"indptr": V.indptr[:-1]}, "indptr .* does not fit the rest: 61 numbers for 61 rows"),
        ({"indptr": V.indptr[::-1]}, "indptr .* does not fit the rest"),
        ({"data": V.data[1:]}, "indptr .* does not fit the rest"),
        ({"shape": [61]}, r"its shape is \[61\]"),
        ({"format": "bsr"}, "and the format bsr, not a matrix"),
    ):
        plain(path, V, **more)
        with pytest.raises(ValueError, match=error):
            convert(path, out, memory=SMALL)
    plain(path, V, data=V.data * 1j)
    with pytest.raises(TypeError, match="real numbers, got complex128"):
        convert(path, out)
    sparse.save_npz(path, V, compressed=False)
    path.write_bytes(path.read_bytes().replace(V.data[300:].tobytes(), V.data[:-300].tobytes()))
    with pytest.raises(ValueError, match=r"V.npz: data is damaged"):
        convert(path, out)
    for name in ("V.npz", "V.mtx.gz", "V.h5ad", "V.parquet"):
        (tmp_path / name).write_bytes(b"no such thing")
        with pytest.raises(ValueError, match="source: "):
            convert(tmp_path / name, out)
    text = gzip.compress(b"%%MatrixMarket matrix coordinate real general\n3 2 1\n1 1 1\n")
    (tmp_path / "V.mtx.gz").write_bytes(text[:-9])
    with pytest.raises(ValueError, match=r"V.mtx.gz' is damaged: Compressed file ended"):
        convert(tmp_path / "V.mtx.gz", out)
    parquet(tmp_path / "V.parquet", {"a": np.ones(3), "b": np.array(["x", "y", "z"])})
    with pytest.raises(TypeError, match="column 'b' of .* holds string, not real numbers"):
        convert(tmp_path / "V.parquet", out)
    assert not out.exists()


def test_bad_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "V.npz", tmp_path / "out.zarr"
    sparse.save_npz(path, counts())
    for arguments, options, error in (
        ((tmp_path / "V.csv", out), {}, r"end in one of .mtx, .mtx.gz, .npz, .h5ad, .parquet, got"),
        ((path, out), {"memory": "few"}, "memory must be bytes"),
        (
            (path, out),
            {"memory": 20_000},
            "memory=19.53 kiB is too small to convert .* to 32.* kiB",
        ),
        ((path, out), {"layer": "raw"}, "layer is for .h5ad files only, got 'raw'"),
        ((path, tmp_path), {}, "apart from V"),
    ):
        with pytest.raises(ValueError, match=error):
            convert(*arguments, **options)
    with pytest.raises(TypeError, match="source must be the path of a file, got ndarray"):
        convert(np.ones((2, 2)), out)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="there is no file at"):
        convert(tmp_path / "other.npz", out)
    for module, extra in (("h5py", "h5ad"), ("pyarrow.parquet", "parquet")):
        (tmp_path / f"V.{extra}").touch()
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf'pip install "dask_nmf\[{extra}\]"'):
            convert(tmp_path / f"V.{extra}", out)
    assert not out.exists()


def test_what_is_there_already(tmp_path: Path) -> None:
    path, out = tmp_path / "V.npz", tmp_path / "out.zarr"
    sparse.save_npz(path, counts())
    convert(path, out)
    sparse.save_npz(path, counts(seed=3))
    with pytest.raises(FileExistsError, match="holds a CSR group: pass overwrite=True, or choose"):
        convert(path, out)
    assert same(read(out), counts())
    convert(path, out, overwrite=True)
    assert same(read(out), counts(seed=3))
    zarr.create_array(tmp_path / "W.zarr", data=np.ones((3, 2)))
    zarr.create_group(tmp_path / "group.zarr", attributes={"mine": 1})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.tex").touch()
    for name in ("W.zarr", "group.zarr", "folder", "folder/thesis.tex"):
        with pytest.raises(FileExistsError, match="holds something else: choose another path"):
            convert(path, tmp_path / name, overwrite=True)
        assert (tmp_path / name).exists()


def test_to_a_bucket(tmp_path: Path, bucket: s3.Bucket) -> None:
    for kind in ("csr", "mtx"):
        FILES[kind][1](tmp_path / FILES[kind][0], counts())
        convert(tmp_path / FILES[kind][0], s3.url("out.zarr"), memory=SMALL, overwrite=True)
        assert same(read(s3.url("out.zarr")), counts())
    V = counts()
    V.data[500] = -1  # after some of it has been written
    sparse.save_npz(tmp_path / "V.npz", V)
    with pytest.raises(ValueError, match="holds -1.0"):
        convert(tmp_path / "V.npz", s3.url("other.zarr"), memory=SMALL)
    assert bucket.names("out.zarr")
    assert not bucket.names("other.zarr")


def _slowly(path: Path, out: Path) -> None:
    """In a process of its own, which dies before it is done."""
    flush = converting._Column.flush

    def slow(column: Any) -> None:
        flush(column)
        time.sleep(0.2)

    vars(converting)["_CHUNK"] = 64
    converting._Column.flush = slow  # type: ignore[method-assign, assignment]
    convert(path, out)


@pytest.mark.parametrize("kind", ["mtx", "csr"])
def test_killed_half_way_the_same_call_works(tmp_path: Path, kind: str) -> None:
    path, out = tmp_path / FILES[kind][0], tmp_path / "out.zarr"
    FILES[kind][1](path, counts())
    process = CONTEXT.Process(target=_slowly, args=(path, out), daemon=True)
    process.start()
    deadline = time.monotonic() + 60
    while len([*out.glob("data/c/*")]) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join(10)
    assert process.exitcode == -signal.SIGKILL
    assert "encoding-type" not in zarr.open_group(out, mode="r").attrs
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, "out.zarr"}
    convert(path, out)
    assert same(read(out), counts())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h5ad(tmp_path / "V.h5ad", counts(), "layers/raw")
    command = ["convert", str(tmp_path / "V.h5ad"), str(tmp_path / "out.zarr"), "--layer", "raw"]
    assert main([*command, "--memory", "1GiB"]) == 0
    printed, nnz = capsys.readouterr().out, counts().nnz
    assert f"61 x 47 float32, {nnz:,} entries ({nnz / (61 * 47):.3%}), " in printed
    assert same(read(tmp_path / "out.zarr"), counts())
    assert main(command) == BAD_INPUT
    assert "FileExistsError: out: " in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert dask_nmf.convert is convert


def test_duplicates_that_add_up_to_more_than_the_type_holds(tmp_path: Path) -> None:
    values = np.array([3e38, 3e38, 1.0], np.float32)
    parts: dict[str, Any] = {
        "data": values,
        "indices": [1, 1, 0],
        "indptr": [0, 2, 3],
        "shape": [2, 2],
    }
    np.savez(tmp_path / "V.npz", format=b"csr", **parts)
    with pytest.raises(ValueError, match=r"row 0, column 1 .* add up to more than float32 holds"):
        convert(tmp_path / "V.npz", tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()
