"""The textbook demo, a 4 x 5 matrix of rank 2 with a little noise: python demo_4x5.py

First with plain numpy, as written in the papers; then with the engine, which reads V from a zarr
array, in any chunks. All end at the same error: what the noise leaves over.
"""

import tempfile
from pathlib import Path

import numpy as np
import zarr

import dask_nmf
from dask_nmf import oracle

V = np.array(
    [
        [2, 4, 6, 8, 10],
        [4, 8.1, 12, 16, 19.9],
        [1, 1.9, 3, 4, 4.9],
        [5, 11, 17.1, 23, 29],
    ]
)


def from_scratch() -> None:
    """H first, then W, 10,000 multiplicative sweeps from a random start."""
    W, H = oracle.nmf(V, rank=2, sweeps=10_000, seed=2, order="HW")
    for name, matrix in {"W": W, "H": H, "W @ H": W @ H}.items():
        print(f"{name} =\n{matrix.round(4)}\n")
    print(f"||V - W @ H|| = {np.linalg.norm(V - W @ H):.4f}\n")

    # W and H are not unique, and in general there are local minima: the start decides what is
    # found. Hence several starts, of which the best is kept.
    W, H = oracle.best_of(V, rank=2, sweeps=10_000, seeds=range(5))
    print(f"best of 5 starts: ||V - W @ H|| = {np.linalg.norm(V - W @ H):.4f}\n")


def out_of_core(folder: Path) -> None:
    """The same from zarr: the chunks decide how V is read, not what is found."""
    print("chunks  blocks  sweeps of 3 starts     ||V - W @ H||         best")
    for rows, columns in [(4, 5), (2, 2), (1, 5), (1, 1)]:
        path = folder / f"{rows}x{columns}.zarr"
        zarr.create_array(path, data=V, chunks=(rows, columns))
        runs = [
            # block_rows: so small a V would be read in one block
            dask_nmf.factorize(path, 2, seed=seed, tol=1e-6, max_passes=500, block_rows=rows)
            for seed in (1, 2, 3)
        ]
        sweeps = [len(run.history) for run in runs]
        # W is lazy, a dask array: in general it is too large to ask for in one piece.
        errors = [np.linalg.norm(V - run.W.compute() @ run.H) for run in runs]
        print(
            f"{rows} x {columns}  {runs[0].parameters['blocks']:>6}  {sweeps!s:<22} "
            + " ".join(f"{error:.4f}" for error in errors)
            + f"  {min(errors):.4f}"
        )


if __name__ == "__main__":
    from_scratch()
    with tempfile.TemporaryDirectory() as folder:
        out_of_core(Path(folder))
