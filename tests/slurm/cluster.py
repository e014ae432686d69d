"""A real SLURM on this machine: munge, a controller and two nodes of two cores each, on loopback alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.commands import ROOT, environment

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "munged")
NODES = ("n1", "n2")
CPU_ONLY = ("--gres=none", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=30")  # of sbatch, before the script

_CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
ReturnToService=2
KillWait=10
SlurmdTimeout=30
MailProg=/bin/true
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """Submits to it and looks at its jobs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = environment() | {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHON": sys.executable}

    def run(self, *command: object) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: object, **settings: str) -> str:
        """Submit from the folder of the project; the job's number. settings: environment of the job."""
        before = dict(self.environment)
        self.environment |= settings
        try:
            return self.run("sbatch", "--parsable", *arguments)
        finally:
            self.environment = before

    def state(self, job: str) -> dict[str, str]:
        """What the controller says of a job."""
        text = self.run("scontrol", "show", "job", job)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def signal(self, job: str) -> None:
        """What `--signal=B:USR1@…` does when its time has come."""
        self.run("scancel", "--batch", "--signal=USR1", job)

    def hurry(self, job: str) -> None:
        """Start a requeued job at once, for which SLURM waits two minutes."""
        with contextlib.suppress(AssertionError):  # it may have started
            self.run("scontrol", "update", f"jobid={job}", "StartTime=now")

    def wait(
        self, job: str, until: Callable[[dict[str, str]], bool] | None = None, patience_s: float = 240
    ) -> dict[str, str]:
        """Wait until a job has ended, or for something else that its state says; returns that state."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        deadline, requeued_at = time.monotonic() + patience_s, None
        while True:
            state = self.state(job)
            if (until or (lambda found: found["JobState"] in ended))(state):
                return state
            waiting = state["JobState"] == "PENDING" and state.get("Restarts", "0") != "0"
            requeued_at = (requeued_at or time.monotonic()) if waiting else None
            if requeued_at and time.monotonic() > requeued_at + 3:  # credentials of the same second are refused
                self.hurry(job)
            assert time.monotonic() < deadline, f"job {job} is {state['JobState']} ({state.get('Reason')}) still"
            time.sleep(0.2)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start everything, wait until both nodes are idle, and end it all by process number."""
    ports = free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=8000"
        for name, port in zip(NODES, ports[1:], strict=True)
    )
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(
        _CONFIGURATION.format(controller=ports[0], folder=folder, nodes=nodes, names=",".join(NODES))
    )
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    files = {
        name: f"--{name}={folder}/munge.{name.removesuffix('-file')}" for name in ("pid-file", "log-file", "seed-file")
    }
    munged = [
        "munged",
        "--foreground",
        "--force",
        f"--key-file={key}",
        f"--socket={folder}/munge.socket",
        *files.values(),
    ]
    found = Cluster(folder)
    commands = [munged, ["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in NODES)]
    processes = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("a") as log:
                started = subprocess.Popen(command, env=found.environment, stdout=log, stderr=log)
            processes.append(started)
            if command is munged:
                _until(lambda: (folder / "munge.socket").exists(), "munged")
        _until(lambda: _idle(found) == len(NODES), "the nodes")
        yield found
    finally:
        with contextlib.suppress(AssertionError):
            found.run("scancel", "--user=root")
            _until(lambda: not found.run("squeue", "-h"), "the last jobs")
        for process in reversed(processes):
            process.terminate()
            process.wait(20)


def _idle(found: Cluster) -> int:
    with contextlib.suppress(AssertionError):
        return len(
            [line for line in found.run("sinfo", "-h", "-N", "-o", "%N %t").splitlines() if line.endswith(" idle")]
        )
    return 0


def _until(ready: Callable[[], bool], what: str, patience_s: float = 60) -> None:
    deadline = time.monotonic() + patience_s
    while not ready():
        assert time.monotonic() < deadline, f"{what} did not come in time"
        time.sleep(0.1)


def until(ready: Callable[[], object], patience_s: float = 90) -> None:
    """Wait for something that comes in time."""
    deadline = time.monotonic() + patience_s
    while not ready():
        assert time.monotonic() < deadline, "nothing came in time"
        time.sleep(0.005)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def why_not() -> str | None:
    """Why no cluster can be started here, None where one can."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        return f"SLURM is not installed here: {', '.join(missing)} missing (Debian: slurm-wlm, munge)"
    return None if os.getuid() == 0 else "starting a SLURM for tests needs root"
