"""One fit on a cluster of a Dask Gateway, which ends with it, whatever happens:

    python fit.py http://gateway:8000 V.zarr out.zarr --rank 20 --workers 8

Who you are is told by dask's configuration, such as for a gateway with user names and passwords

    DASK_GATEWAY__AUTH__TYPE=basic
    DASK_GATEWAY__AUTH__KWARGS='{"username": "me", "password": "..."}'

V and out: URLs, or paths that the workers see, too. Killed: the same command goes on.
"""

import argparse

from dask_gateway import Gateway

import dask_nmf

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("gateway", help="its address")
parser.add_argument("V")
parser.add_argument("out")
parser.add_argument("--rank", type=int, required=True)
parser.add_argument("--workers", type=int, default=2)
parser.add_argument(
    "--memory", help="of each worker, for the plan: 60 %% of what it has by default"
)
asked = parser.parse_args()

with (
    Gateway(asked.gateway) as gateway,
    gateway.new_cluster(shutdown_on_close=True) as cluster,  # options: gateway.cluster_options()
    cluster.get_client() as client,
):
    cluster.scale(asked.workers)
    client.wait_for_workers(asked.workers, timeout=600)  # the memory plan is made for those there
    print(dask_nmf.factorize(asked.V, asked.rank, out=asked.out, memory=asked.memory))
