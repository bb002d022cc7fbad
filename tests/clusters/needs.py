"""What the tests of real services need of the machine."""

import shutil

import pytest


def needs(*programs: str) -> None:
    """Skip the test, with the reason, where a program is missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: see tests/clusters/packages.txt")
