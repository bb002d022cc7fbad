"""`dask-nmf doctor`: clusters that are as they should be, and those that are not."""

import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster

from dask_nmf import doctor
from dask_nmf.cli import main
from dask_nmf.doctor import OK, WARNING, WRONG, Finding, examine


@pytest.fixture
def V(tmp_path: Path) -> Path:
    zarr.create_array(tmp_path / "V.zarr", data=np.ones((10, 4)))
    return tmp_path / "V.zarr"


def _of(findings: list[Finding], words: str) -> Finding:
    (found,) = (finding for finding in findings if words in str(finding))
    return found


def test_nothing_is_wrong_with_a_local_cluster(
    cluster: str, V: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.zarr"
    assert main(["doctor", "--scheduler", cluster, "--V", str(V), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert not [line for line in told.splitlines() if line.startswith(WRONG)]
    assert "dask_nmf" in told
    assert "refuses to create what is there" in told
    assert "allowed-failures is 3\n" in told  # dask's own
    assert sorted(path.name for path in tmp_path.iterdir()) == ["V.zarr"]  # nothing is left


def test_what_is_not_there_is_wrong(
    cluster: str, V: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    places = ["--V", str(tmp_path / "other.zarr"), "--out", str(tmp_path / "file" / "out.zarr")]
    assert main(["doctor", "--scheduler", cluster, *places]) == 1
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()].count(WRONG) == 2
    assert "there is no zarr array at" in told
    assert "NotADirectoryError" in told


def test_bare_workers_without_limits() -> None:
    options: Any = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "memory_limit": 0}
    where = "127.0.0.1:0"
    with LocalCluster(dashboard_address=where, **options) as running, Client(running) as client:
        found = list(examine(client))
        running.scale(0)
        while client.scheduler_info(n_workers=-1)["workers"]:
            time.sleep(0.05)
        assert _of(list(examine(client)), "has no workers").level == WRONG
    assert _of(found, "memory without a limit").level == WARNING
    assert _of(found, "without a nanny").level == WARNING


def test_a_store_that_replaces_is_wrong(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that takes no notice of the condition."""
    monkeypatch.setattr(doctor, "create", lambda *_: True)
    options: Any = {"n_workers": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options) as running, Client(running) as client:
        found = list(examine(client, out=tmp_path / "out.zarr"))
    assert _of(found, "replaces what it is asked to create").level == WRONG


def test_versions_are_compared() -> None:
    gone = PackageNotFoundError("zarr")
    places = ("client", "scheduler", "tcp://a")
    versions: dict[str, dict[str, Any]] = {
        "Python": dict(zip(places, ("3.11.7", "3.11.2", "3.11.7"), strict=True)),
        "dask": dict(zip(places, ("2026.8.0", "2026.8.0", "2026.3.0"), strict=True)),
        "numpy": dict(zip(places, ("2.4.6", "2.4.5", "2.4.6"), strict=True)),
        "zarr": dict(zip(places, ("3.1.6", gone, gone), strict=True)),
    }
    found = list(doctor._compared(versions))
    assert [finding.level for finding in found] == [OK, WRONG, WARNING, WRONG]
    assert "tcp://a 2026.3.0" in found[1].what
    assert found[3].what == "zarr is not installed at scheduler, tcp://a"
    assert all(finding.advice for finding in found[1:])


def test_a_clock_that_is_off(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = {"client": time.time(), "scheduler": time.time(), "tcp://a": time.time() + 1000}
    monkeypatch.setattr(doctor, "_on_all", lambda *_: ahead)
    (found,) = doctor._clocks(None)
    assert found.level == WARNING
    assert "tcp://a is 1000 s off" in found.what or "tcp://a is 999 s off" in found.what


def test_a_scheduler_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 2
    assert "--scheduler" in capsys.readouterr().err
