"""Products with V on a GPU beside its memory's bandwidth, and V's way there beside a plain copy.

    python -m tests.benchmarks.gpu [--GB 8] [--stand-in]

Resident: both products of a sweep with a block that lies on the device (numer = V_b @ H.T, which
comes back, and W_b.T @ V_b, for which W_b goes there), in bytes of V by seconds, and beside a copy
within the device's memory, which reads and writes. Streamed: the same with a block that comes from
the host, beside bringing it there alone. Aimed at: 70 % of the bandwidth at k = 32, 80 % of the
plain copy. --stand-in runs the same code on the CPU, of which the numbers tell nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dask_nmf.tasks import product

ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--GB", type=float, default=8.0, help="of the block, float32")
    parser.add_argument("--stand-in", action="store_true")
    args = parser.parse_args()
    bring, settled, copied = _stand_in() if args.stand_in else _cupy()
    columns = 2048
    rows = max(1, int(args.GB * 1e9 / (4 * columns)))
    V = np.random.default_rng(0).random((rows, columns), dtype=np.float32)
    there = bring(V)
    bandwidth = 2 * V.nbytes / _median(lambda: copied(there), settled)
    plain = V.nbytes / _median(lambda: bring(V), settled)
    print(f"a block of {V.nbytes / 1e9:.2f} GB, {rows:,} x {columns}, float32")
    print(f"memory {bandwidth / 1e9:.0f} GB/s, from the host {plain / 1e9:.1f} GB/s\n")
    print("| k | both products, GB/s of V | of the memory | V streamed, GB/s | of a copy |")
    print("|---|---|---|---|---|")
    for k in (8, 32, 128):
        H, W = np.ones((k, columns), np.float32), np.ones((rows, k), np.float32)

        def both(V_b: Any, H: Any = H, W: Any = W) -> None:
            product(V_b, H.T)
            product(W.T, V_b)

        def streamed(both: Callable[[Any], None] = both) -> None:
            both(bring(V))

        resident = 2 * V.nbytes / _median(lambda: both(there), settled)
        stream = V.nbytes / _median(streamed, settled)
        print(
            f"| {k} | {resident / 1e9:.0f} | {resident / bandwidth:.0%} | {stream / 1e9:.1f} | "
            f"{stream / plain:.0%} |"
        )


def _median(call: Callable[[], Any], settled: Callable[[], None]) -> float:
    """Seconds, with what was launched at its end."""
    call()
    settled()
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call()
        settled()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _cupy() -> tuple[Any, Any, Any]:
    import cupy

    print(cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())
    return cupy.asarray, cupy.cuda.Device().synchronize, lambda x: x.copy()


def _stand_in() -> tuple[Any, Any, Any]:
    import array_api_strict as xp

    device = xp.Device("device1")
    return (
        lambda x: xp.asarray(x, device=device, copy=True),
        lambda: None,
        lambda x: xp.asarray(x, copy=True),
    )


if __name__ == "__main__":
    main()
