"""What happens to files and disks: bits flip, files are cut or vanish, a disk is full."""

import os
import resource
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

from tests.processes import Process


def damage(place: Path, random: Random) -> str:
    """Damage one file, or one of those in a folder; what was done to which."""
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    if not files:
        return "nothing"
    if random.random() < 0.5:  # most are chunks, of W
        files = [path for path in files if path.name != "zarr.json"] or files
    path = random.choice(files)
    kind = random.choice(["flip", "flip", "truncate", "delete"])
    try:
        content = bytearray(path.read_bytes())
        if kind == "delete" or not content:
            path.unlink()
        elif kind == "truncate":
            os.truncate(path, random.randrange(len(content)))
        else:
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
            with open(path, "r+b") as file:
                file.write(content)
    except FileNotFoundError:
        return "nothing"
    return f"{kind} {path.relative_to(place) if path != place else path.name}"


def mounted(folder: Path, size: str = "8m") -> bool:
    """Make the folder; whether it is a small disk of its own, which takes root."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def unmounted(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def fill(disk: Path, writers: Iterable[Process]) -> Callable[[], None]:
    """Leave no room on a small disk, or let none of the processes write; what mends it again."""
    if not os.path.ismount(disk):
        pids = [writer.process.pid for writer in writers if writer.alive]
        return _limited([pid for pid in pids if pid])
    path = disk / "filler"
    with open(path, "ab", buffering=0) as file:
        for step in (2**16, 2**10, 1):
            try:
                while True:
                    file.write(bytes(step))
            except OSError:
                continue
    return lambda: path.unlink(missing_ok=True)


def _limited(pids: list[int]) -> Callable[[], None]:
    """Their files may not grow beyond some bytes."""
    before = {pid: _limit(pid, 300) for pid in pids}

    def mend() -> None:
        for pid, limit in before.items():
            _limit(pid, limit)

    return mend


def _limit(pid: int, size: int) -> int:
    """Set it; what it was before."""
    try:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
    except ProcessLookupError:
        return -1
    return soft
