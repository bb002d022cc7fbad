"""Killed? Call again: python resume.py

With `out` a run is committed sweep by sweep. A process is killed here in mid-run, as a scheduler,
an out-of-memory killer or a power cut would do it, and the same call ends with the same bits as one
that nothing has happened to.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import dask_nmf

CALL: dict[str, Any] = {"rank": 5, "solver": "hals", "seed": 1, "tol": 0, "max_passes": 12}
# V is tiny here, and by default commits are as rare as 5 % of the time asks.
CALL |= {"checkpoint_every": 1}


def killed_in_third_sweep(folder: Path) -> None:
    def kill(record: dask_nmf.SweepRecord) -> None:
        if record.sweep == 3:
            os.kill(os.getpid(), signal.SIGKILL)  # no exception, no `finally`: it just ends

    dask_nmf.factorize(folder / "V.zarr", out=folder / "out.zarr", **CALL, callback=kill)


def main(folder: Path) -> None:
    random = np.random.default_rng(0)
    V = random.random((1_000, 5)) @ random.random((5, 40)) + 0.1 * random.random((1_000, 40))
    zarr.create_array(folder / "V.zarr", data=V, chunks=(250, 40))
    undisturbed = dask_nmf.factorize(folder / "V.zarr", **CALL)

    done = subprocess.run([sys.executable, __file__, str(folder)], check=False)
    print(f"the process ended with {done.returncode}; at out there is an unfinished run")

    call = {"V": folder / "V.zarr", "out": folder / "out.zarr", **CALL}
    result = dask_nmf.factorize(**call)
    same = np.array_equal(result.W.compute(), undisturbed.W.compute())
    print(f"went on after pass {result.resumed_from}, to pass {result.history[-1].passes}")
    print(f"the same bits as undisturbed: {same and np.array_equal(result.H, undisturbed.H)}")

    # The same call once more is answered from the store; another one is not, and says what differs.
    print(f"at once: {dask_nmf.factorize(**call).history == result.history}")
    try:
        dask_nmf.factorize(**{**call, "rank": 6})
    except FileExistsError as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        killed_in_third_sweep(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
