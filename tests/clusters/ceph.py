"""Ceph with its S3 gateway by hand: monitor, storage daemon in memory, radosgw; on loopback."""

import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.clusters.conftest import needed
from tests.s3 import KEY, SECRET, Bucket

_CONFIG = """
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{mon_port}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
run_dir = {folder}
admin_socket = {folder}/$name.asok
pid_file = {folder}/$name.pid
log_file = {folder}/$name.log
keyring = {folder}/keyring
mon_data = {folder}/mon
osd_data = {folder}/osd
# One of each, on a machine that has other things to do.
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_data_avail_warn = 1
mon_data_avail_crit = 1
# The gateway makes seven pools: a second for each, were the monitor not asked to be quick.
paxos_propose_interval = 0.1
paxos_min_wait = 0.01
osd_objectstore = memstore
memstore_device_bytes = 1073741824
rgw_frontends = beast endpoint=127.0.0.1:{port}
"""

# Who may do what.
_CAPS = {
    "mon.": ["mon", "allow *"],
    "client.admin": ["mon", "allow *", "osd", "allow *"],
    "osd.0": ["mon", "allow profile osd", "osd", "allow *"],
    "client.rgw": ["mon", "allow rwx", "osd", "allow rwx"],
}
_PATIENCE = 120  # seconds; it takes 4 on an idle machine


@contextmanager
def serve(folder: Path) -> Iterator[Bucket]:
    """A gateway with our user and a bucket; its processes end with this one, however that ends."""
    needed(
        "ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin"
    )
    fsid, osd, keyring, monmap = uuid.uuid4(), uuid.uuid4(), folder / "keyring", folder / "monmap"
    mon_port, port = free_ports(2)
    config = folder / "ceph.conf"
    config.write_text(_CONFIG.format(folder=folder, fsid=fsid, mon_port=mon_port, port=port))
    here = ["-c", config]
    for name, caps in _CAPS.items():
        made = [] if keyring.exists() else ["--create-keyring"]
        told = [x for each in zip(caps[::2], caps[1::2], strict=True) for x in ("--cap", *each)]
        _call("ceph-authtool", keyring, *made, "--gen-key", "-n", name, *told)
    address = f"[v2:127.0.0.1:{mon_port}]"
    _call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
    _call("ceph-mon", *here, "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
    with _daemons(folder) as start:
        start("ceph-mon", *here, "-i", "a")
        _call("ceph", *here, "--connect-timeout", _PATIENCE, "osd", "new", osd)
        (folder / "osd").mkdir()
        _call("ceph-osd", *here, "-i", "0", "--mkfs", "--osd-uuid", osd)
        start("ceph-osd", *here, "-i", "0")
        start("radosgw", *here, "-n", "client.rgw")
        _wait_for(f"http://127.0.0.1:{port}", folder / "client.rgw.log")
        user = ["--uid", "tests", "--display-name", "tests", "--access-key", KEY]
        _call("radosgw-admin", *here, "user", "create", *user, "--secret-key", SECRET)
        bucket = Bucket(port)
        try:
            yield bucket
        finally:
            bucket.close()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nothing listens."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _call(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def _daemons(folder: Path) -> Iterator[Callable[..., None]]:
    """What starts a daemon in the foreground; none outlives the context or this process."""
    running = []

    def start(*command: object) -> None:
        words = ["setpriv", "--pdeathsig", "KILL", *map(str, command), "-f"]
        with open(folder / f"{command[0]}.out", "wb") as out:
            running.append(subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT))

    try:
        yield start
    finally:
        for process in reversed(running):
            process.kill()
            process.wait()


def _wait_for(url: str, log: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
