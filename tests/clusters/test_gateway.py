"""Dask Gateway in its local mode: the recipe, the same bits as on threads, and who is let in."""

import json
import os
import subprocess
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest

import dask_nmf
from tests.clusters.ceph import free_ports
from tests.clusters.conftest import FIT, RECIPES, Run
from tests.processes import wait_until

RECIPE = RECIPES / "gateway"
PASSWORD = "of the tests"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address; the server, its proxy and what it has started end with this process."""
    pytest.importorskip("dask_gateway")
    pytest.importorskip("dask_gateway_server")
    api, proxy = (f"127.0.0.1:{port}" for port in free_ports(2))
    folder = tmp_path_factory.mktemp("gateway")
    environment = os.environ | {
        "GATEWAY_PASSWORD": PASSWORD,
        "GATEWAY_API": api,
        "GATEWAY_ADDRESS": proxy,
        "PYTHONPATH": str(RECIPES.parent),
    }
    config = str(RECIPE / "dask_gateway_config.py")
    command = [sys.executable, "-m", "dask_gateway_server", "-f", config]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"http://{proxy}/api/health", timeout=5).close()
        except OSError:
            return False
        return True

    try:
        wait_until(answers, 60, "the gateway")
        yield f"http://{proxy}"
    finally:
        server.terminate()  # it ends its clusters, and then itself
        server.wait(60)


@pytest.fixture
def command(gateway: str, run: Run) -> list[Any]:
    """The recipe, and the run's environment with our name and password."""
    _sign_in(run, PASSWORD)
    return [sys.executable, RECIPE / "fit.py", "--workers", 2, gateway, run.V, run.out, *FIT]


def _sign_in(run: Run, password: str) -> None:
    kwargs = json.dumps({"username": "me", "password": password})
    run.environment |= {"DASK_GATEWAY__AUTH__TYPE": "basic", "DASK_GATEWAY__AUTH__KWARGS": kwargs}


def _clusters(gateway: str) -> list[str]:
    """The names of those that are at work."""
    asked = urllib.request.Request(f"{gateway}/api/v1/clusters/")
    asked.add_header("Authorization", f"Basic {b64encode(f'me:{PASSWORD}'.encode()).decode()}")
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return list(json.load(answer))


def test_same_bits_as_on_threads(run: Run, command: list[Any], gateway: str, expected: str) -> None:
    assert run.start(*command).wait(120) == 0, run.said()
    assert run.digest() == expected
    assert "gateway://" in str(dask_nmf.open_result(run.out).plan)
    wait_until(lambda: not _clusters(gateway), 60, "the end of the cluster")
    for path in run.out.rglob("*"):
        assert path.is_dir() or PASSWORD.encode() not in path.read_bytes(), path
    assert PASSWORD not in run.said()


def test_a_wrong_password_is_refused(run: Run, command: list[Any], gateway: str) -> None:
    _sign_in(run, "another")
    assert run.start(*command).wait(60) == 1
    assert "Unauthorized" in run.said() or "401" in run.said()
    assert not run.out.exists()


def test_a_stopped_command_ends_its_cluster(run: Run, command: list[Any], gateway: str) -> None:
    """By SIGTERM, as a batch system does."""
    driver = run.start(*command)
    wait_until(lambda: bool(_clusters(gateway)), 60, "the cluster")
    driver.terminate()
    assert driver.wait(60) == 143, run.said()
    wait_until(lambda: not _clusters(gateway), 60, "the end of the cluster")
