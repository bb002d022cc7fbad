"""Hosts that are network namespaces of this machine, on a switch that is one as well."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    namespace: str
    address: str
    switch: str
    port: str

    @property
    def inside(self) -> list[str]:
        """What comes before a command that runs there."""
        return ["ip", "netns", "exec", self.namespace]

    def cut_off(self) -> None:
        """Its link is down: nobody is told, packets just do not arrive."""
        _ip("-n", self.switch, "link", "set", "dev", self.port, "down")


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """So many, with addresses of a private network that exists among them only."""
    switch = f"nmf-{os.getpid()}"
    with ExitStack() as stack:
        try:
            _namespace(switch, stack)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode()}")
        _ip("-n", switch, "link", "add", "name", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "dev", "bridge", "up")
        yield [_plugged_in(switch, number, stack) for number in range(count)]


def _plugged_in(switch: str, number: int, stack: ExitStack) -> Host:
    host = Host(f"{switch}-{number}", f"10.77.0.{number + 1}", switch, f"port-{number}")
    _namespace(host.namespace, stack)
    cable = ["type", "veth", "peer", "name", "eth0", "netns", host.namespace]
    _ip("-n", switch, "link", "add", "name", host.port, *cable)
    _ip("-n", switch, "link", "set", "dev", host.port, "master", "bridge", "up")
    _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
    for link in ("eth0", "lo"):
        _ip("-n", host.namespace, "link", "set", "dev", link, "up")
    return host


def _namespace(name: str, stack: ExitStack) -> None:
    _ip("netns", "add", name)
    stack.callback(_remove, name)


def _remove(name: str) -> None:
    for pid in _ip("netns", "pids", name).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "delete", name)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True)
    return done.stdout.decode()
