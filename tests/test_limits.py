"""The memory of a process is the least of the machine's and of its control groups'."""

import os
from pathlib import Path

import pytest

from dask_nmf.limits import SHARE, default_memory, process_limit

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


def tree(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "limit"),
    [
        ("0::/a/b\n", {f"{V2}/a/b/memory.max": "1000\n", f"{V2}/a/memory.max": "max\n"}, 1000),
        ("0::/a/b\n", {f"{V2}/a/b/memory.max": "max\n", f"{V2}/a/memory.max": "700\n"}, 700),
        ("0::/\n", {f"{V2}/memory.max": "800\n"}, 800),
        ("0::/not/seen/here\n", {f"{V2}/memory.max": "800\n"}, 800),
        ("4:memory:/x\n0::/\n", {f"{V1}/x/memory.limit_in_bytes": "600\n"}, 600),
        ("3:cpu,memory:/docker/1\n", {f"{V1}/memory.limit_in_bytes": "500\n"}, 500),
        ("4:memory:/x\n", {f"{V1}/x/memory.limit_in_bytes": "9223372036854771712\n"}, MACHINE),
        ("2:cpu:/x\n", {f"{V1}/x/memory.limit_in_bytes": "500\n"}, MACHINE),
    ],
)
def test_the_least_limit_counts(
    tmp_path: Path, cgroup: str, files: dict[str, str], limit: int
) -> None:
    assert process_limit(tree(tmp_path, cgroup, files)) == limit


def test_without_control_groups_it_is_the_machine(tmp_path: Path) -> None:
    assert process_limit(tmp_path) == MACHINE


def test_a_share_of_it_is_planned_with() -> None:
    assert default_memory(1000) == int(SHARE * 1000)
    assert 0 < default_memory() <= SHARE * MACHINE
