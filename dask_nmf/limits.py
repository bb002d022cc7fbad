"""How much memory a process may use here: the machine's, or its container's."""

import os
from collections.abc import Iterator
from pathlib import Path

SHARE = 0.6
"""Of the limit, taken when nobody says: dask's workers spill from there on."""


def default_memory(worker_limit: int | None = None) -> int:
    """Bytes that a process may plan with: a share of its worker's limit, or of this machine's."""
    return int(SHARE * (worker_limit or process_limit()))


def process_limit(root: Path = Path("/")) -> int:
    """The least of the machine's memory and the limits of the control groups around this process.

    Containers and batch systems set limits by control groups, version 1 or 2, on the group of the
    process or on any above it.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = mount / path.lstrip("/")  # in a container it may not be there: then its parents
        for folder in (group, *group.parents):
            limit = _read(folder / name)
            if limit is not None:
                yield limit
            if folder == mount:
                break


def _read(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None
