"""What a run leaves in its store, so that the next call goes on from it, bit for bit.

Beside the results, while a run is not finished:

    run/epoch-000002             create-only, one per call: which run, its record, who; newest owns
    run/<id>/first               what the first pass found; other passes before the start likewise
    run/<id>/W-000007-<unique>   the W of a sweep: never rewritten
    run/<id>/state-000007-..     H and all else that the next sweep needs
    run/<id>/commit-000007       create-only, written last: it makes both real

The newest commit that is whole wins; the one before it is kept, too. No name is used twice, so what
a dead driver or a stopped worker still writes is in nobody's way. Whoever opens the store as zarr
finds groups and arrays.
"""

import logging
import os
import socket
import time
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import dask.array as da
import numpy as np
import zarr
from zarr.core.sync import sync
from zarr.storage import FsspecStore, StorePath, WrapperStore

from dask_nmf.blocks import Grid, even
from dask_nmf.commits import Writer, create, get, new_array, open_array, open_group, put, read
from dask_nmf.errors import Damaged, RunTakenOver
from dask_nmf.io import open_matrix
from dask_nmf.packing import pack, unpack
from dask_nmf.retrying import insist
from dask_nmf.types import DaskArray, Sketch, State
from dask_nmf.watch import compute

FORMAT = 1
_COMMITS_KEPT = 2
_REPLACES = (
    "out: the store of {} replaces what it is asked to create: of two calls at work there at once, "
    "both could think that it is theirs. Make sure that there is only one, or take a store with "
    "conditional writes (a disk, S3, GCS, Azure, Ceph)"
)
_COST = 0.05  # of a run's time that commits may take, where the caller does not say how many

T = TypeVar("T")
logger = logging.getLogger("dask_nmf")


@dataclass(frozen=True)
class Claim:
    """An epoch: the call that works on a run, and the run's record.

    number, nonce : of the epoch. run : the run's name. record : its problem and plan.
    driver : who. others : older epochs, and other runs.
    """

    number: int
    nonce: str
    run: str
    record: dict[str, Any]
    driver: str


def newest_claim(group: Any) -> Claim | None:
    """The last epoch in a results group that can be read; None if no run has begun there."""
    place = group.store_path / "run"
    numbers = _numbers(place, "epoch-")
    for number in reversed(numbers):
        try:
            found = read(place / f"epoch-{number:06d}")
        except Damaged as damage:
            logger.warning("%s: looking at the epoch before it", damage)
            continue
        if found is None:
            continue
        if found["format"] > FORMAT:
            raise ValueError(
                f"out: {group.store_path} holds a run of a newer dask_nmf (format "
                f"{found['format']}, this one reads {FORMAT}): upgrade, or pass overwrite=True"
            )
        return Claim(numbers[-1], found["nonce"], found["run"], found["record"], found["driver"])
    return None


def holds_work(group: Any, run: str) -> bool:
    """Whether that run has got as far as the end of its first pass."""
    return _names(group.store_path / "run" / run) not in ([], ["zarr.json"])


def forget(place: StorePath, run: str, epoch: int) -> None:
    """Delete a run, and the epochs up to that one; all of "run" if nothing else is there."""
    _delete(place / run)
    for number in _numbers(place, "epoch-"):
        if number <= epoch:
            _delete(place / f"epoch-{number:06d}")
    if _names(place) in ([], ["zarr.json"]):
        _delete(place)


class Run:
    """A run in a store, owned by this call for as long as no later one claims it."""

    def __init__(self, group: Any, record: dict[str, Any], last: Claim | None, resume: bool):
        """Claim the last run, or begin another.

        Raises
        ------
        RunTakenOver
            If another call did so at the same moment.
        """
        self._root = open_group(group, "run")
        run = last.run if last and resume else uuid.uuid4().hex[:12]
        number = 1 + max([last.number if last else 0, *_numbers(self._root.store_path, "epoch-")])
        driver = f"process {os.getpid()} on {socket.gethostname()}, {time.strftime('%F %T %Z')}"
        self._claim = Claim(number, uuid.uuid4().hex, run, record, driver)
        content = {"format": FORMAT, **{f.name: getattr(self._claim, f.name) for f in _CLAIMED}}
        place = self._root.store_path / f"epoch-{number:06d}"
        if not create(place, content):
            raise RunTakenOver(self._taken())
        if create(place, content | {"nonce": uuid.uuid4().hex}):  # which is refused elsewhere
            create(place, content)
            warnings.warn(_REPLACES.format(group.store_path), UserWarning, stacklevel=2)
        self._group = open_group(self._root, run)
        self._commits: dict[int, set[str]] = {}
        self._known = {name for name in _names(self._group.store_path) if "-" in name}
        self._free_at = 0.0
        self.name, self.recalled, self._deleted = run, False, False

    @property
    def record(self) -> dict[str, Any]:
        return self._claim.record

    def check_owner(self) -> None:
        """Raise RunTakenOver if a later call has claimed the run, or finished it."""
        numbers = _numbers(self._root.store_path, "epoch-")
        place = self._root.store_path / f"epoch-{self._claim.number:06d}"
        mine = bool(numbers) and numbers[-1] == self._claim.number
        if mine:
            try:
                found = read(place)
                mine = found is not None and found["nonce"] == self._claim.nonce
            except Damaged:
                mine = True  # nobody else writes there
        if not mine:
            raise RunTakenOver(self._taken())

    def _taken(self) -> str:
        try:
            found = newest_claim(zarr.open_group(self._root.store, path=self._out, mode="r"))
        except (ValueError, OSError):
            found = None
        by = f"by {found.driver}" if found else "or has been finished or deleted meanwhile"
        return (
            f"the run at {self._root.store_path} was taken over {by}: this call stops, nothing is "
            "lost. Let the other one end, or call again to take over in turn"
        )

    @property
    def _out(self) -> str:
        return str(self._root.path).removesuffix("run").rstrip("/")

    # -------------------------------------------------------------------------- the first passes
    def once(self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """What `make` gives, made once in a run: a later call finds it here."""
        try:
            if name in _names(self._group.store_path):
                found: T = unpack(kind, get(self._group, name))
                self.recalled = True
                return found
        except Damaged as damage:
            logger.warning("%s: made anew", damage)
        made = make()
        self.check_owner()
        put(self._group, name, pack(made))
        return made

    # ------------------------------------------------------------------------------- generations
    def new_W(self, number: int, shape: tuple[int, int], rows: int, dtype: Any) -> tuple[str, Any]:
        """What writes the large factor of that sweep, in chunks of its row blocks; its name."""
        name = f"W-{number:06d}-{uuid.uuid4().hex[:12]}"
        self._known.add(name)
        dims = ("row", "component")
        array = new_array(self._group, name, shape, dtype, dims, (rows, shape[1]))
        return name, Writer(array)

    def stored(self, state: State) -> State:
        """The state with its W written, and read from here."""
        name, target = self._written(state)
        return replace(state, W=lazy(target.array), generation=name)

    def _written(self, state: State) -> tuple[str, Any]:
        self.check_owner()  # better known before W is written
        number, rows = len(state.history), max(state.W.chunks[0])
        name, target = self.new_W(number, state.W.shape, rows, state.W.dtype)
        compute(da.store(state.W, target, lock=False, compute=False))
        return name, target

    def save(self, state: State, every: int | None, last: bool = False) -> State:
        """Commit the state, if it is its turn, and delete what is no longer needed.

        A W that lies in memory is written for it, and stays there.

        every : in sweeps; None is each one as long as commits take little of the run's time.
        """
        number, began = len(state.history), time.perf_counter()
        due = began >= self._free_at if every is None else number % every == 0
        if due or last or not self._commits:
            if not state.generation:
                state = replace(state, generation=self._written(state)[0])
            self._commit(state, number)
        if last:
            self.check_owner()  # a new one may have begun at the commit before this
        self._collect(state, 1 if last else _COMMITS_KEPT)
        if due:
            ended = time.perf_counter()
            self._free_at = ended + (ended - began) / _COST
        return state

    def _commit(self, state: State, number: int) -> None:
        self.check_owner()
        if not self._commits:
            self._sweep()
        name = f"state-{number:06d}-{uuid.uuid4().hex[:12]}"
        self._known.add(name)
        digest = put(self._group, name, pack(_bare(state)))
        content = {
            "format": FORMAT,
            "epoch": self._claim.number,
            "nonce": uuid.uuid4().hex,
            "W": state.generation,
            "shape": list(state.W.shape),
            "state": name,
            "state_digest": digest,
            "passes": state.passes,
        }
        place = self._group.store_path / f"commit-{number:06d}"
        while not create(place, content):
            self.check_owner()  # whoever committed it has been overtaken: its bits are the same
            _delete(place)
        self._known.add(place.path.rsplit("/", 1)[-1])
        self._commits[number] = {state.generation, name, f"commit-{number:06d}"}

    def _collect(self, state: State, commits: int = _COMMITS_KEPT) -> None:
        """Delete what neither the last commits nor the next sweep need: only what is known here."""
        for number in sorted(self._commits)[:-commits]:
            del self._commits[number]
        needed = set().union({state.generation}, *self._commits.values())
        # A commit goes before what it names.
        for name in sorted(self._known - needed, key=lambda name: not name.startswith("commit-")):
            _delete(self._group.store_path / name)
            self._known.discard(name)

    def _sweep(self) -> None:
        """Delete older epochs and other runs: this one has something to show now."""
        for name in _names(self._root.store_path):
            if name.startswith("epoch-"):
                if int(name.removeprefix("epoch-")) < self._claim.number - 1:
                    _delete(self._root.store_path / name)
            elif name not in (self.name, "zarr.json"):
                _delete(self._root.store_path / name)

    def load(self, sketch: Sketch | None) -> State | None:
        """The state of the newest commit that is whole; None if there is none."""
        state = None
        for number in reversed(_numbers(self._group.store_path, "commit-")):
            name = f"commit-{number:06d}"
            if len(self._commits) == _COMMITS_KEPT:
                break
            try:
                found = read(self._group.store_path / name)
                if found is None:
                    continue
                if state is None:
                    state = self._state(found, sketch)
                self._commits[number] = {found["W"], found["state"], name}
            except Damaged as damage:
                logger.warning("%s: going on from the pass before it", damage)
                _delete(self._group.store_path / name)
        if state is not None:
            self._collect(state)
        return state

    def _state(self, commit: dict[str, Any], sketch: Sketch | None) -> State:
        bare: State = unpack(State, get(self._group, commit["state"], commit["state_digest"]))
        try:
            W = lazy(open_array(self._group, commit["W"]))
            if list(W.shape) != commit["shape"]:
                raise Damaged(f"W is of shape {W.shape}, not {commit['shape']}")
            compute(W.map_blocks(_touch, chunks=(1, 1), dtype="u1", meta=np.empty((0, 0), "u1")))
        except ValueError as error:
            raise Damaged(f"W of {self._group.store_path} is damaged or gone: {error}") from error
        ahead = bare.ahead
        if ahead is not None:
            seen = ahead.seen
            if seen is not None and seen.numer is not None:
                seen = replace(seen, W=compute(W)[0])
            ahead = replace(ahead, sketch=sketch, seen=seen)
        return replace(bare, W=W, generation=commit["W"], ahead=ahead)

    def delete(self) -> None:
        """The run and its epochs; not those of a call that has begun meanwhile."""
        self._deleted = True
        forget(self._root.store_path, self.name, self._claim.number)

    def ended_by_error(self, error: Exception) -> None:
        """Raise RunTakenOver if that is why; leave nothing behind if nothing was made.

        Nor if V or the start was refused before the first commit: it would be in the way of the
        call that mends it.
        """
        if self._deleted:  # the results are there: what failed came after them
            return
        if not _numbers(self._root.store_path, "epoch-"):  # another call has finished it
            self.delete()
        self.check_owner()  # what has failed may be what a new owner has swept away
        bad_input = isinstance(error, (ValueError, TypeError)) and not self._commits
        if (bad_input and not self.recalled) or _names(self._group.store_path) == ["zarr.json"]:
            place = self._root.store_path
            _delete(place / f"epoch-{self._claim.number:06d}")
            forget(place, self.name, 0)


_CLAIMED = fields(Claim)


def _bare(state: State) -> State:
    """Without what lies in other places: W and the sketch."""
    ahead = state.ahead
    if ahead is not None:
        seen = None if ahead.seen is None else replace(ahead.seen, W=None)
        ahead = replace(ahead, sketch=None, seen=seen)
    return replace(state, W=None, generation="", ahead=ahead)


def _touch(_: Any) -> Any:
    """Reading it has checked it."""
    return np.zeros((1, 1), "u1")


def lazy(array: Any) -> DaskArray:
    """A factor's array as a dask array of its chunks."""
    chunks = [even(size, step) for size, step in zip(array.shape, array.chunks, strict=True)]
    return open_matrix(array).unchecked.blocks(Grid(chunks[0], chunks[1]))


# ---------------------------------------------------------------------------------- the store
def _names(place: StorePath) -> list[str]:
    """What lies under a key, sorted; not the files of a writer that was killed."""
    store = place.store
    while isinstance(store, WrapperStore):
        store = store._store
    if isinstance(store, FsspecStore):  # others write there, too
        store.fs.invalidate_cache()

    async def listed() -> list[str]:
        return [name.rstrip("/") async for name in place.store.list_dir(place.path)]

    names = insist(lambda: sync(listed()), f"listing {place}")
    return sorted(name for name in names if not name.endswith(".partial"))


def _numbers(place: StorePath, prefix: str) -> list[int]:
    names = (name.removeprefix(prefix) for name in _names(place) if name.startswith(prefix))
    return sorted(int(name) for name in names if name.isdigit())


def _delete(place: StorePath) -> None:
    """Gone, or garbage that the next call tries to delete: a stopped worker may write just now."""
    try:
        insist(lambda: sync(place.delete_dir()), f"deleting {place}")
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("%s could not be deleted: %s", place, error)
