"""Workers that are SLURM jobs: cancelled, preempted, and their driver a job that is requeued."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import slurm
from tests.clusters.conftest import BLOCKS, FIT, PASSES, RECIPES, Run, needed
from tests.processes import wait_until

WORKERS = ["--jobs", 2, "--memory", "1GiB", "--time", "10", "--interface", "lo"]
RECIPE = [sys.executable, RECIPES / "slurm" / "fit.py", *WORKERS]


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    needed(*slurm.PROGRAMS)
    with slurm.running(tmp_path_factory.mktemp("slurm")) as conf:
        yield conf


@pytest.fixture
def ask(conf: Path, run: Run) -> Any:
    """Ask SLURM; and the run's commands ask the same one."""
    run.environment["SLURM_CONF"] = str(conf)
    return lambda *command: slurm.asked(conf, *command)


def jobs(ask: Any, state: str = "RUNNING") -> set[str]:
    """Workers' in that state."""
    return set(ask("squeue", "-h", "-n", "dask-worker", "-t", state, "-o", "%A").split())


def keys(folder: Path) -> list[Path]:
    """Files with a private key in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if b"PRIVATE KEY" in path.read_bytes()]


def test_cancelled_workers(run: Run, ask: Any, expected: str) -> None:
    """One, and the others do its part; then all, and the run waits until others have come."""
    driver = run.start(*RECIPE, run.V, run.out, *FIT)
    run.in_pass(1.5)
    first = jobs(ask)
    assert len(first) == 2
    lying = keys(run.folder)  # of this run, where none but their owner can read them
    assert [path.parent.name for path in lying] == ["dask-nmf-logs"]
    assert not lying[0].parent.stat().st_mode & 0o077
    ask("scancel", min(first))
    run.in_pass(2.5)
    for job in jobs(ask):
        ask("scancel", job)
    run.in_pass(3.5)
    assert jobs(ask).isdisjoint(first)
    assert driver.wait(90) == 0, run.said()
    assert run.digest() == expected
    assert PASSES * BLOCKS <= run.reads() <= (PASSES + 2) * BLOCKS
    wait_until(lambda: not ask("squeue", "-h"), 20, "the end of all jobs")
    assert not keys(run.folder)


def test_preempted_workers(run: Run, ask: Any, expected: str) -> None:
    """A job that goes first takes the whole machine for a while."""
    driver = run.start(*RECIPE, "--partition", "low", run.V, run.out, *FIT)
    run.in_pass(1.5)
    ask("sbatch", "-p", "high", "-n", "4", "-o", str(run.folder / "other"), "--wrap", "sleep 3")
    wait_until(lambda: not jobs(ask), 20, "preemption")
    assert "PREEMPTION" in "".join(p.read_text() for p in (run.folder / "dask-nmf-logs").iterdir())
    assert driver.wait(90) == 0, run.said()
    assert run.digest() == expected
    assert run.reads() <= (PASSES + 2) * BLOCKS


def test_a_driver_that_is_a_job(run: Run, ask: Any, expected: str) -> None:
    """Requeued, it goes on from the last commit, with other workers."""
    command = [*RECIPE, run.V, run.out, *FIT]
    script = run.folder / "driver.sh"
    script.write_text(f"#!/bin/sh\nexec {' '.join(str(part) for part in command)}\n")
    options = ["--parsable", "--requeue", "--open-mode=append", "-n", "1", "-o", run.log]
    sbatch = ["sbatch", *options, script]
    done = subprocess.run(
        [str(part) for part in sbatch],
        env=run.environment,
        cwd=run.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    driver = done.stdout.strip()
    run.in_pass(3.5)
    before = jobs(ask)
    ask("scontrol", "requeue", driver)
    wait_until(lambda: not jobs(ask) & before, 30, "the end of its workers")
    wait_until(lambda: not ask("squeue", "-h"), 90, "the end of all jobs")
    assert run.digest() == expected, run.said()
    assert '\n  "resumed_from": null' not in run.said()
    assert run.reads() <= (PASSES + 2) * BLOCKS


def test_a_partition_that_is_not_there(run: Run, ask: Any) -> None:
    """Is said at once, and nothing is left in the queue."""
    driver = run.start(*RECIPE, "--partition", "nowhere", run.V, run.out, *FIT)
    assert driver.wait(60) == 2
    assert "invalid partition specified: nowhere" in run.said()
    assert not ask("squeue", "-h")
