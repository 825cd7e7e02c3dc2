"""The images of a folder tree, listed once: the listing of a large one is kept on disk while no folder changes."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ddpm.data.decode import SUFFIXES
from ddpm.errors import Refused

CACHE = Path(".cache")
_KEPT_FROM = 1000  # files; fewer are listed in no time
_SETTLED = 2 * 10**9  # ns; a younger time of change may stand for two changes


class Folder(NamedTuple):
    """The images of one folder."""

    prefix: str  # its path from the root, "" or with a separator at the end
    stamp: list[int]  # which folder it is (device, inode), and when an entry came or went (ns)
    names: list[str]


def listing(root: Path) -> list[str]:
    """The image files below root, relative to it, sorted; known by their suffix, hidden ones left out.

    A kept listing counts as long as every folder in it is the same and none had an entry added, removed or renamed;
    one that is corrupt or cannot be written is as good as none.

    Raises:
        Refused: if root is no folder, holds no images or cannot be read.
    """
    if not root.is_dir():
        raise Refused(f"there is no folder {root}: pass data.root=FOLDER, a folder of images")
    file = CACHE / f"listing-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.json"
    folders = _kept(file, root)
    if folders is None:
        began, folders = time.time_ns(), list(_walk(root))
        _keep(file, folders, began)
    files = sorted(prefix + name for prefix, _, names in folders for name in names)
    if not files:
        raise Refused(f"there are no images in {root} (looked for {' '.join(SUFFIXES)})")
    return files


def _walk(root: Path) -> Iterator[Folder]:
    """Folders below root and their images. Hidden ones are left out, and each is met once even if links lead to
    it twice."""
    ahead, met = [""], set()
    while ahead:
        prefix = ahead.pop()
        identity = os.path.realpath(root / prefix)
        if identity not in met:
            met.add(identity)
            below, folder = _scan(root, prefix)
            yield folder
            ahead += [f"{prefix}{name}{os.sep}" for name in sorted(below, reverse=True)]


def _scan(root: Path, prefix: str) -> tuple[list[str], Folder]:
    """The names of the folders in a folder, and its images."""
    try:
        stamp = _stamp(root / prefix)  # before its entries, so that a change in between shows
        with os.scandir(root / prefix) as entries:
            seen = [(entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise Refused(f"the folder {root / prefix} cannot be read: {error.strerror}") from error
    images = [name for name, is_folder in seen if not is_folder and name.lower().endswith(SUFFIXES)]
    return [name for name, is_folder in seen if is_folder], Folder(prefix, stamp, images)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say
        return False


def _stamp(folder: Path) -> list[int]:
    facts = folder.stat()
    return [facts.st_dev, facts.st_ino, facts.st_mtime_ns]


def _kept(file: Path, root: Path) -> list[Folder] | None:
    """The listing in the file, if it still holds."""
    try:
        digest, _, body = file.read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return None
        suffixes, told = json.loads(body)
        folders = [Folder(*entry) for entry in told]
        holds = tuple(suffixes) == SUFFIXES and all(_holds(folder, root) for folder in folders)
    except (OSError, ValueError, TypeError):  # missing, damaged, or a folder is gone
        return None
    return folders if holds else None


def _holds(folder: Folder, root: Path) -> bool:
    """Nothing came or went, and no name leads elsewhere."""
    leads_out = os.pardir in Path(folder.prefix).parts or Path(folder.prefix).is_absolute()
    if leads_out or any(os.sep in name for name in folder.names):
        return False
    return _stamp(root / folder.prefix) == folder.stamp


def _keep(file: Path, folders: list[Folder], began: int) -> None:
    """Write the listing, whole or not at all, if it is worth it and every folder had settled before it was listed."""
    if sum(len(folder.names) for folder in folders) < _KEPT_FROM:
        return
    if any(folder.stamp[-1] > began - _SETTLED for folder in folders):
        return
    body = json.dumps([SUFFIXES, folders]).encode()
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    with suppress(OSError):  # it is only for speed
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        part.replace(file)
