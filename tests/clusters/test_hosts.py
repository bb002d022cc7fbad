"""The commands of cluster/hosts: over TLS, of which nobody else may be part, and a host lost."""

import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from distributed.security import Security

from tests.clusters.conftest import BLOCKS, FIT, PASSES, RECIPES, Run, needed
from tests.clusters.hosts import hosts

HOSTS = RECIPES / "hosts"
WORKER = ["--memory-limit", "1GiB"]
CERTIFICATE = re.compile(r"    (openssl req .*)\n")


@pytest.fixture
def tls(run: Run) -> Path:
    """Key and certificate, made by the README's command, that the run's commands use."""
    folder = certified(run.folder / "tls")
    run.environment["TLS"] = str(folder)
    return folder


def certified(folder: Path) -> Path:
    needed("openssl")
    found = CERTIFICATE.search((HOSTS / "README.md").read_text())
    assert found
    folder.mkdir(mode=0o700)
    subprocess.run(found[1], shell=True, cwd=folder, check=True, capture_output=True)
    return folder


def secrets(tls: Path) -> list[str]:
    """The lines of the key."""
    return (tls / "key.pem").read_text().splitlines()[1:-1]


def leaked(tls: Path, folder: Path) -> list[Path]:
    """Files that have one of them."""
    lines = [line.encode() for line in secrets(tls)]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(line in path.read_bytes() for line in lines)]


def test_a_host_that_is_cut_off(run: Run, tls: Path, expected: str) -> None:
    """In mid-pass: the others do its part, and what it was at changes nothing."""
    needed("ip")
    run.environment["DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP"] = "12s"  # 30 by default
    with hosts(3) as (first, *others):
        address = f"tls://{first.address}:8786"
        run.start(*first.inside, HOSTS / "scheduler.sh", "--host", first.address)
        workers = [
            run.start(*host.inside, HOSTS / "worker.sh", address, *WORKER, "--host", host.address)
            for host in others
        ]
        run.registered(2)
        driver = run.start(*first.inside, HOSTS / "fit.sh", address, run.V, run.out, *FIT)
        run.in_pass(2.5)
        others[-1].cut_off()
        assert driver.wait(120) == 0, run.said()
        assert run.digest() == expected
        assert PASSES * BLOCKS <= run.reads() <= (PASSES + 2) * BLOCKS
        assert workers[-1].wait(60) is not None  # alone, it goes
        assert workers[0].poll() is None
    assert leaked(tls, run.folder) == [tls / "key.pem"]


def test_nobody_else_may_take_part(run: Run, tls: Path, expected: str) -> None:
    """Not without encryption, nor with another certificate; and what is refused says why."""
    here, port = ["--host", "127.0.0.1"], free_port()
    encrypted, plain = f"tls://127.0.0.1:{port}", f"tcp://127.0.0.1:{port}"
    run.start(HOSTS / "scheduler.sh", *here, "--port", port)
    run.start(HOSTS / "worker.sh", encrypted, *WORKER, *here)
    run.registered(1)
    foreign = certified(run.folder / "foreign")
    refused = [
        (foreign, encrypted, "TLS certificate does not match"),
        ("", plain, "Connection reset by peer"),
        (tls, plain, "encryption required by Dask configuration"),
    ]
    for number, (certificate, address, words) in enumerate(refused):
        client = run.another(f"client-{number}")
        client.environment["TLS"] = str(certificate)
        driver = client.start(HOSTS / "fit.sh", address, run.V, client.out, *FIT)
        assert driver.wait(90) == 1, client.said()
        assert f"no connection to a scheduler at {address}" in client.said()
        assert words in client.said()
    worker = run.another("worker")
    worker.environment["TLS"] = str(foreign)
    assert worker.start(HOSTS / "worker.sh", encrypted, *WORKER, *here).wait(90) == 1
    assert "TLS certificate does not match" in worker.said()
    assert run.said().count("Registered to") == 1

    driver = run.start(HOSTS / "fit.sh", encrypted, run.V, run.out, *FIT)
    run.in_pass(0.5)
    with Client(encrypted, security=security(tls)) as client:
        known = [repr(client), *client.run_on_scheduler(known_there)]
    assert driver.wait(90) == 0, run.said()
    assert run.digest() == expected
    assert len(known) > 3 + BLOCKS  # tasks, too
    assert not any(secret in text for secret in secrets(tls) for text in known)
    assert leaked(tls, run.folder) == [tls / "key.pem"]


def security(tls: Path) -> Security:
    certificate, key = str(tls / "cert.pem"), str(tls / "key.pem")
    return Security(tls_ca_file=certificate, tls_client_cert=certificate, tls_client_key=key)


def known_there(dask_scheduler: Any) -> list[str]:
    """All that a scheduler could tell of its tasks, workers and clients."""
    tasks = [f"{key} {task.run_spec}" for key, task in dask_scheduler.tasks.items()]
    return [repr(dask_scheduler), repr(dask_scheduler.identity(n_workers=-1)), *tasks]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
