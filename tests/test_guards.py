"""Guards taken away one at a time: the checker of tests/damage.py must then see other results."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec

import dask_nmf
from dask_nmf import checkpoint, commits, stream, tasks
from tests.conftest import Array, low_rank
from tests.damage import Bits, Damage, Folder, apply, bits, flip, judge, replaced
from tests.s3_runs import Killed, kill_at

V = low_rank(60, 6, 3)
OPTIONS: dict[str, Any] = {"tol": 0, "max_passes": 8, "block_rows": 20, "solver": "hals"}


def _run(folder: Path, **kwargs: Any) -> dask_nmf.Result:
    return dask_nmf.factorize(folder / "V.zarr", 3, out=folder / "out.zarr", **OPTIONS, **kwargs)


def _outcome(folder: Path, spoil: Callable[[Folder], None], sweep: int, every: int = 1) -> str:
    """What becomes of a run that is killed after that sweep, spoilt, and called again."""
    array = zarr.create_array(folder / "V.zarr", data=V, chunks=(20, 6), compressors=None)
    expected: Bits = bits(dask_nmf.factorize(array, 3, **OPTIONS))
    with pytest.raises(Killed):
        _run(folder, callback=kill_at(sweep), checkpoint_every=every)
    spoil(Folder(folder))
    return judge(lambda: _run(folder, checkpoint_every=every), expected)


def _damaged(pattern: str, damage: Damage) -> Callable[[Folder], None]:
    def spoil(place: Folder) -> None:
        keys = sorted(key for key in place.digests() if Path(key).match(pattern))
        apply(place, keys[-1], damage)

    return spoil


# ---------------------------------------------------------------------- what makes a run whole
def _no_checksums(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(commits, "Crc32cCodec", lambda: BloscCodec(cname="lz4", clevel=0))


@pytest.mark.parametrize("guarded", [True, False])
def test_checksums_of_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    if not guarded:
        _no_checksums(monkeypatch)
    spoil = _damaged("out.zarr/run/*/W-*/c/1/0", flip(0.562, 2))
    assert _outcome(tmp_path, spoil, sweep=3) == ("same" if guarded else "different")


def _read_anything(place: Any) -> Any:
    """A document, whatever its digest."""
    body = commits._bytes(place / "zarr.json")
    return None if body is None else json.loads(body)["attributes"]


@pytest.mark.parametrize("guarded", [True, False])
def test_digests_of_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool) -> None:
    """A commit that names the W of the pass before."""
    if not guarded:
        monkeypatch.setattr(checkpoint, "read", _read_anything)

    def spoil(place: Folder) -> None:
        older, newer = sorted({Path(key).parts[3] for key in place.digests() if "/W-" in key})
        _damaged("out.zarr/run/*/commit-000003/zarr.json", replaced(newer, older))(place)

    assert _outcome(tmp_path, spoil, sweep=3) == ("same" if guarded else "different")


def _reused(
    run: Any, number: int, shape: tuple[int, int], rows: int, dtype: Any
) -> tuple[str, Any]:
    """Two names for W, in turn."""
    name = f"W-00000{number % 2}-reused"
    run._known.add(name)
    dims = ("row", "component")
    array = commits.new_array(run._group, name, shape, dtype, dims, (rows, shape[1]))
    return name, commits.Writer(array)


@pytest.mark.parametrize("guarded", [True, False])
def test_names_of_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_kept: None, guarded: bool
) -> None:
    """Killed after the fifth sweep has been written, and before it is committed."""
    if not guarded:
        monkeypatch.setattr(checkpoint.Run, "new_W", _reused)
    outcome = _outcome(tmp_path, lambda _: None, sweep=5, every=3)
    assert outcome == ("same" if guarded else "different")


def _another_V(place: Folder) -> None:
    zarr.open_array(place.root / "V.zarr", mode="r+")[41, 2] = V[41, 2] * 1.01


@pytest.mark.parametrize("guarded", [True, False])
def test_fingerprint_of_V(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool) -> None:
    if not guarded:
        monkeypatch.setattr("dask_nmf.loop.unknown", lambda *_: False)
        monkeypatch.setattr("dask_nmf.resume.unknown", lambda *_: False)
    outcome = _outcome(tmp_path, _another_V, sweep=3)
    assert outcome == ("refused" if guarded else "different")


# --------------------------------------------------------------------- what decides the bits
def _in_any_order(partial: Any) -> Any:
    """The sum of the blocks as they happen to be ready."""
    order = np.random.default_rng().permutation(partial.numblocks[0])
    total = partial.blocks[int(order[0])]
    for i in order[1:]:
        total = total + partial.blocks[int(i)]
    return total.sum(axis=0, dtype=np.float64)


@pytest.mark.parametrize("guarded", [True, False])
def test_order_of_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool) -> None:
    zarr.create_array(tmp_path / "V.zarr", data=low_rank(600, 30, 4), chunks=(20, 30))
    if not guarded:
        monkeypatch.setattr(stream, "sum_blocks", _in_any_order)

    def run() -> dask_nmf.Result:
        with dask.config.set(scheduler="synchronous"):
            return dask_nmf.factorize(tmp_path / "V.zarr", 4, **OPTIONS)

    outcomes = {judge(run, bits(run())) for _ in range(2)}
    assert outcomes == ({"same"} if guarded else {"different"})


def _misaligned(x: Array) -> Array:
    copy = np.zeros(x.nbytes + 1, dtype="u1")[1:].view(x.dtype).reshape(x.shape)
    copy[:] = x
    return copy


SHAPES = [(64, 40, 7), (1000, 64, 20), (500, 300, 7), (9, 1001, 3)]


def _depends_on_alignment() -> list[str]:
    found = []
    for m, n, k in SHAPES:
        for dtype in ("f4", "f8"):
            X, W, H = (low_rank(*shape, 3).astype(dtype) for shape in ((m, n), (m, k), (k, n)))
            cases: list[tuple[Any, tuple[Array, ...]]] = [
                (tasks.product, (X, H.T)),
                (tasks.partial_product, (W.T, X)),
                (tasks.partial_gram, (W,)),
            ]
            for task, operands in cases:
                moved = task(*(_misaligned(x) for x in operands))
                if moved.tobytes() != task(*(x.copy() for x in operands)).tobytes():
                    found.append(f"{task.__name__} {m} {n} {k} {dtype}")
    return found


def test_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _depends_on_alignment()
    monkeypatch.setattr(tasks, "aligned", lambda x: x)
    if not _depends_on_alignment():
        pytest.skip("the BLAS of this processor gives the same bits at odd addresses")
