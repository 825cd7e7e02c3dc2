"""The signals that ask a run to end: SIGTERM, and SIGUSR1, by which SLURM tells that a job's time is almost up.

Before its first step a run ends at once. From then on a handler only takes note, and the run ends where it can be gone
on with exactly (`ddpm.callbacks.stop`).
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ASKING = (signal.SIGTERM, signal.SIGUSR1)  # the later one counts where both came
_received: set[int] = set()


class Stopped(SystemExit):
    """A run that was asked to end, whose steps are saved; its status is that of a process which the signal ended."""

    def __init__(self, by: signal.Signals) -> None:
        super().__init__(128 + by)
        self.by = by

    def __reduce__(self) -> tuple[type["Stopped"], tuple[signal.Signals]]:
        return Stopped, (self.by,)  # it may have to reach the process of a sweep


@contextmanager
def ending(*numbers: signal.Signals) -> Iterator[None]:
    """Within it these signals raise Stopped, for work whose finished parts are on the disk; afterwards they do again
    what they did before. Lightning, which in a job of SLURM would answer SIGUSR1 by a checkpoint of its own and go on,
    leaves a handler that is there alone."""
    before = {number: signal.getsignal(number) for number in ASKING}
    for number in numbers:
        signal.signal(number, _end)
    try:
        yield
    finally:
        _received.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def heed() -> None:
    """Only take note of the signals from now on."""
    for number in ASKING:
        signal.signal(number, _note)


def urgency() -> int:
    """0, or 1 + the index in ASKING of the signal that came."""
    return max((1 + ASKING.index(signal.Signals(number)) for number in _received), default=0)


def _note(number: int, _: Any) -> None:
    _received.add(number)


def _end(number: int, _: Any) -> None:
    heed()  # once is enough
    _received.add(number)  # for the first step, should a library have caught what is raised here
    raise Stopped(signal.Signals(number))


def outlived(_: int) -> None:
    """For a process that reads images: a cluster signals every process of a job, but the run that is to end after
    its step still needs its images. The first SIGTERM passes; a second one, with which Python ends what hangs, does
    not."""
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def farewell(end: Stopped, first: bool, kept: str) -> None:
    """What the first rank says and does last: a SLURM job whose time is up is queued again, to go on by itself.

    `kept` says what is on the disk, and how to go on from it. The job is not queued after SIGTERM, with which a user
    cancels it, and SLURM ends one that it queues again by itself.
    """
    if not first:
        if os.environ.get("GROUP_RANK", "0") == "0":
            end.code = 0  # else a launcher would kill rank 0 at its last words
        return  # a node without rank 0 has not succeeded, and is to be started again with it
    told = f"stopped by {end.by.name}; {kept}."
    job = _slurm_job()
    if end.by == signal.SIGUSR1 and job is not None:
        told += f" {_requeued(job)}"
    print(told, file=sys.stderr)


def _slurm_job() -> str | None:
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _requeued(job: str) -> str:
    """Ask SLURM to queue the job again, and say what came of it."""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"SLURM job {job} could not be queued again: scontrol: {error.strerror}."
    return (
        f"SLURM job {job} could not be queued again: {done.stderr.strip()}"
        if done.returncode
        else f"SLURM job {job} is queued again."
    )
