"""What makes two calls the same run, and whether V is still the one that a run began with."""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from dask.base import tokenize
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, ObjectStore, WrapperStore

from dask_nmf.constraints import Constraints
from dask_nmf.csr import CSR
from dask_nmf.init import Given, Start
from dask_nmf.io import open_matrix
from dask_nmf.losses import Loss
from dask_nmf.matrix import Matrix
from dask_nmf.newton import AnySolver
from dask_nmf.options import Options
from dask_nmf.retrying import insist

_TOLERANCE = 1e-12  # of sums of V by another numpy or processor


def problem(
    matrix: Matrix,
    options: Options,
    loss: Loss,
    solver: AnySolver,
    start: Start,
    constraints: Constraints,
) -> dict[str, Any]:
    """What decides each number of a run, but for V's entries, in JSON types.

    Not the budget and the tolerance (they decide when it ends), and not the memory or the cluster.
    """
    found = {
        "shape": list(matrix.shape),
        "dtype": str(matrix.dtype),
        "missing": matrix.missing,
        "rank": options.rank,
        "seed": options.seed,
        "block_rows": options.block_rows,
        "loss": repr(loss),
        "solver": repr(solver),
        "init": f"given {_token(start)}" if isinstance(start, Given) else repr(start),
    }
    # Only where they are in use: runs of older versions do not have them.
    if options.alpha_W or options.alpha_H not in ("same", 0.0):
        found |= {name: getattr(options, name) for name in ("alpha_W", "alpha_H", "l1_ratio")}
    found |= {name: share for name in ("perturb", "held_out") if (share := getattr(options, name))}
    if constraints.rows is not None:
        found["fixed_H"] = str(tokenize(constraints.rows))
    if constraints.sum_to_one:
        found["sum_to_one"] = True
    if matrix.labels is not None and matrix.labels.order:
        found["rows"] = matrix.labels.order
    if matrix.weights is not None:
        found["weights"] = str(tokenize(matrix.weights.uri, identity(matrix.weights)))
    return found


def _token(start: Given) -> str:
    factors = [open_matrix(factor) for factor in (start.W, start.H)]
    return str(tokenize([(f.uri, identity(f)) for f in factors]))


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """What another run was asked for that this one is not; empty if nothing."""
    return ", ".join(
        f"{name} {theirs.get(name)} (now {mine.get(name)})"
        for name in sorted(mine | theirs)
        if mine.get(name) != theirs.get(name)
    )


# --------------------------------------------------------------------------------------- V
def identity(matrix: Matrix) -> str | None:
    """A digest of what tells, without a read of V, that its entries may have changed.

    Names, sizes and times (or tags) of all stored objects; the entries of one in memory. None
    where nothing is known: of dask arrays and unknown stores.
    """
    source = matrix.source
    if matrix.in_memory:
        return source.token() if isinstance(source, CSR) else str(tokenize(source))
    if not matrix.stored:
        return None
    store = source.store
    while isinstance(store, WrapperStore):
        store = store._store
    if isinstance(store, LocalStore):
        objects = _files(os.path.join(store.root, source.path))
    elif isinstance(store, FsspecStore):
        objects = _fsspec_objects(store, source.path)
    elif isinstance(store, ObjectStore):
        objects = _obstore_objects(store, source.path)
    else:
        return None
    digest = hashlib.sha256()
    for line in sorted(objects):
        digest.update(line.encode())
    return digest.hexdigest()


def _files(folder: str, below: str = "") -> Iterator[str]:
    with os.scandir(os.path.join(folder, below)) as entries:
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                yield from _files(folder, name)
            elif not name.endswith(".partial"):  # of a writer that was killed
                found = entry.stat()
                yield f"{name} {found.st_size} {found.st_mtime_ns}\n"


def _fsspec_objects(store: Any, path: str) -> Iterator[str]:
    store.fs.invalidate_cache()
    where = f"{store.path}/{path}".rstrip("/")
    listed = insist(lambda: sync(store.fs._find(where, detail=True)), f"listing {where}")
    for name, found in listed.items():
        tag = found.get("ETag") or found.get("LastModified") or found.get("mtime")
        yield f"{name.removeprefix(where)} {found.get('size')} {tag}\n"


def _obstore_objects(store: Any, path: str) -> Iterator[str]:
    for batch in insist(lambda: list(store.store.list(path or None)), f"listing {store}/{path}"):
        for found in batch:
            tag = found["e_tag"] or found["last_modified"]
            yield f"{found['path'].removeprefix(path)} {found['size']} {tag}\n"


def same_sums(mine: Any, theirs: Any) -> bool:
    """Whether two first passes saw the same V: to the bit, but for other processors' rounding."""
    names = ("total", "squares", "maximum", "mixed")
    pairs = [(getattr(mine, name), getattr(theirs, name)) for name in names]
    return all(abs(a - b) <= _TOLERANCE * abs(b) for a, b in pairs)
