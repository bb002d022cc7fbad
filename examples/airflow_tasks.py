"""A factorization as a task of an orchestrator: python airflow_tasks.py [folder]

Airflow, cron, Argo, SLURM and their like kill a task that takes too long, run it again when it has
failed, and ask that twice is the same as once. A call with `out` is such a task as it is:

* killed, it goes on from its last commit when it is made again; finished, it returns at once;
* results lie at `out` in whole or not at all, and what goes to the next task is a small dict;
* importing dask_nmf takes 10 ms, since schedulers import the files of their DAGs over and over.

In Airflow, whose classes are not needed here, the two tasks below would be

    PythonOperator(task_id="factorize", python_callable=factorize_task,
                   op_kwargs={"V": ..., "out": ...}, retries=3)
    BashOperator(task_id="factorize", retries=3, bash_command="dask-nmf fit V.zarr out.zarr "
                 "--rank 4 --require-convergence --max-seconds {{ 3000 * ti.try_number }}")

`--max-seconds` ends a run by itself, before the orchestrator's own time limit does. It counts all
tries, so each has to be given more.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import dask_nmf

RANK = 4


def make_V(path: Path) -> Path:
    random = np.random.default_rng(0)
    V = random.random((3_000, RANK)) @ random.random((RANK, 50)) + 0.1 * random.random((3_000, 50))
    zarr.create_array(path, data=V, chunks=(500, 50), overwrite=True)
    return path


# ------------------------------------------------------------------------ a PythonOperator
def factorize_task(V: str, out: str, callback: Any = None) -> dict[str, Any]:
    """W and H at `out`. Returns what is small enough for the next task: an XCom."""
    # checkpoint_every: V is tiny here, and by default commits are as rare as 5 % of the time asks.
    options = {"tol": 1e-3, "checkpoint_every": 1, "callback": callback}
    result = dask_nmf.factorize(V, RANK, out=out, **options)
    return result.summary()  # a flat dict of JSON types, with `out` among them


def check_task(summary: dict[str, Any]) -> None:
    """The next task: fails if the model is not good enough to be used."""
    if not summary["converged"] or summary["error"] > 0.1:
        raise ValueError(f"not good enough: {summary['why']}, error {summary['error']:.4f}")


def retried(task: Callable[[int], Any], tries: int = 3) -> Any:
    """What an orchestrator does: call again, unless the input is bad."""
    for number in range(1, tries + 1):
        try:
            return task(number)
        except (ValueError, TypeError, FileExistsError):  # in Airflow: raise AirflowFailException
            raise
        except BaseException as error:
            print(f"  try {number}: {type(error).__name__}: {error}")
            if number == tries:
                raise
    raise AssertionError("tries must be at least 1")


class Timeout(BaseException):
    """As Airflow's AirflowTaskTimeout, which is no Exception either."""


def killed_in_first_try(V: str, out: str) -> dict[str, Any]:
    def attempt(number: int) -> dict[str, Any]:
        def out_of_time(record: dask_nmf.SweepRecord) -> None:
            if number == 1 and record.sweep == 2:
                raise Timeout("after the second sweep")

        return factorize_task(V, out, out_of_time)

    summary: dict[str, Any] = retried(attempt)
    return summary


# -------------------------------------------------------------------------- a BashOperator
def command(V: str, out: str, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and summary of a `dask-nmf fit`.

    0 done, 1 failure, 2 bad input, 3 not converged (with --require-convergence), 4 stopped. Of
    these 3 and 4 can be mended by another try (3 by one with a larger budget).
    """
    program = [sys.executable, "-m", "dask_nmf.cli", "fit"]  # dask-nmf fit
    told = [*program, V, out, "--rank", str(RANK), "--quiet", *options]
    done = subprocess.run(told, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout or "{}")


def main(folder: Path) -> None:
    V = str(make_V(folder / "V.zarr"))

    print("a Python task, whose first try runs out of time:")
    summary = killed_in_first_try(V, str(folder / "python.zarr"))
    check_task(summary)
    print(f"  went on after pass {summary['resumed_from']}: {summary['why']}")
    again = factorize_task(V, str(folder / "python.zarr"))
    print(f"  called once more: the same, without a read: {again['seconds'] == summary['seconds']}")
    print(f"  for the next task: {len(json.dumps(summary))} characters of JSON")

    print("a shell command, with a larger budget in each try:")
    for number in (1, 2):
        budget = ("--max-passes", str(2 * 10 ** (number - 1)), "--tol", "1e-3")
        code, summary = command(V, str(folder / "bash.zarr"), *budget, "--require-convergence")
        passes, before = summary["passes"], summary["resumed_from"]
        print(f"  try {number}: exit code {code} after {passes} passes, {before or 0} from before")
    code, _ = command(V, str(folder / "bash.zarr"), "--tol", "-1")
    print(f"  bad input, told before V is read: exit code {code}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
