"""How a checkpoint reaches the disk."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from ddpm import strangers
from ddpm.errors import Failed
from ddpm.whole import whole

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a user's share of it, a file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to the disk, then renames: there is never half a checkpoint.

    Where there is no room it leaves what was there as it was, and says so in `lacks_room`: Lightning asks rank 0
    alone to write, and the other ranks wait for it.
    """

    lacks_room: str | None = None  # why the last save came to nothing

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        target = Path(path)
        self.lacks_room = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole(target) as part:
                _write(checkpoint, part)
            synchronise(target.parent)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.lacks_room = f"{target} cannot be written ({error.strerror})"

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """On the CPU, of which nothing is run. Raises ValueError for a file that holds anything else."""
        content: dict[str, Any] = strangers.content(Path(path))
        return content


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # torch's own, when its last bytes could not be written either
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


@contextmanager
def room_in(folder: Path, remedy: str) -> Iterator[None]:
    """Within it, what finds no room on the disk raises Failed: make some, and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise Failed(f"there is no room left in {folder} ({error.strerror}): make some, {remedy}.") from error


def remove(path: Path) -> None:
    """Delete a checkpoint, if it is there: a file, or the folder of trainer=fsdp."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def take_name(part: Path, path: Path) -> None:
    """Have a new folder take the name of an old one, which is whole under one name or the other until it has."""
    aside = path.with_name(f"{path.name}.old")
    if path.exists():
        remove(aside)
        path.replace(aside)
    part.replace(path)
    remove(aside)


def give_back_names(folder: Path) -> None:
    """After a kill in between the old one has its name again."""
    for aside in folder.glob("*.old"):
        path = aside.with_suffix("")
        remove(aside) if path.exists() else aside.replace(path)


def synchronise(path: Path) -> None:
    """Have a file, or the names in a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
