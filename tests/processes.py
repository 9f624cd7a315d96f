"""Programs of this repository as processes of their own, forked from a process that has loaded what they load.

Loading torch and Lightning takes several seconds, most of what a small run takes. A program that is started here has
its own arguments, folder, environment, signals, output and exit as any other; but environment variables that libraries
read while they are loaded, such as OMP_NUM_THREADS, are those of the process that runs the tests. What starts a program
as a shell does is `subprocess`, of which each program has a test, too.
"""

import atexit
import gc
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[1]
LOADED = (
    "kd.app.build",
    "kd.app.teacher",
    "kd.app.train",
    "kd.report.figures",
    "kd.sweeps.cohort",
    "kd.training.loggers",
    "tensorboard.summary.writer.event_file_writer",
    "torch._functorch.vmap",
)
"""What most programs load."""


class Process:
    """A program that was started; the methods are those of `subprocess.Popen`."""

    def __init__(self, command: list[Any], pid: int, output: IO[str], errors: IO[str] | None) -> None:
        self.args, self.pid, self.output, self.errors = command, pid, output, errors
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or minus the signal that ended the process; None while it runs."""
        if self.returncode is None:
            self.returncode = request(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait, and return what was printed and the errors; if those were merged, the latter is empty."""
        self.wait(timeout)
        printed = [""] * 2
        for place, file in enumerate(file for file in (self.output, self.errors) if file is not None):
            with file:
                file.seek(0)
                printed[place] = file.read()
        return printed[0], printed[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def start(
    program: Path,
    *arguments: str | Path,
    cwd: Path,
    env: dict[str, str] | None = None,
    merged: bool = False,
    largest_file: int | None = None,
) -> Process:
    """Start a Python program in a session of its own, with Python's own handling of Ctrl-C.

    Args:
        program: the file.
        arguments: the command line.
        cwd: the folder to start it in.
        env: all its environment variables; None for those of this process.
        merged: whether its errors belong to its output.
        largest_file: in bytes, RLIMIT_FSIZE.
    """
    output = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed by `communicate`
    errors = None if merged else tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
    pid = request(
        [output, errors or output],
        argv=[str(program), *map(str, arguments)],
        cwd=str(cwd),
        env=dict(os.environ) if env is None else env,
        largest_file=largest_file,
    )
    return Process([sys.executable, program, *arguments], pid, output, errors)


def run(
    program: Path, *arguments: str | Path, timeout: float = 300, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a Python program, as `start` does, to its end."""
    process = start(program, *arguments, **options)
    printed, errors = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.wait(), printed, errors)


def request(files: Sequence[IO[str]] = (), **message: Any) -> Any:
    """Send a message to the process that forks, and return its answer."""
    channel = forking()
    socket.send_fds(channel, [json.dumps(message).encode()], [file.fileno() for file in files])
    answer = channel.recv(100)
    if not answer:
        raise ChildProcessError("the process that starts programs has ended")
    return json.loads(answer)


@cache
def forking() -> socket.socket:
    """Start the process that forks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)  # before the other
    return ours


def serve(channel: socket.socket) -> None:
    """Fork a process for each message that starts one; returns in the new process, which is to become the program."""
    for name in LOADED:
        __import__(name)
    from tests.settings import keep_settings

    keep_settings()
    warm_up()
    gc.freeze()  # so that no collection in a forked process touches, and thus copies, all that was loaded
    while True:
        text, files, _, _ = socket.recv_fds(channel, 1 << 20, 2)
        if not text:
            os._exit(0)
        message = json.loads(text)
        if "poll" in message:
            pid, status = os.waitpid(message["poll"], os.WNOHANG)
            channel.send(json.dumps(os.waitstatus_to_exitcode(status) if pid else None).encode())
            continue
        pid = os.fork()
        if pid == 0:
            channel.close()
            become(message, files)
            return
        for file in files:
            os.close(file)
        channel.send(json.dumps(pid).encode())


def warm_up() -> None:
    """Compose a configuration and take a training step: what they create at their first use is then there, too."""
    import torch

    from kd.app.compose import compose
    from kd.models.cnn import CNN

    compose(["data=digits"])
    net = CNN(2, 10, 16, "relu", 0.0, 0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    with torch.autocast("cpu"):
        net(torch.zeros(2, 3, 16, 16)).logits.sum().backward()
    optimizer.step()


def become(message: dict[str, Any], files: list[int]) -> None:
    """Give this process the output, arguments, folder and environment of the program."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for standard, file in zip((1, 2), files, strict=True):
        os.dup2(file, standard)
        os.close(file)
    os.chdir(message["cwd"])
    os.environ.clear()
    os.environ.update(message["env"])
    if message["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (message["largest_file"],) * 2)
    sys.argv[:] = message["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)


def end(code: object) -> NoReturn:
    """End the process as the interpreter does, but without tearing down all that was loaded, which takes a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        end(stop.code)
    end(0)
