"""cNMF (Kotliar et al. 2019) on our `non_negative_factorization` in place of scikit-learn's.

    pip install --no-deps cnmf; pip install pyyaml "dask_nmf[sklearn,plots]"
    python -m tests.benchmarks.cnmf

On simulated counts, as its own example is: 400 cells x 600 genes of 6 programs; 20 runs of k = 6.
cNMF takes scanpy (and numba with it) for files and two sums only: where that is missing a stand-in
of some lines does. Prints how far the consensus spectra and usages are from those by scikit-learn.
"""

import pickle
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import sklearn.decomposition

import dask_nmf
from dask_nmf.types import Array

CELLS, GENES, K, RUNS = 400, 600, 6, 20


class Cells:
    """What cNMF asks of an AnnData."""

    def __init__(self, X: Array, obs: pd.DataFrame, var: pd.DataFrame) -> None:
        self.X, self.obs, self.var = X, obs, var

    def __getitem__(self, index: Any) -> "Cells":
        columns = self.var.index.get_indexer(index[1])
        return Cells(self.X[:, columns].copy(), self.obs, self.var.iloc[columns])

    def copy(self) -> "Cells":
        return Cells(self.X.copy(), self.obs, self.var)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.X.shape


def stand_in() -> Any:
    """A scanpy that reads, writes and normalizes `Cells`."""

    def normalize_total(cells: Cells, target_sum: float) -> None:
        cells.X = cells.X / cells.X.sum(axis=1, keepdims=True) * target_sum

    scanpy: Any = ModuleType("scanpy")
    scanpy.AnnData = Cells
    scanpy.read = lambda path: pickle.loads(Path(path).read_bytes())
    scanpy.write = lambda path, cells: Path(path).write_bytes(pickle.dumps(cells))
    scanpy.pp = ModuleType("pp")
    scanpy.pp.normalize_total = normalize_total
    return scanpy


def counts(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    usages = rng.dirichlet(np.full(K, 0.3), CELLS) * rng.gamma(5, 400, (CELLS, 1))
    programs = rng.dirichlet(np.full(GENES, 0.1), K)
    drawn = rng.poisson(usages @ programs + 0.05).astype(float)
    names = [f"cell{i}" for i in range(CELLS)], [f"gene{j}" for j in range(GENES)]
    return pd.DataFrame(drawn, index=names[0], columns=names[1])


def consensus(function: Any, loss: str, folder: Path) -> tuple[Array, Array, float]:
    """Spectra, usages and the seconds of the runs."""
    import cnmf.cnmf as module

    module.non_negative_factorization = function
    path = folder / "counts.df.npz"
    module.save_df_to_npz(counts(), str(path))
    run = module.cNMF(output_dir=str(folder), name="run")
    told = {"densify": True, "seed": 14, "num_highvar_genes": 300, "beta_loss": loss}
    run.prepare(str(path), components=[K], n_iter=RUNS, **told)
    began = time.perf_counter()
    run.factorize()
    seconds = time.perf_counter() - began
    run.combine()
    run.consensus(K, density_threshold=0.5, show_clustering=False)
    found = (run.paths[name] % (K, "0_5") for name in ("consensus_spectra", "consensus_usages"))
    spectra, usages = (module.load_df_from_npz(name).to_numpy() for name in found)
    return spectra, usages, seconds


def main() -> None:
    try:
        import scanpy  # noqa: F401
    except ImportError:
        sys.modules["scanpy"] = stand_in()
    warnings.simplefilter("ignore")
    print("loss              seconds: scikit-learn, ours   cosine of spectra   of usages   largest")
    for loss in ("frobenius", "kullback-leibler"):
        found = []
        for function in (
            sklearn.decomposition.non_negative_factorization,
            dask_nmf.non_negative_factorization,
        ):
            with tempfile.TemporaryDirectory() as folder:
                found.append(consensus(function, loss, Path(folder)))
        (S, U, theirs), (S2, U2, ours) = found
        cosines = [
            float(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
            for a, b in ((S, S2), (U, U2))
        ]
        apart = np.abs(S - S2).max() / S.max()
        row = f"{loss:17} {theirs:21.1f} {ours:6.1f} {cosines[0]:19.6f} {cosines[1]:11.6f}"
        print(row, f"{apart:9.1e}")


if __name__ == "__main__":
    main()
