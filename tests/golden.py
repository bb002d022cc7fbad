"""A run as this release leaves it when it is killed; later ones must be able to go on with it.

``python -m tests.golden FOLDER`` makes one, a folder per release, which is never changed again.
"""

import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import dask_nmf
from dask_nmf.types import SweepRecord

FOLDER = Path(__file__).parent / "golden"
V = 1.0 + np.sin(np.arange(30 * 8.0).reshape(30, 8) ** 2)
CALL: dict[str, Any] = {"rank": 2, "block_rows": 10, "tol": 0, "max_passes": 7}
SOLVERS = ("auto", "hals", "mu")


class Killed(BaseException):
    """Nothing catches it."""


def _kill(record: SweepRecord) -> None:
    if record.sweep == 3:
        raise Killed


def make(folder: Path) -> None:
    for solver in SOLVERS:
        out = folder / solver
        shutil.rmtree(out, ignore_errors=True)
        try:
            with patch("socket.gethostname", lambda: "golden"), patch("os.getpid", lambda: 1):
                options = {**CALL, "solver": solver, "checkpoint_every": 1}
                dask_nmf.factorize(V, out=out, callback=_kill, **options)
        except Killed:
            continue


if __name__ == "__main__":
    make(Path(sys.argv[1]))
