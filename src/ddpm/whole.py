"""Files that are there as a whole or not at all, also after a kill and after a loss of power."""

import csv
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what the file is to hold: it takes the name when it is finished and has reached the disk. Where
    an exception comes in between, nothing of it is left."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)  # it may be what has filled the disk
        raise


def write_csv(rows: Iterable[Iterable[object]], path: Path) -> Path:
    """Write rows, of which the first names the columns."""
    with whole(path) as part, part.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path


def is_there(path: Path) -> bool:
    """Is it a file with something in it? A loss of power may leave names of empty files."""
    return path.is_file() and path.stat().st_size > 0
