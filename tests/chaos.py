"""Trials in which processes are killed and files damaged, and a run ends with the same bits.

    python -m tests.chaos --trials 20 --seed 1 [--jobs 2]

Each trial factors a small V on a scheduler, workers and drivers that are real processes, while some
of them are killed, stopped and replaced, a disk fills up, and what lies on it is damaged. The call
is made again whenever it has ended with an error that allows it. In the end W, H and the history
must be those of an undisturbed run in sequence, bit for bit. What happens depends on the seed only;
the very moment does not.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from dask_nmf.blocks import Grid, even
from tests.chaos_asked import ASKED, ask
from tests.conftest import low_rank
from tests.mishaps import damage, fill, mounted, unmounted
from tests.processes import Call, Outcome, Process, Processes
from tests.stores import SlowStore

LIMIT = 100.0  # seconds for a trial; then it hangs
RESTARTS = 25
PAUSE = 0.02
TWICE = (1, 1, 2)
ZOMBIE = 8.0  # seconds until a stopped worker has been dropped, with a ttl of 3 s


class Failed(Exception):
    """Something was lost, came out different, or hung."""


class Trial:
    """One run of a call, and what happens to it."""

    def __init__(self, seed: int, folder: Path, events: list[str] | None = None) -> None:
        self.random, self.folder = Random(seed), folder
        self.seed, self.restarts, self.began = seed, 0, time.monotonic()
        self.V: Any = folder / "V.zarr"
        self.call, self.size = self._call()
        names = sorted(EVENTS)
        drawn = [self.random.choice(names) for _ in range(self.random.randint(2, 5))]
        self.events = drawn if events is None else events
        passes = self.call.options["max_passes"]
        self.moments = sorted(self.random.uniform(-2, passes) for _ in self.events)
        self.done: list[str] = []
        self.errors: list[str] = []
        self.round: list[str] = []  # what came of the drivers since there was none
        self.texts: list[str] = []
        self.drivers: list[Process] = []
        self.later: list[tuple[float, Callable[[], object]]] = []
        self.several = self.disk_trouble = self.finished = False
        self.V_trouble: list[str] = []
        self.expected = ""
        self.processes = Processes(folder)

    def _call(self) -> tuple[Call, int]:
        """A small V and a call that factors it; the workers there will be."""
        random = self.random
        side = random.choice(["rows", "rows", "columns", "tiles"])
        shape, chunk = {
            "rows": ((3000, 200), (200, 200)),
            "columns": ((200, 3000), (200, 200)),
            "tiles": ((800, 800), (200, 200)),
        }[side]
        grid = Grid(even(shape[0], chunk[0]), even(shape[1], chunk[1]))
        if side == "columns":
            grid = Grid(even(shape[1], chunk[1]), (shape[0],), transposed=True)
        solver = random.choice(["auto", "hals", "mu"])
        init = "random" if side == "tiles" else random.choice(["random", "random", "nndsvda"])
        options = {"solver": solver, "init": init, "tol": 0, "seed": random.randrange(100)}
        options |= {"max_passes": random.randint(6, 10)}
        options["checkpoint_every"] = random.choice([None, 1, 1, 3])
        data = low_rank(*shape, 5, seed=self.seed)
        slow = random.choice([0.0, 0.01, 0.02, 0.03])
        kept = random.random() < 0.2
        rank = random.randint(2, 6)
        V, asked = self.V, ""
        if random.random() < 0.4:
            asked = ask(random, options, data, rank, V)
        if asked and (asked == "sparse" or len(grid.widths) > 1):  # no columns, and no tiles
            grid = Grid(even(shape[0], shape[0] // 8), (shape[1],))
        if asked != "sparse":
            zarr.create_array(V, data=data, chunks=chunk, compressors=[Crc32cCodec()])
        if slow and asked != "sparse":
            V = zarr.open_array(SlowStore(LocalStore(self.V), slow), mode="r")
        return Call(V, rank, grid, options, None, kept), random.randint(1, 3)

    # ------------------------------------------------------------------------------ the course
    def run(self) -> None:
        """All of it.

        Raises
        ------
        Failed
        """
        with self.processes:
            self.expected = self._settled(replace(self.call, V=self.V), "the undisturbed run")
            disk = "full_disk" in self.events and mounted(self.folder / "disk")
            try:
                out = self.folder / "disk" / "out.zarr" if disk else self.folder / "out.zarr"
                self.call = replace(self.call, out=out)
                self.processes.begin(self.size)
                self.drive()
                for name, moment in zip(self.events, self.moments, strict=True):
                    self.wait_for(moment)
                    if self.finished:
                        break
                    self.done.append(name)
                    EVENTS[name](self)
                while not self.finished:
                    self.wait(PAUSE)
                self._check()
            finally:
                self.processes.end()
                if disk:
                    unmounted(self.folder / "disk")

    def _settled(self, call: Call, what: str) -> str:
        driver = self.processes.drive(call, "")
        outcome = driver.told(30)
        if outcome is None or not outcome.digest:
            raise Failed(f"{what}: {outcome}")
        return str(outcome.digest)

    def _check(self) -> None:
        """All is mended; then the same call returns what is there: still the same."""
        for _, mend in self.later:
            mend()
        for one in self.processes.all:
            if one.stopped:
                one.send(signal.SIGCONT)
        time.sleep(0.3)
        if self._settled(self.call, "the finished result") != self.expected:
            raise Failed("the result was changed after its end")
        found: Any = zarr.open_group(self.call.out, mode="r", use_consolidated=False)
        if "run" in found:
            self.done.append("(run/ left)")

    def drive(self) -> None:
        self.drivers.append(self.processes.drive(self.call))

    def wait_for(self, moment: float) -> None:
        """Until that sweep, and a part of a second; sweeps before the first one are seconds."""
        end = time.monotonic() + (10.0 if moment > 0 else 0.0)
        while not self.finished and time.monotonic() < end and self._sweep() < int(moment):
            self.wait(PAUSE)
        self.wait(moment % 1 / (3 if moment > 0 else 1))

    def _sweep(self) -> int:
        """The newest generation of W: of the sweep that is under way, or the last."""
        assert self.call.out is not None
        return max((int(p.name.split("-")[1]) for p in self.call.out.glob("run/*/W-*")), default=-1)

    def wait(self, seconds: float) -> None:
        """Tend the processes until then, or the end."""
        end = time.monotonic() + seconds
        while True:
            self.tend()
            if self.finished or time.monotonic() >= end:
                return
            time.sleep(PAUSE)

    def tend(self) -> None:
        """Do what is due, replace workers that died, and judge what drivers have told."""
        now = time.monotonic()
        if now - self.began > LIMIT:
            raise Failed(f"hung: {LIMIT:.0f} s, drivers {[d.alive for d in self.drivers]}")
        for due in [due for due in self.later if due[0] <= now]:
            self.later.remove(due)
            due[1]()
        for worker in [w for w in self.processes.workers if not w.alive]:
            self.processes.workers.remove(worker)
            self.processes.add_worker()
        for driver in list(self.drivers):
            outcome = driver.told()
            if outcome is not None:
                self.drivers.remove(driver)
                self._judge(outcome)
            elif not driver.alive and driver.told() is None:
                self.drivers.remove(driver)
                self.round.append("died")
        if self.drivers:
            return
        if self.expected in self.round:
            self.finished = True
            return
        if self.round and set(self.round) == {"RunTakenOver"}:
            raise Failed("of the drivers at one `out` each has given way to another")
        self.restart()

    def restart(self) -> None:
        self.restarts += 1
        if self.restarts > RESTARTS:
            raise Failed(f"not finished after {RESTARTS} restarts")
        if self.round:
            time.sleep(self.random.uniform(0.0, 0.4))
        self.round.clear()
        self.drive()

    def _judge(self, outcome: Outcome) -> None:
        """Note a result or an error; only some are right."""
        if outcome.digest:
            if outcome.digest != self.expected:
                raise Failed(f"DIFFERENT: {outcome.digest}, not {self.expected}")
            self.round.append(self.expected)
            return
        self.round.append(outcome.error)
        self.errors.append(outcome.error)
        self.texts.append(f"    {outcome.error}: {outcome.text}")
        chunk = any(f"'{key}'" in outcome.text for key in self.V_trouble)
        before = "run_job" not in outcome.where  # dask's own errors, and those of a full disk
        right = (
            (outcome.stopped and (outcome.error != "RunTakenOver" or self.several))
            or (outcome.error == "RuntimeError" and "has no workers" in outcome.text)
            or (outcome.error == "ValueError" and chunk)
            or (outcome.error in ("CommClosedError", "TimeoutError") and before)
            or (outcome.error == "OSError" and before and (self.disk_trouble or not outcome.where))
        )
        if not right:
            raise Failed(f"an error that was not due: {outcome.error}: {outcome.text}")

    def at(self, seconds: float, call: Callable[[], object]) -> None:
        """Have something done a while later."""
        self.later.append((time.monotonic() + seconds, call))

    # -------------------------------------------------------------------------------- the events
    def _worker(self) -> Process:
        return self.random.choice(self.processes.workers)

    def kill_worker(self) -> None:
        self._worker().send(signal.SIGKILL)

    def end_worker(self) -> None:
        self._worker().send(signal.SIGTERM)

    def stop_worker(self) -> None:
        """For a moment."""
        worker = self._worker()
        worker.send(signal.SIGSTOP)
        self.at(self.random.uniform(0.2, 2.0), partial(worker.send, signal.SIGCONT))

    def zombie_worker(self) -> None:
        """Until the scheduler has dropped it, or the run is over; another takes its place."""
        worker = self._worker()
        worker.send(signal.SIGSTOP)
        self.processes.workers.remove(worker)
        self.processes.others.append(worker)
        self.processes.add_worker()
        self.at(ZOMBIE, partial(worker.send, signal.SIGCONT))

    def kill_driver(self) -> None:
        for driver in self.drivers:
            driver.kill()
        self.drivers.clear()
        self.restart()

    def kill_scheduler(self) -> None:
        assert self.processes.scheduler is not None
        self.processes.scheduler.kill()
        self.processes.begin(self.size)

    def two_drivers(self) -> None:
        """Another call at once, on the same `out`."""
        self.several = True
        self.drive()

    def zombie_driver(self) -> None:
        """A driver is stopped, another takes over, the first goes on."""
        self.several = True
        stopped = list(self.drivers)
        for driver in stopped:
            driver.send(signal.SIGSTOP)
        self.drive()
        pause = self.random.uniform(0.2, 3.0)
        for driver in stopped:
            self.at(pause, partial(driver.send, signal.SIGCONT))

    def full_disk(self) -> None:
        self.disk_trouble = True
        assert self.call.out
        mend = fill(self.call.out.parent, [*self.processes.workers, *self.drivers])
        self.at(self.random.uniform(0.1, 1.5), mend)

    def damaged_run(self) -> None:
        """A file of the run, between a driver and the next."""
        for driver in self.drivers:
            driver.kill()
        self.drivers.clear()
        assert self.call.out is not None
        done = [
            damage(self.call.out / "run", self.random) for _ in range(self.random.choice(TWICE))
        ]
        self.done.append(f"({', '.join(done)})")
        self.restart()

    def damaged_V(self) -> None:
        """A chunk of V, for a while."""
        files = sorted(path for path in self.V.rglob("*") if path.is_file() and "c" in path.parts)
        path = self.random.choice(files)
        key = path.as_posix()[path.as_posix().rindex("/c/") + 1 :]
        copy = self.folder / f"V-{len(self.done)}"
        if key in self.V_trouble:  # once is enough
            return
        self.V_trouble.append(key)
        shutil.copy2(path, copy)
        damage(path, self.random)
        self.at(self.random.uniform(0.3, 2.0), partial(os.replace, copy, path))


EVENTS = {
    name: getattr(Trial, name)
    for name in [
        "kill_worker",
        "end_worker",
        "stop_worker",
        "zombie_worker",
        "kill_driver",
        "kill_scheduler",
        "two_drivers",
        "zombie_driver",
        "full_disk",
        "damaged_run",
        "damaged_V",
    ]
}


def try_once(seed: int, events: list[str] | None = None) -> tuple[Trial, str]:
    """One trial, and the line that tells of it. Its folder stays if it failed."""
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
    trial, verdict = Trial(seed, folder, events), "same"
    try:
        trial.run()
    except Failed as failure:
        verdict = f"FAILED: {failure}"
    except Exception:
        verdict = f"FAILED: {traceback.format_exc()}"
    seconds = time.monotonic() - trial.began
    errors = " ".join(trial.errors)
    call = trial.call
    line = (
        f"{seed}: {call.options['solver']} {call.options['init']} {call.grid.blocks} blocks"
        f"{''.join(f' {name}' for name in ASKED if name in call.options)}"
        f"{' transposed' if call.grid.transposed else ''}, every {call.options['checkpoint_every']}"
        f", {trial.size} workers; {', '.join(trial.done)}; {errors or 'no errors'}; "
        f"{trial.restarts} restarts, {seconds:.1f} s: {verdict}"
    )
    if verdict == "same":
        shutil.rmtree(folder)
    else:
        line = f"{line} [{folder}]"
    return trial, line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the first; then the next ones")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    parser.add_argument("--errors", action="store_true", help="print the texts of errors, too")
    asked = parser.parse_args()
    began, restarts, failed = time.monotonic(), 0, []
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(asked.jobs) as pool:
        # `map` gives up those that have not begun when it is left by Ctrl-C.
        for trial, line in pool.map(try_once, range(asked.seed, asked.seed + asked.trials)):
            print(line, *(trial.texts if asked.errors else ()), sep="\n", flush=True)
            restarts += trial.restarts
            counts.update(trial.errors + [name for name in trial.done if name in EVENTS])
            if not line.endswith(": same"):
                failed.append(str(trial.seed))
    print(", ".join(f"{number} {name}" for name, number in counts.most_common()))
    print(
        f"{asked.trials} trials, {restarts} restarts, {time.monotonic() - began:.0f} s: "
        f"{asked.trials - len(failed)} the same; failed: {', '.join(failed) or 'none'}"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
