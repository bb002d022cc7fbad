"""Objects of a store, damaged one at a time, and what a call then makes of it."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import dask_nmf

Damage = Callable[[bytes], bytes | None]
"""What is left of an object; None if it is gone."""

Bits = tuple[bytes, bytes, tuple[Any, ...]]

OURS = (ValueError, FileExistsError, FileNotFoundError, dask_nmf.RunStopped)
_TO_DO = re.compile(
    r"restore|overwrite=True|again|another (place|path)|there is no|cannot open", re.I
)


class Place(Protocol):
    """Where objects lie: a folder or a bucket."""

    def digests(self) -> dict[str, str]: ...
    def get(self, key: str) -> bytes: ...
    def put(self, key: str, body: bytes) -> None: ...
    def delete(self, key: str) -> None: ...


class Folder:
    """A folder; a file that is put into another's place keeps that one's time, like decay does."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def digests(self) -> dict[str, str]:
        files = [p for p in self.root.rglob("*") if p.is_file()]
        return {str(p.relative_to(self.root)): md5(p.read_bytes()) for p in files}

    def get(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def put(self, key: str, body: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.stat() if path.exists() else None
        path.write_bytes(body)
        if before is not None:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def delete(self, key: str) -> None:
        path = self.root / key
        path.unlink()
        while path.parent != self.root and not any(path.parent.iterdir()):
            path = path.parent
            path.rmdir()


def md5(body: bytes) -> str:
    """As S3 has it in its listings."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def restore(place: Place, objects: Mapping[str, bytes]) -> None:
    """Exactly these objects."""
    present = place.digests()
    for key in present.keys() - objects.keys():
        place.delete(key)
    for key, body in objects.items():
        if present.get(key) != md5(body):
            place.put(key, body)


def apply(place: Place, key: str, damage: Damage) -> None:
    left = damage(place.get(key))
    if left is None:
        place.delete(key)
    else:
        place.put(key, left)


# ------------------------------------------------------------------------------------ damages
def flip(share: float, bit: int = 2) -> Damage:
    """One bit flipped, that far into the object."""

    def flipped(body: bytes) -> bytes:
        changed = bytearray(body)
        changed[int(share * (len(body) - 1))] ^= 1 << bit
        return bytes(changed)

    return flipped


def replaced(old: str, new: str) -> Damage:
    """A text that has become another one."""

    def changed(body: bytes) -> bytes:
        assert old.encode() in body, old
        return body.replace(old.encode(), new.encode(), 1)

    return changed


def gone(_: bytes) -> None:
    """Deleted."""


DAMAGES: dict[str, Damage] = {
    **{f"flip at {share}": flip(share) for share in (0.0, 0.5, 0.8)},
    "high bit": flip(0.61, 7),
    "half": lambda body: body[: len(body) // 2],
    "a byte less": lambda body: body[:-1],
    "empty": lambda body: body[:0],
    "gone": gone,
}


# ----------------------------------------------------------------------------------- outcomes
def bits(result: dask_nmf.Result) -> Bits:
    """All numbers of a result but the seconds."""
    W: Any = result.W
    history = tuple((r.sweep, r.passes, r.error, r.bytes_read, r.kkt) for r in result.history)
    return W.compute().tobytes(), memoryview(result.H).tobytes(), history


def judge(call: Callable[[], dask_nmf.Result], expected: Bits) -> str:
    """ "same", "refused", or what is wrong: "different", or an error that is not told as ours."""
    try:
        found = bits(call())
    except Exception as error:
        kind = type(error)
        ours = isinstance(error, OURS) and kind.__module__.split(".")[0] in ("builtins", "dask_nmf")
        if ours and re.search(r"\.zarr", str(error)) and _TO_DO.search(str(error)):
            return "refused"
        return f"unclear {kind.__module__}.{kind.__name__}: {error}"
    return "same" if found == expected else "different"
