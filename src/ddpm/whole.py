"""Files that are there as a whole or not at all, also after a kill and after a loss of power."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what the file is to hold: it takes the name when it is finished and has reached the disk."""
    part = path.with_name(path.name + ".part")
    yield part
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def is_there(path: Path) -> bool:
    """Is it a file with something in it? A loss of power may leave names of empty files."""
    return path.is_file() and path.stat().st_size > 0
