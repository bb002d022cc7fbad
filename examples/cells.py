"""Sparse matrices and AnnData: gene programs of cells: python cells.py

Counts of genes in cells are mostly zeros. They stay sparse all the way: in the store (CSR in zarr,
as anndata writes it), in the blocks, in the arithmetic. So a pass costs what the entries cost.
Needs anndata: pip install "dask_nmf[anndata]".
"""

import tempfile
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse

import dask_nmf

CELLS, GENES, PROGRAMS = 600, 90, 3


def cells() -> anndata.AnnData:
    """Each program is 30 genes of its own; each cell runs one, over a low background."""
    random = np.random.default_rng(0)
    runs = np.repeat(np.eye(PROGRAMS), CELLS // PROGRAMS, axis=0)
    programs = np.kron(np.eye(PROGRAMS), np.linspace(2, 0.2, GENES // PROGRAMS))
    counts = random.poisson(runs @ programs + 0.02).astype("f4")
    genes = [f"{name}{i:02}" for name in "ABC" for i in range(GENES // PROGRAMS)]
    return anndata.AnnData(scipy.sparse.csr_matrix(counts), var=pd.DataFrame(index=genes))


def main(folder: Path) -> None:
    adata = cells()

    # 1. An AnnData in memory. Poisson noise, hence Kullback-Leibler: of zeros nothing is visited.
    result = dask_nmf.factorize(adata, PROGRAMS, loss="kullback-leibler", tol=1e-3)
    dask_nmf.annotate(adata, result)  # as scanpy's functions, in place
    print(f"obsm {adata.obsm['X_nmf'].shape}, varm {adata.varm['NMF'].shape}")
    for program, top in result.top_features(4).groupby("component"):
        print(f"program {program}: {' '.join(top.feature)}")

    # 2. Its store, larger than memory: the path is enough, and X is never touched by the results.
    path = folder / "cells.zarr"
    with anndata.settings.override(zarr_write_format=3), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's, of what its next version will write
        adata.write_zarr(path)
    again = dask_nmf.factorize(path, PROGRAMS, loss="kullback-leibler", tol=1e-3)
    dask_nmf.annotate(path, again)
    print(f"from the store: error {again.error:.4f}, in memory {result.error:.4f}")

    # 3. Any other sparse file becomes such a group by one streaming read.
    scipy.io.mmwrite(folder / "counts.mtx", adata.X)
    dask_nmf.convert(folder / "counts.mtx", folder / "counts.zarr")
    found = dask_nmf.plan(folder / "counts.zarr", PROGRAMS)
    print(f"{found.nnz:,} entries of {CELLS * GENES:,}: {found.decoded_bytes:,} bytes a pass")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
