"""Workers, scheduler or driver are lost during a run: the same bits, or an error that says why.

On clusters of real processes.
"""

import gc
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from distributed import Client
from zarr.storage import LocalStore

import dask_nmf
from dask_nmf import loop
from dask_nmf.blocks import Grid, even
from dask_nmf.errors import ClusterLost, PoisonBlock
from dask_nmf.watch import _Watch, compute
from tests.conftest import low_rank, push
from tests.processes import Call, Process, Processes, wait_until
from tests.stores import CountingStore, PoisonStore, SlowStore

SHAPE, BLOCK, BLOCKS, PASSES = (3000, 100), 200, 15, 7
GRID = Grid(even(SHAPE[0], BLOCK), (SHAPE[1],))


@pytest.fixture(autouse=True)
def config() -> Iterator[None]:
    """dask's; a client that closes by itself leaves its own behind."""
    before = dict(dask.config.config)
    yield
    dask.config.config.clear()
    dask.config.config.update(before)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """A scheduler and two workers."""
    with Processes(tmp_path) as processes:
        processes.begin(2)
        yield processes


@pytest.fixture(scope="module")
def V(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "V.zarr"
    zarr.create_array(path, data=low_rank(*SHAPE, 4), chunks=(BLOCK, SHAPE[1]))
    return path


@pytest.fixture(scope="module")
def expected(V: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of an undisturbed run, in sequence."""
    with Processes(tmp_path_factory.mktemp("undisturbed")) as processes:
        return digest_of(processes.drive(call(V), ""))


@pytest.fixture
def slow(V: Path, tmp_path: Path) -> Any:
    """V, of which each chunk takes a while, and which counts its reads."""
    return zarr.open_array(SlowStore(counting(V, tmp_path), 0.03), mode="r")


def counting(V: Path, tmp_path: Path) -> CountingStore:
    return CountingStore(LocalStore(V), tmp_path / "reads.log")


def call(V: Any, out: Path | None = None, **config: Any) -> Call:
    options = {"solver": "hals", "tol": 0, "max_passes": PASSES, "checkpoint_every": 1}
    return Call(V, 4, GRID, options, out, config=config)


def digest_of(driver: Process, seconds: float = 40) -> str:
    """Of its result; waited for within a hard limit."""
    outcome = driver.told(seconds)
    assert outcome is not None, "it hangs"
    assert not outcome.error, outcome.text
    return str(outcome.digest)


def in_pass(number: float, store: CountingStore) -> None:
    """Wait until so many passes have been made."""
    wait_until(lambda: store.reads().total() >= number * BLOCKS, 30, f"pass {number}")


# -------------------------------------------------------------------------------------- workers
def test_a_killed_worker_costs_its_part_of_a_pass(
    processes: Processes, slow: Any, V: Path, tmp_path: Path, expected: str
) -> None:
    driver = processes.drive(call(slow, tmp_path / "out.zarr"))
    store = counting(V, tmp_path)
    in_pass(3.5, store)
    processes.workers.pop().kill()
    processes.add_worker()
    assert digest_of(driver) == expected
    reads = store.reads()
    assert len(reads) == BLOCKS
    assert max(reads.values()) <= PASSES + 1
    assert min(reads.values()) == PASSES
    assert reads.total() < PASSES * BLOCKS + BLOCKS  # what the other worker has made stays


@pytest.mark.parametrize("how", push(1, ["killed", "stopped"]))
def test_no_worker_is_left(slow: Any, V: Path, tmp_path: Path, expected: str, how: str) -> None:
    """Not a wait for ever; and what was committed is there for the next call."""
    run = call(slow, tmp_path / "out.zarr", **{"dask_nmf.patience": 4})
    with Processes(tmp_path, {"distributed.scheduler.worker-ttl": "5 minutes"}) as processes:
        processes.begin(2)
        driver = processes.drive(run)
        in_pass(3.5, counting(V, tmp_path))
        for worker in processes.workers:
            worker.send(signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
        outcome = driver.told(15)
        assert outcome is not None, "it hangs"
        assert outcome.error == "ClusterLost"
        why = "none of its 2 workers answers" if how == "stopped" else "it has no workers"
        assert f"{why}. Mend it and make the same call again" in outcome.text
        assert "dask_nmf.patience" in outcome.text
        for worker in processes.workers:
            worker.kill()
        processes.add_worker()
        assert digest_of(processes.drive(run)) == expected


def test_no_worker_is_left_on_a_scheduler_that_gives_up_first(
    slow: Any, V: Path, tmp_path: Path, expected: str
) -> None:
    """It fails the tasks with an error of its own; the same call goes on here, too."""
    run = call(slow, tmp_path / "out.zarr")
    with Processes(tmp_path, {"distributed.scheduler.no-workers-timeout": "1s"}) as processes:
        processes.begin(2)
        driver = processes.drive(run)
        in_pass(3.5, counting(V, tmp_path))
        for worker in processes.workers:
            worker.kill()
        outcome = driver.told(20)
        assert outcome is not None, "it hangs"
        assert outcome.error == "ClusterLost", outcome.text
        assert "no-workers-timeout" in outcome.text
        assert "make the same call again" in outcome.text
        processes.add_worker()
        assert digest_of(processes.drive(run)) == expected


def test_a_worker_that_wakes_up_late_changes_nothing(
    processes: Processes, slow: Any, V: Path, tmp_path: Path, expected: str
) -> None:
    """Stopped while it writes W, dropped, and awake again after the run."""
    run = call(slow, tmp_path / "out.zarr")
    driver = processes.drive(run)
    in_pass(3.5, counting(V, tmp_path))
    processes.workers[0].send(signal.SIGSTOP)
    assert digest_of(driver) == expected
    processes.workers[0].send(signal.SIGCONT)
    time.sleep(0.5)  # enough to write what it was about to
    assert digest_of(processes.drive(run, "")) == expected


def test_a_block_that_kills_workers_is_named(tmp_path: Path, V: Path, expected: str) -> None:
    """After a bounded number of deaths; and the run goes on once it does not kill any more."""
    poison = PoisonStore(LocalStore(V), "c/7/0", tmp_path / "deaths.log", 100)
    # A worker gets one task at a time: dask blames all that it had.
    config = {
        "distributed.scheduler.allowed-failures": 1,
        "distributed.scheduler.worker-saturation": 1.0,
    }
    with Processes(tmp_path, config) as processes:
        processes.begin(2)
        driver = processes.drive(call(zarr.open_array(poison, mode="r"), tmp_path / "out.zarr"))
        wait_until(lambda: _replaced(processes) and bool(driver.heard()), 40, "the error")
        outcome = driver.told()
        assert outcome.error == "PoisonBlock", outcome.text
        assert "rows 1,400 to 1,600 of V" in outcome.text
        assert "block_rows=" in outcome.text
        assert 2 <= poison.died() <= 3 * 2 * 2
        assert digest_of(processes.drive(call(V, tmp_path / "out.zarr"))) == expected


def test_all_blocks_that_were_blamed_are_named(V: Path) -> None:
    """One of them may just have waited on a worker that died of another."""
    blamed = iter([6, 7, 7])

    def a_pass() -> None:
        raise PoisonBlock("killed", ("nmf-product", next(blamed), 0))

    plan = dask_nmf.plan(V, 4, block_rows=BLOCK)
    with pytest.raises(PoisonBlock, match="rows 1,200 to 1,400 or 1,400 to 1,600 of V died"):
        loop._surviving(plan, a_pass)


def _replaced(processes: Processes) -> bool:
    """Dead workers are."""
    for worker in [worker for worker in processes.workers if not worker.alive]:
        processes.workers.remove(worker)
        processes.add_worker()
    return True


# ------------------------------------------------------------------------------------ scheduler
def test_a_killed_scheduler(
    processes: Processes, slow: Any, V: Path, tmp_path: Path, expected: str
) -> None:
    run = call(slow, tmp_path / "out.zarr")
    driver = processes.drive(run)
    in_pass(3.5, counting(V, tmp_path))
    assert processes.scheduler is not None
    processes.scheduler.kill()
    outcome = driver.told(60)
    assert outcome is not None, "it hangs"
    assert outcome.error == "ClusterLost"
    assert "make the same call again" in outcome.text
    processes.begin(1)
    driver = processes.drive(run)
    assert digest_of(driver) == expected
    assert counting(V, tmp_path).reads().total() < (PASSES + 2) * BLOCKS  # it went on


def test_a_scheduler_lost_between_two_graphs(processes: Processes) -> None:
    """The client then takes work, waits for a scheduler that does not come, and closes."""
    with Client(processes.address, timeout=3, set_as_default=True) as client:
        client.wait_for_workers(1)
        assert processes.scheduler is not None
        processes.scheduler.kill()
        wait_until(lambda: client.status == "connecting", 10, "the loss")
        with pytest.raises(ClusterLost, match="Start a cluster and make the same call again"):
            compute(dask.delayed(sum)([1, 2]))


def test_a_client_that_gives_up(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes itself, when its scheduler has not come back, between two looks at what is done."""
    with Client(processes.address, set_as_default=True) as client:
        monkeypatch.setattr("dask_nmf.watch._Watch.look", lambda _: client.close())
        with pytest.raises(ClusterLost, match="Start a cluster and make the same call again"):
            compute(dask.delayed(time.sleep)(30))


def test_a_client_that_gives_up_while_it_is_asked(processes: Processes) -> None:
    """Nor does it know then whose client it was."""
    with Client(processes.address, set_as_default=False) as client:
        watch = _Watch(client, in_turn=1)
        client.close()
        with (
            dask.config.set({"dask_nmf.patience": 0}),
            pytest.raises(ClusterLost, match=f"{processes.address}.*make the same call again"),
        ):
            watch.look()


# -------------------------------------------------------------------------------------- drivers
def test_a_killed_driver_leaves_nothing_that_could_do_harm(
    processes: Processes, slow: Any, V: Path, tmp_path: Path, expected: str
) -> None:
    """Its tasks may still write while the next driver goes on."""
    run = call(slow, tmp_path / "out.zarr")
    for number in (1.5, 3.5, 5.5):
        driver = processes.drive(run)
        in_pass(number, counting(V, tmp_path))
        driver.kill()
    assert digest_of(processes.drive(run)) == expected


def test_ctrl_c_ends_a_run_at_once(
    processes: Processes, slow: Any, V: Path, tmp_path: Path, expected: str
) -> None:
    """With none of its tasks left on the scheduler, and those of others as they were."""
    run = call(slow, tmp_path / "out.zarr")
    longer = replace(run, options=run.options | {"max_passes": 1000})  # not done by then
    with Client(processes.address, set_as_default=False) as other:
        theirs = [other.submit(pow, i, 2, key=f"theirs-{i}") for i in range(3)]
        driver = processes.drive(longer)
        in_pass(3.5, counting(V, tmp_path))
        driver.send(signal.SIGINT)
        outcome = driver.told(10)
        assert outcome is not None, "it goes on"
        assert outcome.error == "KeyboardInterrupt"
        wait_until(lambda: tasks(other) == {f"theirs-{i}" for i in range(3)}, 5, "nothing left")
        assert other.gather(theirs) == [0, 1, 4]
    assert digest_of(processes.drive(run)) == expected


def tasks(client: Any) -> set[str]:
    """The keys of all tasks that a scheduler knows."""
    return set(client.run_on_scheduler(_tasks))


def _tasks(dask_scheduler: Any) -> list[str]:
    return [str(key) for key in dask_scheduler.tasks]


@pytest.mark.parametrize("start", ["together", "one by one"])
def test_of_two_drivers_one_gives_way(
    processes: Processes, slow: Any, V: Path, tmp_path: Path, expected: str, start: str
) -> None:
    """Or both return the same."""
    run = call(slow, tmp_path / "out.zarr")
    first = processes.drive(run)
    if start == "one by one":
        in_pass(2.5, counting(V, tmp_path))
    second = processes.drive(run)
    outcomes = [driver.told(30) for driver in (first, second)]
    assert None not in outcomes, "it hangs"
    assert expected in {outcome.digest for outcome in outcomes}
    for outcome in outcomes:
        assert outcome.digest == expected or outcome.error == "RunTakenOver", outcome.text
    if start == "one by one":
        assert outcomes[0].error == "RunTakenOver"
        assert "was taken over by process" in outcomes[0].text


def test_the_scheduler_forgets_each_pass(
    processes: Processes, V: Path, tmp_path: Path, nothing_kept: None
) -> None:
    """What it knows does not grow with the passes; and what others hold there stays.

    Without Python's collector, which may come late; and in passes that are waited for repeatedly.
    """
    counts: list[int] = []
    slow = zarr.open_array(SlowStore(LocalStore(V), 0.2), mode="r")
    with Client(processes.address, set_as_default=True) as client:
        client.wait_for_workers(2)
        theirs = client.scatter([1, 2, 3])

        def after_a_sweep(_: object) -> None:
            end = time.monotonic() + 3
            while len(tasks(client)) > 3 and time.monotonic() < end:
                time.sleep(0.03)  # what was released goes in a moment
            counts.append(len(tasks(client)))

        run: dict[str, Any] = {"out": tmp_path / "out.zarr", "solver": "hals", "tol": 0}
        gc.disable()
        try:
            dask_nmf.factorize(
                slow, 4, max_passes=4, block_rows=BLOCK, callback=after_a_sweep, **run
            )
        finally:
            gc.enable()
        assert counts == [3] * 3
        assert client.gather(theirs) == [1, 2, 3]


def test_a_failed_run_leaves_others_alone(processes: Processes, V: Path, tmp_path: Path) -> None:
    copy = tmp_path / "V.zarr"
    shutil.copytree(V, copy)
    with Client(processes.address, set_as_default=False) as other:
        theirs = [*other.scatter([1, 2]), other.submit(pow, 2, 5, key="theirs")]
        assert other.gather(theirs) == [1, 2, 32]
        before = tasks(other)
        (copy / "c" / "9" / "0").unlink()
        outcome = processes.drive(call(copy, tmp_path / "out.zarr")).told(30)
        assert outcome is not None, "it hangs"
        assert outcome.error == "ValueError"
        assert "chunk 'c/9/0' is not in" in outcome.text
        wait_until(lambda: tasks(other) == before, 5, "nothing left")
        assert other.gather(theirs) == [1, 2, 32]


def test_W_is_not_at_hand_on_a_cluster_in_this_process(tmp_path: Path) -> None:
    """Larger than what comes here with each pass, it would be held by workers that may be lost."""
    V = np.random.default_rng(0).random((150_000, 10))
    told: dict[str, Any] = {"max_passes": 4, "solver": "hals", "tol": 0}
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=":0"):
        found = dask_nmf.factorize(V, 8, out=tmp_path / "out.zarr", **told)
    assert found.plan is not None
    assert found.plan.large_factor == "out"
    assert len(found.history) == 3
