"""The matrix of damages: what is stored, and how it is spoilt, on a disk and on S3.

The same bits, or an error that names the object and says what to do; never another result.
"""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

import dask_nmf
from dask_nmf import commits, errors
from tests.conftest import low_rank, push
from tests.damage import DAMAGES, Bits, Damage, Folder, Place, apply, bits, judge, replaced, restore
from tests.s3 import url
from tests.s3_runs import Killed, kill_at

V = low_rank(40, 6, 2)
OPTIONS: dict[str, Any] = {"tol": 0, "max_passes": 4, "block_rows": 20, "checkpoint_every": 1}
CODECS: dict[str, Any] = {"crc32c": [Crc32cCodec()], "zstd": [ZstdCodec(checksum=True)]}

# What a run has at hand when it was stopped, and what is there when it is finished.
STOPPED = {
    "chunk of V": "V.zarr/c/1/0",
    "V": "V.zarr/zarr.json",
    "chunk of W": r"out.zarr/run/*/W-*/c/1/0",
    "W": "out.zarr/run/*/W-*/zarr.json",
    "chunk of a state": "out.zarr/run/*/state-000002-*/c/0/0",
    "state": "out.zarr/run/*/state-000002-*/zarr.json",
    "commit": "out.zarr/run/*/commit-000002/zarr.json",
    "epoch": "out.zarr/run/epoch-*/zarr.json",
    "chunk of the first pass": "out.zarr/run/*/first/c/0/0",
    "first pass": "out.zarr/run/*/first/zarr.json",
    "one run": "out.zarr/run/????????????/zarr.json",
    "runs": "out.zarr/run/zarr.json",
    "results": "out.zarr/zarr.json",
}
FINISHED = {
    "chunk of V": "V.zarr/c/1/0",
    "V": "V.zarr/zarr.json",
    "chunk of W": "out.zarr/W/c/0/0",
    "W": "out.zarr/W/zarr.json",
    "chunk of H": "out.zarr/H/c/0/0",
    "H": "out.zarr/H/zarr.json",
    "chunk of the errors": "out.zarr/error/c/0",
    "errors": "out.zarr/error/zarr.json",
    "chunk of the seconds": "out.zarr/seconds/c/0",
    "results": "out.zarr/zarr.json",
}


@dataclass
class Case:
    """A place with V and a run, as it was when the run was stopped and when it was finished."""

    place: Place
    V: str
    out: str
    expected: Bits
    stopped: dict[str, bytes]
    finished: dict[str, bytes]

    def run(self, **kwargs: Any) -> dask_nmf.Result:
        return dask_nmf.factorize(self.V, 2, out=self.out, **OPTIONS, **kwargs)

    def opened(self) -> dask_nmf.Result:
        return dask_nmf.open_result(self.out)

    def outcomes(
        self, objects: dict[str, bytes], pattern: str, damages: dict[str, Damage]
    ) -> dict[str, str]:
        """What the next call, and `open_result` of a finished run, make of each damage."""
        (key,) = [name for name in objects if Path(name).match(pattern)][-1:]
        calls: dict[str, Callable[[], dask_nmf.Result]] = {"call": self.run}
        if objects is self.finished:
            calls["open"] = self.opened
        found = {}
        for name, damage in damages.items():
            for kind, call in calls.items():
                restore(self.place, objects)
                apply(self.place, key, damage)
                found[f"{name}, {kind}"] = judge(call, self.expected)
        return found


def make_case(place: Place, V_path: str, out: str, codecs: Any) -> Case:
    zarr.create_array(V_path, data=V, chunks=(20, 6), compressors=codecs)
    case = Case(place, V_path, out, (b"", b"", ()), {}, {})
    with pytest.raises(Killed):
        case.run(callback=kill_at(2))
    case.stopped |= {key: place.get(key) for key in sorted(place.digests())}
    case.expected = bits(case.run())
    case.finished |= {key: place.get(key) for key in sorted(place.digests())}
    assert case.expected == bits(dask_nmf.factorize(V_path, 2, **OPTIONS))
    return case


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is gone stays gone; what is told in the log is told elsewhere."""
    monkeypatch.setattr("dask_nmf.reader._SECOND_LOOK", 0.0)
    logging.getLogger("dask_nmf").setLevel(logging.ERROR)
    with dask.config.set(scheduler="synchronous"):
        yield
    logging.getLogger("dask_nmf").setLevel(logging.NOTSET)


def case_in(root: Path, codecs: Any) -> Case:
    return make_case(Folder(root), str(root / "V.zarr"), str(root / "out.zarr"), codecs)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_in(tmp_path_factory.mktemp("damaged"), CODECS["crc32c"])


def check(outcomes: dict[str, str]) -> None:
    bad = {name: found for name, found in outcomes.items() if found not in ("same", "refused")}
    assert not bad


def damages_of(what: str) -> dict[str, Damage]:
    """All; of a chunk one that a checksum finds wherever it is, and those of its length."""
    names = ["flip at 0.5", "a byte less", "empty", "gone"] if "chunk" in what else list(DAMAGES)
    return {name: DAMAGES[name] for name in names}


@pytest.mark.parametrize("what", STOPPED)
def test_stopped_run_on_disk(on_disk: Case, what: str) -> None:
    outcomes = on_disk.outcomes(on_disk.stopped, STOPPED[what], damages_of(what))
    check(outcomes)
    if what == "chunk of V":
        assert set(outcomes.values()) == {"refused"}
    elif what not in ("V", "results"):
        assert set(outcomes.values()) == {"same"}  # an older commit, or the start, serves as well


@pytest.mark.parametrize("what", FINISHED)
def test_finished_run_on_disk(on_disk: Case, what: str) -> None:
    outcomes = on_disk.outcomes(on_disk.finished, FINISHED[what], damages_of(what))
    check(outcomes)
    if what.startswith("chunk of") and what != "chunk of V":
        assert set(outcomes.values()) == {"refused"}


def test_another_checksum_of_V(tmp_path: Path) -> None:
    case = case_in(tmp_path, CODECS["zstd"])
    outcomes = case.outcomes(case.stopped, STOPPED["chunk of V"], DAMAGES)
    assert set(outcomes.values()) == {"refused"}


@pytest.mark.parametrize("field", ["data_type", "chunk_shape", "separator", "zarr_format"])
def test_fields_of_V_that_zarr_does_not_know(on_disk: Case, field: str) -> None:
    damages = {field: replaced(f'"{field}', f'"{field[:-1]}~')}
    check(on_disk.outcomes(on_disk.stopped, STOPPED["V"], damages))


# moto takes a second for a run, and what a store gives is all that differs: one of each kind of
# object (a chunk and metadata of V, of a factor, of a record), each in one way.
ON_S3 = {
    "stopped": ["chunk of V", "W", "commit"],
    "stopped, others": ["V", "chunk of W", "chunk of a state", "epoch"],
    "finished": ["chunk of W", "W", "chunk of the errors", "results"],
}


@pytest.mark.parametrize("moment", push(1, ON_S3))
def test_everything_on_s3(bucket: Any, moment: str) -> None:
    case = make_case(bucket, url("V.zarr"), url("out.zarr"), CODECS["crc32c"])
    stopped = moment.startswith("stopped")
    objects, patterns = (case.stopped, STOPPED) if stopped else (case.finished, FINISHED)
    ways = ["flip at 0.5", "gone", "half", "empty"]
    outcomes: dict[str, str] = {}
    for number, what in enumerate(ON_S3[moment]):
        name = ways[number % 4]
        found = case.outcomes(objects, patterns[what], {name: DAMAGES[name]})
        outcomes |= {f"{what}, {name}": outcome for name, outcome in found.items()}
    check(outcomes)
    assert len(outcomes) >= len(ON_S3[moment])
    assert set(outcomes.values()) == {"same", "refused"}


NUMBERS = {
    "rows of W": ("out.zarr/run/*/W-*/zarr.json", "40", "20"),
    "chunks of W": ("out.zarr/run/*/W-*/zarr.json", "20,", "00,"),
    "columns of W": ("out.zarr/run/*/W-*/zarr.json", "2\n  ]", "0\n  ]"),
    "rows of V": ("V.zarr/zarr.json", "40", "20"),
    "columns of V": ("V.zarr/zarr.json", "6\n  ]", "4\n  ]"),
    "key of a chunk": ("out.zarr/run/*/W-*/zarr.json", "separator", "sepasator"),
    "name of a codec": ("out.zarr/run/*/W-*/zarr.json", "crc32c", "crc32b"),
    "fill value": ("out.zarr/run/*/W-*/zarr.json", "fill_value", "fill_walue"),
}


@pytest.mark.parametrize("what", NUMBERS)
def test_metadata_that_is_still_json(on_disk: Case, what: str) -> None:
    pattern, old, new = NUMBERS[what]
    outcomes = on_disk.outcomes(on_disk.stopped, pattern, {what: replaced(old, new)})
    check(outcomes)


def test_all_commits_damaged(on_disk: Case) -> None:
    """Then the run begins at its start."""
    restore(on_disk.place, on_disk.stopped)
    commits = [key for key in on_disk.stopped if "/commit-" in key]
    assert len(commits) == 2
    for key in commits:
        apply(on_disk.place, key, DAMAGES["half"])
    result = on_disk.run()
    assert result.resumed_from is None
    assert bits(result) == on_disk.expected


@pytest.mark.parametrize("member", ["commit-000002", "epoch-*"])
def test_a_number_that_is_another(on_disk: Case, member: str) -> None:
    """A record that is JSON, and says all that it should, but not what was written."""
    restore(on_disk.place, on_disk.stopped)
    (path,) = Path(on_disk.out).glob(f"run/*/{member}" if "commit" in member else f"run/{member}")
    place = zarr.open_group(path, mode="r").store_path
    told = commits.read(place)
    assert told is not None
    field = "passes" if "passes" in told else "nonce"
    text = json.loads((path / "zarr.json").read_text())
    text["attributes"][field] = 1 if field == "passes" else "0" * 32
    assert text["attributes"][field] != told[field]
    (path / "zarr.json").write_text(json.dumps(text))
    with pytest.raises(errors.Damaged, match="its digest is wrong"):
        commits.read(place)


# --------------------------------------------------------- what has no checksum, and V itself
@pytest.fixture
def bare(tmp_path: Path) -> Case:
    """V without a checksum in its codecs."""
    return case_in(tmp_path, None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("when", ["stopped", "finished"])
def test_entries_that_V_may_not_have(bare: Case, when: str, value: float) -> None:
    def spoil(body: bytes) -> bytes:
        values = np.frombuffer(body).copy()
        values[17] = value
        return values.tobytes()

    restore(bare.place, getattr(bare, when))
    apply(bare.place, "V.zarr/c/1/0", spoil)
    if when == "stopped":
        with pytest.raises(ValueError, match=r"row 22, column 5 .*c/1/0"):
            bare.run()
    else:  # not read again, as far as its files' times tell
        assert bits(bare.run()) == bare.expected


@pytest.mark.parametrize("when", ["stopped", "finished"])
@pytest.mark.parametrize("codecs", ["none", "crc32c"])
def test_another_V(tmp_path: Path, when: str, codecs: str) -> None:
    """Valid entries, of a valid array: only the run's own record tells that they are others."""
    case = case_in(tmp_path, CODECS.get(codecs))
    restore(case.place, getattr(case, when))
    array: Any = zarr.open_array(case.V, mode="r+")
    array[25, 3] *= 1.01
    with pytest.raises((ValueError, FileExistsError), match="V has changed"):
        case.run()
    array[25, 3] = V[25, 3]
    assert bits(case.run()) == case.expected  # written anew, and the same
