#!/usr/bin/env bash
# The workers of a host: worker.sh tcp://10.0.0.1:8786 --nworkers 8 --memory-limit 16GiB [options
# of dask worker]. With TLS: tls://10.0.0.1:8786.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
exec dask worker "$1" --nthreads 1 --dashboard-address 127.0.0.1:0 --death-timeout 60 "${@:2}"
