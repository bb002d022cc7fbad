"""A cluster of a Dask Gateway, and one run of dask-nmf fit on it:

    python cluster/gateway/fit.py --workers 8 https://GATEWAY V.zarr out.zarr --rank 20 [options]

The cluster ends with the run, whatever happens. README.md beside this file says the rest.
"""

import argparse
import json
import signal
import sys

from dask_gateway import Gateway

from dask_nmf.cli import main as dask_nmf


def main() -> int:
    """Returns the exit code of dask-nmf fit."""
    parser = argparse.ArgumentParser(description="dask-nmf fit on a cluster of a Dask Gateway")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--options", type=json.loads, default={}, help="the gateway's, as JSON")
    parser.add_argument("gateway", help="its address")
    parser.add_argument("fit", nargs=argparse.REMAINDER, help="V, out and options of dask-nmf fit")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is ended
    with Gateway(asked.gateway) as gateway:
        name = gateway.submit(**asked.options)
        try:  # the client has the cluster's TLS keys, which its address has not
            with gateway.connect(name) as cluster, cluster.get_client() as client:
                cluster.scale(asked.workers)
                client.wait_for_workers(asked.workers, timeout=600)  # the memory plan is for those
                return dask_nmf(["fit", *asked.fit])
        finally:
            gateway.stop_cluster(name)


if __name__ == "__main__":
    sys.exit(main())
