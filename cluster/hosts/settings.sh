# Read by scheduler.sh, worker.sh and fit.sh of this folder, on every host.

# What the scheduler is told, it alone reads: to set this in the client has no effect.
export DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=100
export DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL=60s
export DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT=10m
export DASK_DISTRIBUTED__COMM__RETRY__COUNT=3

# TLS=folder: one key and certificate for all of them (README.md); who has not got them is refused.
if [ -n "${TLS:-}" ]; then
    export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True
    export DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME=tls
    export DASK_DISTRIBUTED__COMM__TLS__CA_FILE=$TLS/cert.pem
    for role in SCHEDULER WORKER CLIENT; do
        export "DASK_DISTRIBUTED__COMM__TLS__${role}__CERT=$TLS/cert.pem"
        export "DASK_DISTRIBUTED__COMM__TLS__${role}__KEY=$TLS/key.pem"
    done
fi
