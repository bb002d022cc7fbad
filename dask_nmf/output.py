"""The results group: W, H and the history as zarr arrays that xarray opens as they are."""

import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import dask
import dask.array as da
import zarr
from dask.utils import format_bytes

from dask_nmf.blocks import even
from dask_nmf.checkpoint import lazy
from dask_nmf.commits import SPOILT, Writer, digest_of, new_array
from dask_nmf.io import absolute, check_apart, check_reachable, uri_of
from dask_nmf.labels import GROUP, Labels, write_coords
from dask_nmf.packing import from_columns, to_columns
from dask_nmf.plans import Plan
from dask_nmf.reader import Reader
from dask_nmf.result import Result
from dask_nmf.retrying import insist, without_passwords
from dask_nmf.stopping import Status
from dask_nmf.types import SweepRecord

_KEY = "dask_nmf"  # the attribute that marks a group as ours; its "state" is written last
_CHUNK_BYTES = 2**24
_MEND = "restore it, or call factorize again with overwrite=True"
IN_MEMORY = 2**28  # bytes up to which H is a numpy array also where it is the large factor
_HISTORY = tuple(field.name for field in fields(SweepRecord) if field.name != "sweep")
_FIRST_HISTORY = ("passes", "error", "seconds", "bytes_read", "kkt")  # of version 0.1.0


@dataclass(frozen=True)
class Output:
    """The place for one result: a zarr group, made when it is first written to.

    where : path, URL or zarr group. group : None if there is nothing yet.
    """

    where: Any
    group: Any
    uri: str

    @property
    def finished(self) -> dict[str, Any] | None:
        """What is saved with a finished result."""
        saved: Any = None if self.group is None else self.group.attrs.get(_KEY)
        return saved if saved and saved.get("state") == "finished" else None

    def writable(self, remote: bool, needs: int) -> "Output":
        """The same with a group that can be written; a finished result in it stays.

        needs : bytes that will be added.
        """
        check_space(self.where, needs)
        try:
            if self.group is None:
                make = partial(zarr.open_group, self.where, mode="a", zarr_format=3)
                insist(make, f"creating {self.where}")
            # Not by the consolidated metadata: what is written next would not be in it.
            given = isinstance(self.where, zarr.Group)
            store, path = (self.where.store, self.where.path) if given else (self.where, None)
            find = partial(zarr.open_group, store, path=path, mode="r+", use_consolidated=False)
            group = insist(find, f"opening {self.where}")
            check_reachable("out", group.store, remote)
            _check_writable(group)
        except OSError as error:
            told = without_passwords(f"out: cannot write to {self.where}: {error}")
            raise type(error)(told) from error
        return replace(self, group=group)

    def write(self, result: Result) -> Result:
        """Write the arrays of the result; what comes back reads W from the group.

        Chunks are written by this process, not by workers, of which one may be stopped and go on
        much later.
        """
        _set_attributes(self.group, {"state": "writing"})
        with warnings.catch_warnings():  # about files of a process that was killed
            warnings.filterwarnings("ignore", "Object at ", category=UserWarning)
            names = insist(lambda: list(self.group.array_keys()), f"listing {self.uri}")
        for name in names:
            insist(partial(self.group.__delitem__, name), f"deleting {name} of {self.uri}")
        if GROUP in self.group:
            insist(partial(self.group.__delitem__, GROUP), f"deleting labels of {self.uri}")
        with dask.config.set(scheduler="threads"):
            if result.labels is not None:
                write_coords(result.labels, self.group)
            W = _write_factor(self.group, "W", result.W, ("row", "component"))
            H = _write_factor(self.group, "H", result.H, ("component", "column"))
        columns = to_columns(result.history)
        for name in _HISTORY:
            column = columns[name]
            array = new_array(self.group, name, column.shape, column.dtype, ("pass",))
            Writer(array)[(slice(0, len(column)),)] = column
        return replace(result, W=lazy(W), H=_small(H), out=self.uri)

    def finish(self, result: Result, about: dict[str, Any]) -> None:
        """Write the attributes: now it is there. about : by what the next call knows it again."""
        attributes = _attributes(result) | about
        attributes["digest"] = digest_of(attributes)
        _set_attributes(self.group, attributes)

    def consolidate(self) -> None:
        """One metadata document: xarray warns without, and remote opens are then one request."""
        with warnings.catch_warnings():
            for told in ("Consolidated metadata", "Object at ", "The data type"):
                warnings.filterwarnings("ignore", told, category=UserWarning)
            merge = partial(zarr.consolidate_metadata, self.group.store, path=self.group.path)
            insist(merge, f"consolidating {self.uri}")


def open_output(out: Any, V_uri: str) -> Output:
    """What is at `out`; nothing is made or changed.

    Raises
    ------
    FileExistsError
        If `out` holds anything that is not ours.
    ValueError, OSError
        If `out` is V, or cannot be read.
    """
    out = _checked_place(out)
    group = find_group(out)
    if group is not None and group.attrs.get(_KEY) is None and not _is_empty(group):
        if scan_places(group):
            raise FileExistsError(
                f"out: {group.store_path} holds the runs of a scan, or of several restarts "
                "(dask_nmf.open_scan reads them): choose another place for a single run"
            )
        raise FileExistsError(
            f"out: {group.store_path} holds something that dask_nmf did not write: choose "
            "another place, or delete it yourself"
        )
    uri = check_apart(uri_of(out.store_path) if isinstance(out, zarr.Group) else out, V_uri)
    return Output(out, group, uri)


def open_result(out: Any) -> Result:
    """The finished result in the group at `out`: a path, a URL or a zarr group.

    Raises
    ------
    FileNotFoundError
        If there is no result there, or a scan's, which `open_scan` opens.
    ValueError
        If the run that began there has not finished.

    Notes
    -----
    Cost: no read of V, and none of W, which stays lazy.

    Examples
    --------
    >>> import dask_nmf, numpy, tempfile
    >>> out = tempfile.mkdtemp() + "/factors.zarr"
    >>> result = dask_nmf.factorize(numpy.ones((6, 4)), 1, out=out)
    >>> open_result(out).history == result.history
    True
    """
    group: Any = find_group(out)
    if group is not None and _KEY not in group.attrs and scan_places(group):
        raise FileNotFoundError(
            f"at {out} are the results of several runs: dask_nmf.open_scan({str(out)!r}).best(rank)"
        )
    if group is None or _KEY not in group.attrs:
        raise FileNotFoundError(f"there is no dask_nmf result at {out}")
    saved: Any = group.attrs[_KEY]
    if saved.get("state") != "finished":
        raise ValueError(f"the run that began at {out} has not finished: call factorize again")
    return load_result(group)


def scan_places(group: Any) -> dict[int, list[str]]:
    """Where the runs of a scan lie, by rank, in the order of their seeds."""
    found: dict[int, list[str]] = {}
    with warnings.catch_warnings():  # about whatever else lies there
        warnings.filterwarnings("ignore", "Object at ", category=UserWarning)
        names = sorted(name for name in group.group_keys() if name.startswith("rank-"))
    for below in names:
        seeds = [name for name in group[below].group_keys() if name.startswith("seed-")]
        places = [f"{below}/{name}" for name in sorted(seeds, key=_number)]
        found |= {_number(below): places} if places else {}
    return dict(sorted(found.items()))


def _checked_place(out: Any) -> Any:
    """`out` as a zarr group or an absolute path."""
    if not isinstance(out, (str, os.PathLike, zarr.Group)):
        raise TypeError(f"out must be a path, a URL or a zarr group, got {type(out).__name__}")
    return out if isinstance(out, zarr.Group) else absolute(out)


def make_scan_places(out: Any, ranks: Sequence[int], V_uri: str) -> None:
    """Groups for the runs of a scan to lie in, where they are not there yet.

    Raises
    ------
    FileExistsError
        If the result of a single run is there, or files that are no zarr group.
    ValueError, OSError
        If `out` is V, or cannot be written.
    """
    place = _checked_place(out)
    group, given = find_group(place), isinstance(place, zarr.Group)
    check_apart(uri_of(place.store_path) if given else place, V_uri)
    if group is not None and _KEY in group.attrs:
        raise FileExistsError(
            f"out: {group.store_path} holds the result of a single run: choose another place for "
            "several"
        )
    try:
        make = partial(zarr.open_group, place, mode="a", zarr_format=3)
        root = place if given else insist(make, f"creating {out}")
        for rank in ranks:
            insist(partial(root.require_group, f"rank-{rank:03d}"), f"creating a group in {out}")
    except OSError as error:
        raise type(error)(f"out: cannot write to {out}: {error}") from error


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


def load_result(group: Any) -> Result:
    """The finished result in a group of ours.

    Raises
    ------
    ValueError
        If its attributes, H, the history, or what is known of W are not what was written.
    """
    saved: Any = group.attrs[_KEY]
    if digest_of({k: v for k, v in saved.items() if k != "digest"}) != saved.get("digest"):
        raise ValueError(
            f"the attributes of {group.store_path} are not those that were written: {_MEND}"
        )
    (m, n), k, dtype = saved["parameters"]["shape"], saved["rank"], saved["parameters"]["dtype"]
    told = saved.get("history", _FIRST_HISTORY)
    shapes = {"W": (m, k), "H": (k, n)} | dict.fromkeys(told, (saved["sweeps"],))
    for name, shape in shapes.items():
        found = _member(group, name)
        if found.shape != shape or (name in "WH" and str(found.dtype) != dtype):
            raise ValueError(f"{found.store_path} is not of shape {shape} or type {dtype}: {_MEND}")
    columns = {"sweep": list(range(1, saved["sweeps"] + 1))}
    history = from_columns(columns | {name: _column(group[name]) for name in told})
    return Result(
        W=lazy(group["W"]),
        H=_small(group["H"]),
        history=history,
        status=Status[saved["status"]],
        parameters=saved["parameters"],
        dead=saved["dead_components"],
        out=uri_of(group.store_path),
        plan=Plan.from_json(saved["plan"]) if saved.get("plan") else None,
        labels=Labels.from_json(told, group) if (told := saved.get("labels")) else None,
    )


# ------------------------------------------------------------------------------------ finding
def find_group(out: Any) -> Any:
    """The group at `out`, None if there is nothing; refuses anything else."""
    path: Any = out.store_path if isinstance(out, zarr.Group) else absolute(out)
    try:  # as it is now, not as it was when a group was opened
        found = insist(lambda: zarr.open(path, mode="r"), f"opening {path}")
    except FileNotFoundError:
        if isinstance(out, zarr.Group):
            raise
        if os.path.isfile(path) or (os.path.isdir(path) and _written_files(path)):
            raise FileExistsError(
                f"out: {path!r} holds files that are not a zarr group: choose another path"
            ) from None
        return None
    except NotADirectoryError as error:
        raise NotADirectoryError(f"out: cannot write to {path!r}: {error}") from error
    except SPOILT as error:
        raise ValueError(
            f"out: the zarr.json of {str(path)!r} is damaged ({error!r}): restore it, or choose "
            "another place"
        ) from error
    if not isinstance(found, zarr.Group):
        raise FileExistsError(f"out: {path!r} is a zarr array, not a group: choose another path")
    return found


def _written_files(folder: str) -> list[str]:
    """What is there, but for files that a killed process had not yet given their names."""
    return [name for name in os.listdir(folder) if not name.endswith(".partial")]


def _is_empty(group: Any) -> bool:
    with warnings.catch_warnings(record=True) as foreign:  # zarr's, about what is not zarr's
        warnings.simplefilter("always")
        holds = insist(lambda: any(True for _ in group), f"listing {group.store_path}")
        return not len(group.attrs) and not holds and not foreign


def check_space(
    out: Any, needs: int, what: str = "the factors, and two generations of the large one, need"
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
        _set_attributes(group, {"state": "running"})
    root = getattr(group.store, "root", None)
    if root is not None and not os.access(os.path.join(root, group.path), os.W_OK):
        raise PermissionError("permission denied")


# ------------------------------------------------------------------------------------ writing
def _set_attributes(group: Any, saved: dict[str, Any]) -> None:
    insist(lambda: group.update_attributes({_KEY: saved}), f"writing {group.store_path}")


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
    array = new_array(group, name, factor.shape, factor.dtype, dims, chunks)
    factor = factor.rechunk(chunks)  # one task per chunk of the array: no two write the same one
    da.store(factor, Writer(array), lock=False)
    return array


def _small(array: Any) -> Any:
    if array.nbytes > IN_MEMORY:
        return lazy(array)
    rows, columns = array.shape
    return Reader(array, array.dtype)[:rows, :columns]


def _column(array: Any) -> list[Any]:
    """A column of the history; an absent chunk is damage, not zeros."""
    try:
        made = insist(lambda: array.nchunks_initialized, f"listing {array.store_path}")
        if made < array.nchunks:
            raise ValueError("it is gone")
        values: list[Any] = insist(lambda: array[:], f"reading {array.store_path}").tolist()
    except SPOILT as error:
        raise ValueError(
            f"chunk 'c/0' of {array.store_path} is damaged or gone: {error}; {_MEND}"
        ) from error
    return values


def _member(group: Any, name: str) -> Any:
    """An array of the results."""
    try:
        array = insist(lambda: group[name], f"opening {group.store_path}/{name}")
        if 0 in array.chunks:
            raise ValueError("its chunks are empty")
        return array
    except SPOILT as error:
        raise ValueError(
            f"{group.store_path}/{name} is damaged or gone: {error!r}; {_MEND}"
        ) from error


def _attributes(result: Result) -> dict[str, Any]:
    return {
        "state": "finished",
        "version": version("dask_nmf"),
        "status": result.status.name,
        "why": result.status.value,
        "error": result.error,
        "dead_components": result.dead,
        "rank": int(result.H.shape[0]),
        "sweeps": len(result.history),
        "history": list(_HISTORY),
        "parameters": result.parameters,
        "plan": result.plan.to_json() if result.plan else None,
        "labels": result.labels.to_json() if result.labels else None,
    }
