"""Seconds per sweep on a cluster of two processes, beside a hand-written loop on two threads.

What dask pays on top, on one machine: graphs and results travel between processes.
"""

from functools import partial

from distributed import Client, LocalCluster

from dask_nmf import HALS, MU
from tests.benchmarks.common import HEIGHTS, RANK, HandLoop, arguments, big_matrix, in_turns, table
from tests.benchmarks.sweep import bare_read, run


def main() -> None:
    folder, rounds = arguments(__doc__, rounds=7)
    path = big_matrix(folder, "uncompressed")
    rows = []
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
    ):
        for solver in (MU(), HALS(inner=5)):
            turns = in_turns(
                partial(run, path, solver),
                {
                    "hand loop": HandLoop(path, solver).sweep,
                    "bare read": partial(bare_read, path),
                },
                rounds,
            )
            seconds = [turns.seconds(name) for name in ("bare read", "hand loop", "library")]
            rows.append([str(solver), *seconds, turns.ratio("library", "hand loop")])
    table(
        f"Seconds per sweep: V of 1.6 GB, uncompressed, in {len(HEIGHTS)} blocks, rank {RANK}; "
        "library and bare read on 2 processes, the hand loop on 2 threads",
        ["solver", "bare read", "hand loop", "library", "library / hand loop"],
        rows,
    )


if __name__ == "__main__":
    main()
