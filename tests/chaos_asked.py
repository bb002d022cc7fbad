"""Calls of `tests.chaos` that ask for more: losses, weights, penalties, constraints, sparse V."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import scipy.sparse
import zarr
from zarr.codecs import Crc32cCodec

ASKED = ("loss", "weights", "alpha_W", "fixed_H", "sum_to_one")


def ask(random: Random, options: dict[str, Any], data: Any, rank: int, V: Path) -> str:
    """Have it minimize something else: what is asked of the call, and of what kind V is."""
    numbers, beta = np.random.default_rng(random.randrange(2**32)), 2.0
    if random.random() < 0.6:
        beta = options["loss"] = random.choice([1.0, 1.0, 0.5, 1.5])
    weighed = random.random() < 0.4
    if weighed:
        weights = numbers.random(data.shape) < 0.8
        zarr.create_array(V.parent / "weights.zarr", data=weights, chunks=(200, 200))
        options["weights"] = V.parent / "weights.zarr"
    if weighed or beta != 2:
        options["init"] = "random"
        options["solver"] = random.choice(["auto", "mu", "newton"] if beta >= 1 else ["auto", "mu"])
    if random.random() < 0.4:
        options |= {"alpha_W": 0.01, "l1_ratio": random.choice([0.0, 0.5])}
    if random.random() < 0.4:
        options["fixed_H"] = numbers.random((random.randint(1, rank), data.shape[1]))
    if not weighed and beta == 2 and random.random() < 0.3:
        options["sum_to_one"] = True
    if weighed or random.random() < 0.5:
        return "dense"
    few: Any = scipy.sparse.csr_matrix(np.where(numbers.random(data.shape) < 0.3, data, 0.0))
    group = zarr.create_group(V)
    told: Any = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
    group.attrs.update(told | {"shape": list(data.shape)})
    for name in ("data", "indices", "indptr"):
        values = getattr(few, name)
        group.create_array(name, data=values, chunks=(10_000,), compressors=[Crc32cCodec()])
    return "sparse"
