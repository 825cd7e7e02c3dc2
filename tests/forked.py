"""The verbs as a user runs them, in processes that are forked from one which has imported everything: a start costs
a second, so that a run can be killed again and again."""

import multiprocessing
import os
import pkgutil
import resource
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from processes import ROOT

from ddpm.parent import STARTED_BY

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["ddpm.cli", "ddpm.training", "ddpm.data.digits", "ddpm.drawing", "hydra", "sklearn.datasets", "wandb"]
)


@dataclass(frozen=True)
class Moment:
    """When a process kills itself: before the n-th call of a function, or after it has returned.

    Of the writing of a file: when it would grow beyond so many bytes. With `room` it goes on to live, on a disk that
    has no room for a file of more bytes. Another signal than SIGKILL is for the processes that
    it has started too, as a cluster sends it.
    """

    function: str = ""  # its full name, where it is looked up
    n: int = 1
    after: bool = False
    size: int = 0
    room: int = 0
    number: int = signal.SIGKILL

    def arm(self) -> None:
        if self.size:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))
            return
        owner, _, name = self.function.rpartition(".")
        setattr(pkgutil.resolve_name(owner), name, self.deadly(pkgutil.resolve_name(self.function)))

    def deadly(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, until its n-th call."""
        left = self.n

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and not self.after:
                self.come()
            result = function(*args, **kwargs)
            if left == 0 and self.after:
                self.come()
            return result

        return call

    def come(self) -> None:
        if self.room:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.room, self.room))
        else:
            os.kill(os.getpid() if self.number == signal.SIGKILL else 0, self.number)  # 0: those that read images too


@dataclass(frozen=True)
class Job:
    """A running command: one process a rank, each at the head of a group of its own."""

    ranks: Sequence[BaseProcess]
    told: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to every process of every rank, as a cluster does."""
        for rank in self.ranks:
            with suppress(ProcessLookupError):
                os.killpg(rank.pid, number)

    def wait(self, seconds: float = 120) -> list[int]:
        """How each rank ended. Nothing stays, also where the time is up."""
        end = time.monotonic() + seconds
        try:
            for rank in self.ranks:
                rank.join(max(0.0, end - time.monotonic()))
            return [rank.exitcode for rank in self.ranks]
        finally:
            self.kill()

    def done(self) -> list[int]:
        """Wait; asserts that it went well."""
        codes = self.wait()
        assert set(codes) == {0}, (codes, self.told.read_text())
        return codes


def start(
    cwd: Path,
    *arguments: str,
    verb: str = "train",
    ranks: int = 1,
    moment: Moment | None = None,
    told: Path | None = None,
    **environment: str,
) -> Job:
    """Start a verb in a folder; its moment to die is that of rank 0. What it says goes into a file."""
    told = told or Path(tempfile.mkstemp(suffix=".txt", dir=cwd)[1])
    told.touch()
    command = [str(ROOT / f"{verb}.py"), *arguments]
    processes = []
    for rank, launched in enumerate(_launched(ranks)):
        asked = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "COLUMNS": "200"} | launched | environment
        process = _context.Process(target=_run, args=(cwd, told, command, asked, moment if rank == 0 else None))
        process.start()
        processes.append(process)
    return Job(processes, told)


def _launched(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each rank."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0"}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _run(cwd: Path, told: Path, command: list[str], environment: dict[str, str], moment: Moment | None) -> None:
    import torch

    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore it
    os.chdir(cwd)
    os.environ.pop(STARTED_BY, None)  # of a verb that a test has run in its own process
    os.environ.update(environment)
    file = os.open(told, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as where a user starts it
    sys.argv = command
    if moment is not None:
        moment.arm()
    runpy.run_path(command[0], run_name="__main__")


def wait_for(what: Callable[[], bool], job: Job, seconds: float = 60) -> bool:
    """Until it is so; False if the job ended before."""
    end = time.monotonic() + seconds
    while not what():
        if any(rank.exitcode is not None for rank in job.ranks):
            return False
        assert time.monotonic() < end, job.told.read_text()
        time.sleep(0.003)
    return True
