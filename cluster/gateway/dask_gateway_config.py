# A Dask Gateway on this machine, to try the recipe: clusters are processes of this user.
#
#     pip install "dask_nmf[clusters]"
#     GATEWAY_PASSWORD=... dask-gateway-server -f cluster/gateway/dask_gateway_config.py
#
# At an institution the gateway is there already; of this file, ClusterConfig is for its operators.
import os
import sys
from pathlib import Path

c = get_config()  # noqa: F821, by traitlets

c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.UnsafeLocalBackend.sigint_timeout = 2  # seconds that a process has to end
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.SimpleAuthenticator.password = os.environ["GATEWAY_PASSWORD"]
c.DaskGateway.address = os.environ.get("GATEWAY_API", "127.0.0.1:8001")  # the proxy asks it
c.Proxy.address = os.environ.get("GATEWAY_ADDRESS", "127.0.0.1:8000")  # what users are told

dask = str(Path(sys.executable).with_name("dask"))
c.ClusterConfig.scheduler_cmd = [dask, "scheduler"]  # the default's scripts are gone from dask
c.ClusterConfig.worker_cmd = [dask, "worker"]
c.ClusterConfig.worker_cores = 1  # one block of V per process
c.ClusterConfig.worker_memory = "1 G"
c.ClusterConfig.idle_timeout = 600  # seconds after which a forgotten cluster ends
c.ClusterConfig.environment = {  # the scheduler alone reads them: ../README.md says why
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "100",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "60s",
    "DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": "10m",
    "DASK_DISTRIBUTED__COMM__RETRY__COUNT": "3",
}
