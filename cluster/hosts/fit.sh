#!/usr/bin/env bash
# The run, near the scheduler: fit.sh tcp://10.0.0.1:8786 V.zarr out.zarr --rank 20 [options of fit]
set -euo pipefail
source "$(dirname "$0")/settings.sh"
exec dask-nmf fit "${@:2}" --scheduler "$1"
