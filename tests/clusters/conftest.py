"""A small V, the run that all recipes make of it, and its bits on threads."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zarr

import dask_nmf
from tests.conftest import low_rank
from tests.processes import digest, wait_until

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "cluster"
BLOCKS, PASSES = 15, 7
FIT = ["--rank", "4", "--tol", "0", "--max-passes", str(PASSES), "--block-rows", "200"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("clusters")


def needed(*programs: str) -> None:
    """Skip the test where one is missing, or where it may not do what it does."""
    missing = [name for name in programs if not shutil.which(name)]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install the names in packages.txt here")
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("needs root, on Linux")


@pytest.fixture(scope="session")
def V(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("V") / "V.zarr"
    zarr.create_array(path, data=low_rank(3000, 100, 4), chunks=(200, 100))
    return path


@pytest.fixture(scope="session")
def expected(V: Path) -> str:
    """The digest of that run on threads."""
    out = V.with_name("expected.zarr")
    options: dict[str, Any] = {"tol": 0, "max_passes": PASSES, "block_rows": 200}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dask_nmf.fitting._SPARE", 0)
        return digest(dask_nmf.factorize(V, 4, out=out, **options))


class Run:
    """Commands in a folder, in which blocks of V are slow to read, and are counted."""

    def __init__(self, folder: Path, V: Path) -> None:
        self.folder, self.V, self.out = folder, V, folder / "out.zarr"
        self.log, self._reads = folder / "log", folder / "reads"
        preloaded = repr([str(HERE / "preloaded.py")])
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(HERE.parents[1]),
            "READS": str(self._reads),
            "DASK_DISTRIBUTED__WORKER__PRELOAD": preloaded,
            "DASK_DISTRIBUTED__CLIENT__PRELOAD": preloaded,
            "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "2s",
        }
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *command: object) -> "subprocess.Popen[bytes]":
        """What it prints goes to the log."""
        with open(self.log, "ab") as log:
            self._started.append(
                subprocess.Popen(
                    [str(part) for part in command],
                    cwd=self.folder,
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                )
            )
        return self._started[-1]

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def another(self, name: str) -> "Run":
        """In a folder of its own, with the same environment as it is now."""
        folder = self.folder / name
        folder.mkdir()
        run = Run(folder, self.V)
        run.environment, run._started = dict(self.environment), self._started
        return run

    def registered(self, workers: int) -> None:
        """Wait until so many have."""

        def all_there() -> bool:
            assert all(process.poll() is None for process in self._started), self.said()
            return self.said().count("Registered to") >= workers

        wait_until(all_there, 90, f"{workers} workers")

    def reads(self) -> int:
        """How many blocks of V have been asked for."""
        return len(self._reads.read_text().split()) if self._reads.exists() else 0

    def in_pass(self, number: float) -> None:
        """Wait until so many passes have been made."""
        wait_until(lambda: self.reads() >= number * BLOCKS, 120, f"pass {number}")

    def digest(self) -> str:
        """Of what lies in out."""
        return digest(dask_nmf.open_result(self.out))

    def end(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.terminate()
        for process in self._started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def run(tmp_path: Path, V: Path) -> Iterator[Run]:
    running = Run(tmp_path, V)
    yield running
    running.end()
