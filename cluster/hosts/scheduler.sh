#!/usr/bin/env bash
# The scheduler, on a host that stays: scheduler.sh --host 10.0.0.1 [options of dask scheduler]
set -euo pipefail
source "$(dirname "$0")/settings.sh"
exec dask scheduler --port 8786 --dashboard-address 127.0.0.1:0 "$@"
