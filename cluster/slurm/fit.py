"""Workers as SLURM jobs, and one run of dask-nmf fit on them:

    python cluster/slurm/fit.py --jobs 8 --memory 16GiB V.zarr out.zarr --rank 20 [options of fit]

Options before V are those of the jobs. README.md beside this file says why they are as they are.
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
from dask_jobqueue import SLURMCluster
from distributed import Client

from dask_nmf.cli import main as dask_nmf

CONFIG = {
    "distributed.scheduler.allowed-failures": 100,
    "distributed.scheduler.worker-ttl": "60s",
    "distributed.comm.retry.count": 3,
    # How long a run goes without a worker: as long as jobs may be queued.
    "distributed.scheduler.no-workers-timeout": "1h",
    "dask_nmf.patience": 3600,
}


def jobs(options: argparse.Namespace) -> Any:
    """A cluster of which each worker will be a job."""
    logs = Path(options.logs).absolute()
    logs.mkdir(mode=0o700, exist_ok=True)
    return SLURMCluster(
        cores=options.threads,
        processes=1,  # of several, dask-jobqueue does not notice that their job was lost
        memory=options.memory,
        queue=options.partition,
        account=options.account,
        walltime=options.time,
        job_extra_directives=options.sbatch,
        interface=options.interface,
        security=True,  # TLS, with keys made for this run: else whoever reaches a port runs code
        shared_temp_directory=str(logs),  # the keys, readable by their owner, until the end
        log_directory=str(logs),
        local_directory=options.scratch,
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
        worker_extra_args=["--dashboard-address", "127.0.0.1:0"],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of dask-nmf fit."""
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the jobs are cancelled
    with dask.config.set(CONFIG), jobs(options) as cluster, Client(cluster) as client:
        checked = subprocess.run(["sbatch", "--test-only"], input=cluster.job_script(), text=True)
        if checked.returncode:
            return 2  # later, what sbatch refuses would be no more than a line in a log
        # scale would not replace jobs that are lost
        cluster.adapt(minimum_jobs=options.jobs, maximum_jobs=options.jobs)
        try:
            client.wait_for_workers(options.jobs, timeout=options.wait)
        except TimeoutError:
            client.wait_for_workers(1)  # the others join when they come
        print(f"{len(client.nthreads())} of {options.jobs} workers", file=sys.stderr)
        return dask_nmf(["fit", *options.fit])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--jobs", type=int, default=4, help="one worker each")
    parser.add_argument("--memory", default="8GiB", help="of a job")
    parser.add_argument("--threads", type=int, default=1, help="of a job, each with its block of V")
    parser.add_argument("--time", default="24:00:00", help="of a job; then another is submitted")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--sbatch", action="append", default=[], help="as in --sbatch=--qos=low")
    parser.add_argument("--interface", help="network that all nodes share, such as ib0")
    parser.add_argument("--logs", default="dask-nmf-logs", help="folder that all nodes share")
    parser.add_argument("--scratch", default="${TMPDIR:-/tmp}", help="local disk of a node")
    parser.add_argument("--wait", default="10 minutes", help="for all jobs; then for one")
    parser.add_argument("fit", nargs=argparse.REMAINDER, metavar="V out --rank K ...")
    return parser


if __name__ == "__main__":
    sys.exit(main())
