"""Processes that read images: what is said when one of them dies, wherever training is at that moment."""

import signal
import threading
from collections.abc import Iterator
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import TypeVar

from torch.utils.data import DataLoader

from ddpm.errors import Failed

T = TypeVar("T")
_workers: set[BaseProcess] = set()  # of this process, for all its loaders


class Loader(DataLoader[T]):
    """A DataLoader that ends in one sentence, and at once, if a worker dies.

    PyTorch learns of it in two ways, from the signal, which may come in the middle of anything, and while it waits
    for a batch; both raise Failed here. The other workers go at once: one that waits for a lock which the dead one
    held would never end, and this process would wait for it.
    """

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        if self.num_workers == 0:
            return iter(super().__iter__())
        before = set(active_children())
        batches = super().__iter__()
        now = set(active_children())
        _workers.intersection_update(now)
        _workers.update(now - before)
        _tell_plainly()
        return _told(batches)


def _told(batches: Iterator[T]) -> Iterator[T]:
    try:
        yield from batches
    except RuntimeError as error:
        _refuse_death(error)
        raise


def _refuse_death(error: RuntimeError) -> None:
    """Ends the other workers and raises Failed, if the error is of a worker's death."""
    reason = " ".join(str(error).split()).rstrip(".")
    if reason.startswith("DataLoader worker"):
        _end_all()
        raise Failed(
            f"a process that reads images died ({reason}), as happens when memory runs short: choose fewer "
            "data.num_workers (0 reads without), and start the command again, training with resume=auto"
        ) from error


def _end_all() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # their deaths are no news
    for worker in _workers:
        worker.kill()


def _tell_plainly() -> None:
    """Have what PyTorch raises when the signal comes say so."""
    handler = signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is threading.main_thread() and not isinstance(handler, _Plain) and callable(handler):
        signal.signal(signal.SIGCHLD, _Plain(handler))


class _Plain:
    """A signal's handler that lets a worker's death be told plainly."""

    def __init__(self, handler: object) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.handler(number, frame)  # type: ignore[operator]
        except RuntimeError as error:
            _refuse_death(error)
            raise
