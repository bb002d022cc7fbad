#!/usr/bin/env bash
# A cluster of separate processes over TCP on this machine, for one run of dask-nmf fit:
#
#     cluster/local_tcp.sh V.zarr out.zarr --rank 20 [options of dask-nmf fit]
#
# WORKERS (2) and WORKER_MEMORY (1GiB, of each) are read from the environment.
# README.md beside this file says why the settings are as they are.
set -euo pipefail

workers=${WORKERS:-2}
worker_memory=${WORKER_MEMORY:-1GiB}

folder=$(mktemp -d)  # logs, the scheduler's address, what workers spill
stop() {
    code=$?
    trap - EXIT INT TERM
    for process in $(jobs -p); do kill "$process" 2>/dev/null || true; done
    wait
    if [ "$code" -eq 0 ]; then rm -rf "$folder"; else echo "logs: $folder" >&2; fi
    exit "$code"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What the scheduler is told, it alone reads: to set this in the client has no effect.
export DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=100
export DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL=60s
export DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT=10m
export DASK_DISTRIBUTED__COMM__RETRY__COUNT=3

file=$folder/scheduler.json
dask scheduler --host 127.0.0.1 --port 0 --dashboard-address 127.0.0.1:0 \
    --scheduler-file "$file" >"$folder/scheduler.log" 2>&1 &

for number in $(seq "$workers"); do
    dask worker --scheduler-file "$file" --host 127.0.0.1 --dashboard-address 127.0.0.1:0 \
        --nworkers 1 --nthreads 1 --memory-limit "$worker_memory" --name "$number" \
        --local-directory "$folder" >"$folder/worker-$number.log" 2>&1 &
done

address=$(python - "$file" "$workers" <<'PYTHON'
import sys
from distributed import Client

with Client(scheduler_file=sys.argv[1], timeout=60) as client:
    client.wait_for_workers(int(sys.argv[2]), timeout=60)
    print(client.scheduler.address)
PYTHON
)
echo "$workers workers at $address" >&2

dask-nmf fit "$@" --scheduler "$address" &
wait $!  # not in the foreground, where bash would answer no signal until the run ends
