"""The results group: W, H and the history as zarr arrays that xarray opens as they are."""

import os
import shutil
import warnings
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.utils import format_bytes
from zarr.codecs import Crc32cCodec

from dask_nmf.blocks import Grid, even
from dask_nmf.io import absolute, check_apart, check_reachable, open_matrix
from dask_nmf.plans import Plan
from dask_nmf.result import Result
from dask_nmf.stopping import Status
from dask_nmf.types import DaskArray, SweepRecord

_KEY = "dask_nmf"  # the attribute that marks a group as ours; its "state" is written last
_GENERATIONS = "generations"
_CHUNK_BYTES = 2**24
IN_MEMORY = 2**28  # bytes up to which H is a numpy array also where it is the large factor
_HISTORY = tuple(field.name for field in fields(SweepRecord) if field.name != "sweep")


@dataclass(frozen=True)
class Output:
    """A writable zarr group for one result."""

    group: Any
    uri: str

    def generation(self, number: int, shape: tuple[int, int], rows: int, dtype: Any) -> Any:
        """A new array for the large factor of sweep `number`, in chunks of its row blocks.

        Each sweep reads the last generation and writes a new one, so whatever is stopped midway
        leaves the last one whole.
        """
        group = self.group.require_group(_GENERATIONS)
        return _create(group, f"{number:06d}", shape, dtype, ("row", "component"), (rows, shape[1]))

    def forget(self, number: int | None = None) -> None:
        """Drop that generation, or all of them, if there are any."""
        name = _GENERATIONS if number is None else f"{_GENERATIONS}/{number:06d}"
        if name in self.group:
            del self.group[name]

    def write(self, result: Result) -> Result:
        """Write the result, its attributes last; what comes back reads W from the group."""
        self.group.update_attributes({_KEY: {"state": "writing"}})
        for name in list(self.group.array_keys()):
            del self.group[name]
        W = _write_factor(self.group, "W", result.W, ("row", "component"))
        H = _write_factor(self.group, "H", result.H, ("component", "column"))
        for name in _HISTORY:
            column = np.array([getattr(record, name) for record in result.history])
            _create(self.group, name, column.shape, column.dtype, ("pass",))[:] = column
        self.forget()
        result = replace(result, W=lazy(W), H=_small(H), out=self.uri)
        self.group.update_attributes({_KEY: _attributes(result)})
        _consolidate(self.group)
        return result


def open_output(out: Any, V_uri: str, overwrite: bool, remote: bool, needs: int = 0) -> Output:
    """The group at `out`, made if there is none; nothing in it is changed yet.

    `needs` are the bytes that the run will hold there at once.

    Raises
    ------
    FileExistsError
        If `out` holds a finished result and not `overwrite`, or anything that is not ours.
    ValueError, OSError
        If `out` is V, cannot be written, or cannot be reached by the workers; or if its disk has
        too little space.
    """
    if not isinstance(out, (str, os.PathLike, zarr.Group)):
        raise TypeError(f"out must be a path, a URL or a zarr group, got {type(out).__name__}")
    out = out if isinstance(out, zarr.Group) else absolute(out)
    group = _find(out)
    if group is not None:
        _check_replaceable(group, overwrite)
    uri = check_apart(str(out.store_path) if isinstance(out, zarr.Group) else out, V_uri)
    check_space(out, needs)
    try:
        if group is None:
            zarr.create_group(out, zarr_format=3)
        # Not by the consolidated metadata: what is written next would not be in it.
        where = (out.store, out.path) if isinstance(out, zarr.Group) else (out, None)
        group = zarr.open_group(where[0], path=where[1], mode="r+", use_consolidated=False)
        check_reachable("out", group.store, remote)
        _check_writable(group)
    except OSError as error:
        raise type(error)(f"out: cannot write to {out}: {error}") from error
    return Output(group, uri)


def open_result(out: Any) -> Result:
    """The finished result in the group at `out`: a path, a URL or a zarr group.

    Raises
    ------
    FileNotFoundError
        If there is no result there.
    ValueError
        If the run that began there has not finished.
    """
    group: Any = _find(out)
    if group is None or _KEY not in group.attrs:
        raise FileNotFoundError(f"there is no dask_nmf result at {out}")
    saved: Any = group.attrs[_KEY]
    if saved["state"] != "finished":
        raise ValueError(f"the run that began at {out} has not finished: call factorize again")
    columns = [group[name][:].tolist() for name in _HISTORY]
    history = tuple(
        SweepRecord(sweep, **dict(zip(_HISTORY, row, strict=True)))
        for sweep, row in enumerate(zip(*columns, strict=True), start=1)
    )
    return Result(
        W=lazy(group["W"]),
        H=_small(group["H"]),
        history=history,
        status=Status[saved["status"]],
        parameters=saved["parameters"],
        dead=saved["dead_components"],
        out=str(group.store_path),
        plan=Plan.from_json(saved["plan"]) if saved.get("plan") else None,
    )


# ------------------------------------------------------------------------------------ finding
def _find(out: Any) -> Any:
    """The group at `out`, None if there is nothing; refuses anything else."""
    if isinstance(out, zarr.Group):
        return out
    path = absolute(out)
    try:
        found = zarr.open(path, mode="r")
    except FileNotFoundError:
        if os.path.isfile(path) or (os.path.isdir(path) and os.listdir(path)):
            raise FileExistsError(
                f"out: {path!r} holds files that are not a zarr group: choose another path"
            ) from None
        return None
    except NotADirectoryError as error:
        raise NotADirectoryError(f"out: cannot write to {path!r}: {error}") from error
    if not isinstance(found, zarr.Group):
        raise FileExistsError(f"out: {path!r} is a zarr array, not a group: choose another path")
    return found


def _check_replaceable(group: Any, overwrite: bool) -> None:
    saved = group.attrs.get(_KEY)
    if saved is None:
        if any(True for _ in group) or len(group.attrs):
            raise FileExistsError(
                f"out: {group.store_path} holds something that dask_nmf did not write: choose "
                "another place, or delete it yourself"
            )
    elif saved["state"] == "finished" and not overwrite:
        raise FileExistsError(
            f"out: {group.store_path} holds a finished result (error {saved['error']:.6g}): pass "
            "overwrite=True to replace it, or read it with dask_nmf.open_result"
        )


def check_space(
    out: Any, needs: int, what: str = "the factors, and a second generation of the large one, need"
) -> None:
    """Refuse what cannot fit on the disk; nothing is known of other stores."""
    if isinstance(out, zarr.Group):
        out = str(getattr(out.store, "root", "memory://"))
    if "://" in out:
        return
    folder = out
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if needs > free:
        raise OSError(
            f"out: {what} {format_bytes(needs)}, but only {format_bytes(free)} are free at "
            f"{folder}: choose another disk"
        )


def _check_writable(group: Any) -> None:
    """Better known before the work than after it; a finished result is not touched."""
    if group.attrs.get(_KEY, {}).get("state") != "finished":
        group.update_attributes({_KEY: {"state": "running"}})
    root = getattr(group.store, "root", None)
    if root is not None and not os.access(os.path.join(root, group.path), os.W_OK):
        raise PermissionError("permission denied")


# ------------------------------------------------------------------------------------ writing
def _create(group: Any, name: str, shape: Any, dtype: Any, dims: Any, chunks: Any = None) -> Any:
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks or shape,
        dimension_names=dims,
        compressors=[Crc32cCodec()],  # factors hardly compress; a flipped bit must be noticed
        config={"write_empty_chunks": True},  # an absent chunk is damage, not zeros
    )


def _write_factor(group: Any, name: str, factor: Any, dims: Any) -> Any:
    """W or H in chunks of up to 16 MiB along its long side: whole blocks where they are even."""
    axis = dims.index("component") ^ 1
    size, k = factor.shape[axis], factor.shape[1 - axis]
    factor = factor if isinstance(factor, da.Array) else da.from_array(factor, chunks=-1)
    most = max(1, _CHUNK_BYTES // (k * factor.dtype.itemsize))
    block = factor.chunks[axis][0]
    regular = factor.chunks[axis] == even(size, block)
    step = min(max(1, most // block) * block if regular and block <= most else most, size)
    chunks = (step, k) if axis == 0 else (k, step)
    array = _create(group, name, factor.shape, factor.dtype, dims, chunks)
    # One task per chunk of the array: no two write the same one.
    factor = factor.rechunk({axis: even(size, step), 1 - axis: -1})
    da.store(factor, array, lock=False)
    return array


def lazy(array: Any) -> DaskArray:
    """A factor's array as a dask array of its chunks."""
    chunks = [even(size, step) for size, step in zip(array.shape, array.chunks, strict=True)]
    return open_matrix(array).blocks(Grid(chunks[0], chunks[1]))


def _small(array: Any) -> Any:
    return array[:] if array.nbytes <= IN_MEMORY else lazy(array)


def _consolidate(group: Any) -> None:
    """One metadata document: xarray warns without, and remote opens are then one request."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata", category=UserWarning)
        zarr.consolidate_metadata(group.store, path=group.path)


def _attributes(result: Result) -> dict[str, Any]:
    return {
        "state": "finished",
        "version": version("dask_nmf"),
        "status": result.status.name,
        "why": result.status.value,
        "error": result.error,
        "dead_components": result.dead,
        "parameters": result.parameters,
        "plan": result.plan.to_json() if result.plan else None,
    }
