"""Commands start in a process that has imported already what they import: 0.1 s instead of 8 s for every rank.

A command is a process of its own all the same, with its arguments, environment, folder and output, and so is each rank.
Ranks meet as under torchrun, whose environment they are given. `Starter` is the tests' side; run as a script, this file
is the process that forks. Tests of torchrun itself, and of kills while a command imports, start Python instead.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

IMPORTED = (
    *("torch", "torch._dynamo", "torch.distributed", "torch.nn.parallel", "pandas", "pyarrow.parquet", "zarr"),
    *("astropy.io.fits", "matplotlib.figure", "rich.console", "tyro", "harps_dist.training.loop"),
    *("harps_dist.evaluation.evaluate", "harps_dist.promotion.compare", "harps_dist.inference.predict"),
    *("preprocessing.ingest", "preprocessing.pack", "preprocessing.simulator.demo_files"),
)
LARGEST = 2**20  # bytes of a request: arguments and environment
TORCHRUN = ["-m", "torch.distributed.run", "--standalone"]
PATIENCE_S = 30.0  # that ranks have to end in after one of them failed


class Started:
    """A command that was started, with what the tests use of `subprocess.Popen`."""

    def __init__(self, reply: int):
        self._reply, self._code = reply, None
        self.pid = int(self._line())

    def poll(self) -> int | None:
        if self._code is None and select.select([self._reply], [], [], 0)[0]:
            return self.wait()
        return self._code

    def wait(self) -> int:
        if self._code is None:
            self._code = int(self._line())
            os.close(self._reply)
        return self._code

    def _line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self._reply, 1)
            assert byte, "the process that starts commands has died"
            line += byte
        return line.decode()


class Starter:
    """The process that starts commands; it ends with the one that made it."""

    def __init__(self, environment: dict[str, str]):
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LARGEST)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
            command = [sys.executable, str(Path(__file__)), str(theirs.fileno())]
            self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])

    def start(self, arguments: Sequence[str], cwd: Path, environment: dict[str, str], output: int) -> Started:
        """Start what `can_start`. output: descriptor of what it prints."""
        reply, theirs = os.pipe()
        request = json.dumps({"arguments": list(arguments)[1:], "cwd": str(cwd), "environment": environment}).encode()
        socket.send_fds(self._socket, [request], [output, theirs])
        os.close(theirs)
        return Started(reply)


def can_start(arguments: Sequence[str]) -> bool:
    """Whether a command is a script or `-m harps_dist` for the interpreter that runs the tests, on any ranks."""
    python, *rest = arguments
    rest = rest[len(TORCHRUN) + 1 :] if rest[: len(TORCHRUN)] == TORCHRUN else rest
    return python == sys.executable and bool(rest) and (rest[0].endswith(".py") or rest[:2] == ["-m", "harps_dist"])


def serve(requests: socket.socket) -> None:
    """Start what is asked for, until nobody can ask any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for attendants
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, LARGEST, 2)
        if not request:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            attend(json.loads(request), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def attend(request: dict, output: int, reply: int) -> None:
    """Start one command, say its process id, wait for it and say its exit code, as `subprocess` has it."""
    pid = os.fork()
    if pid == 0:
        os.close(reply)
        become(request, output)
    os.write(reply, f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    os.write(reply, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(request: dict, output: int) -> None:
    """Turn this process into the command."""
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    words = request["arguments"]
    if words[: len(TORCHRUN)] == TORCHRUN:
        ranks, script = int(words[len(TORCHRUN)].partition("=")[2]), words[len(TORCHRUN) + 1 :]
        os._exit(run_ranks(script, ranks))
    run_script(words)


def run_ranks(script: list[str], ranks: int) -> int:
    """Run a script on so many ranks. Where one fails, the others are ended, and what it said is repeated."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    folder = Path(tempfile.mkdtemp(prefix="ranks-"))
    errors: dict[int, Path] = {}
    for rank in range(ranks):
        error = folder / f"{rank}.json"
        pid = os.fork()
        if pid == 0:
            os.setsid()
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_ERROR_FILE": str(error)}
            os.environ.update(shared | own)
            run_script(script)
        errors[pid] = error

    def tell(number: int, _: object = None) -> None:
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    running, code = set(errors), 0
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, tell)
    signal.signal(signal.SIGALRM, lambda *_: tell(signal.SIGKILL))
    while running:
        pid, status = os.wait()
        running.discard(pid)
        if status and not code:
            code = 1
            if errors[pid].is_file():
                print(json.loads(errors[pid].read_text())["message"]["message"], file=sys.stderr, flush=True)
            tell(signal.SIGTERM)
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    return code


def run_script(words: list[str]) -> None:
    """Run what `python SCRIPT …` or `python -m MODULE …` would, and end this process with its exit code."""
    is_module = words[0] == "-m"
    sys.argv = words[is_module:]
    sys.path[0] = os.getcwd() if is_module else str(Path(words[0]).resolve().parent)
    code: object = 0
    try:
        if is_module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    atexit._run_exitfuncs()
    with suppress(BrokenPipeError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        for name in IMPORTED:
            importlib.import_module(name)
        serve(asked)
    os._exit(0)
