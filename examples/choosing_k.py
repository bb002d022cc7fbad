"""How many components? python choosing_k.py

No one knows the rank, and a fit always gets better with more of them. `scan` tries several, each
from several starts and with other entries of V hidden, with one read of V per sweep for all runs.
Then three questions are asked of each rank: does the error gain more than noise could give? are the
hidden entries predicted better? do all starts find the same components? `suggest` names a rank
where two of them agree, and none where they do not. topics.py and minerals.py do it on real data.
"""

import warnings

import numpy as np
from numpy.typing import NDArray

import dask_nmf


def planted(rank: int, m: int = 400, n: int = 60) -> NDArray[np.float64]:
    """That many components, each in some rows and columns only, and even noise above zero."""
    random = np.random.default_rng(rank)
    W, H = random.gamma(0.5, size=(m, rank)), random.gamma(0.5, size=(rank, n))
    return np.asarray(np.maximum(0, W @ H + 0.3 * random.standard_normal((m, n))))


def main() -> None:
    warnings.simplefilter("ignore", dask_nmf.ConvergenceWarning)  # a short budget is enough here
    found = dask_nmf.scan(planted(4), range(2, 7), restarts=4, held_out=0.05, max_passes=15)
    print("rank  error   of hidden entries  least stability")
    for row in found.rows():
        told = f"{row['error']:.3f}   {row['held_out']:>17.3f}  {row['stability_least']:>15.2f}"
        print(f"{row['rank']:>4}  {told}")
    print(found.suggest())

    agreed = found.consensus(4)  # the medians of what the runs have found; strays are left out
    print(f"the medians' H is {agreed.H.shape}; {agreed.left_out} of 16 are strays\n")

    nothing = np.random.default_rng(0).random((400, 60))
    found = dask_nmf.scan(nothing, range(1, 4), restarts=4, held_out=0.05, max_passes=15)
    print(f"of noise alone: {found.suggest()}")


if __name__ == "__main__":
    main()
