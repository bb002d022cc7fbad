"""Runs a recipe as a command, of which no block of V stays in memory: ``run.py RECIPE [options]``.

So that passes can be counted, and take long enough to be disturbed.
"""

import runpy
import sys

from dask_nmf import fitting

if __name__ == "__main__":
    vars(fitting)["_SPARE"] = 0
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
