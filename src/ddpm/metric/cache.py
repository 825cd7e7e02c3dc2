"""Files that several jobs share: made once, written whole or not at all, made again where corrupt."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock
from torch import Tensor

from ddpm.errors import Refused
from ddpm.whole import whole

_log = logging.getLogger(__name__)
T = TypeVar("T")
_OTHER_CACHE = "choose another by the option cache=FOLDER of the metric or the sigma"


def fingerprint(tensors: Mapping[str, Tensor], *options: object) -> str:
    """16 hexadecimal digits of the names, types, shapes and contents of tensors, and of plain options."""
    told = hashlib.sha256(repr(options).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        told.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        told.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return told.hexdigest()[:16]


def cached(
    path: Path,
    *,
    read: Callable[[Path], T],
    make: Callable[[], T],
    write: Callable[[T, Path], None],
    remedy: str = _OTHER_CACHE,
) -> T:
    """What the file holds; where it is missing or corrupt, make it and write it.

    One process makes it while the others that want the same file wait, and then read it.

    Raises:
        Refused: ending in the remedy, if the folder cannot be written.
    """
    with _locked(path, remedy):
        if path.exists():
            try:
                return read(path)
            except Exception as fault:  # in whatever way it fails, this is not the file that was written
                _log.warning("%s is corrupt (%s: %s) and is made again", path, type(fault).__name__, fault)
        value = make()
        with writable(path.parent, remedy), whole(path) as part:
            write(value, part)
        return value


@contextmanager
def _locked(path: Path, remedy: str) -> Iterator[None]:
    lock = FileLock(path.with_name(path.name + ".lock"))
    with writable(path.parent, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writable(folder: Path, remedy: str = _OTHER_CACHE) -> Iterator[None]:
    """Within it, files are written to the folder. Raises Refused, ending in the remedy, if they cannot be."""
    try:
        yield
    except OSError as error:
        raise Refused(f"the folder {folder} cannot be written ({error.strerror or error}): {remedy}") from error
