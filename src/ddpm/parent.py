"""A process that another one has started for its work ends with it: no rank and no job is left behind."""

import os
import signal
import sys
import time
from threading import Event, Thread

STARTED_BY = "DDPM_STARTED_BY"
_GRACE = 10.0  # seconds between asking this process to end and ending it
_let_go = Event()


def lead() -> None:
    """Let the ranks that this process starts know it."""
    os.environ[STARTED_BY] = str(os.getpid())


def follow() -> None:
    """For a rank that Lightning or torchrun has started: do not live longer than who did."""
    end_with(int(os.environ.get(STARTED_BY, os.getppid())))


def end_with(parent: int) -> None:
    """End this process when its parent has ended: ask it to, and insist."""
    Thread(target=_end_with, args=(parent,), daemon=True, name="end-with-parent").start()


def hold() -> None:
    """The common work begins."""
    _let_go.clear()


def let_go() -> None:
    """The common work is done: from here on each process ends when it likes."""
    _let_go.set()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    if _let_go.is_set():
        return
    print(f"process {parent} has ended, so this one ({os.getpid()}), which it started, ends too.", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os.kill(os.getpid(), signal.SIGKILL)
