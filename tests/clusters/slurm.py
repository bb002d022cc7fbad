"""A SLURM of this machine alone: munged, slurmctld and slurmd in a folder, on the loopback."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.processes import wait_until

_CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is requeued waits until its credential has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# As many processors as are written here, whatever the machine has.
SlurmdParameters=config_overrides
KillWait=5
MinJobAge=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4096
PartitionName=low Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes={host} PriorityTier=2 PreemptMode=OFF
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue", "sinfo")


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """Its slurm.conf; partitions low and, which preempts it, high; four processors."""
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(_CONF.format(host=host, ports=_free_ports(2), folder=folder))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    with ExitStack() as stack:
        files = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
        munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *options]
        stack.enter_context(_daemon(munged, folder))
        wait_until((folder / "munge.socket").exists, 10, "munged")
        stack.enter_context(_daemon(["slurmctld", "-D", "-f", str(conf)], folder))
        stack.enter_context(_daemon(["slurmd", "-D", "-f", str(conf), "-N", host], folder))
        wait_until(lambda: "idle" in asked(conf, "sinfo", "-h", "-o", "%T"), 30, "a node")
        try:
            yield conf
        finally:
            asked(conf, "scancel", "--state=PENDING")
            asked(conf, "scancel", "--user=root")
            wait_until(lambda: not asked(conf, "squeue", "-h"), 30, "the end of all jobs")


def asked(conf: Path, *command: str) -> str:
    """What one of its commands prints; nothing if it fails."""
    environment = os.environ | {"SLURM_CONF": str(conf)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout if not done.returncode else ""


@contextmanager
def _daemon(command: list[str], folder: Path) -> Iterator[None]:
    with open(folder / f"{command[0]}.out", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
