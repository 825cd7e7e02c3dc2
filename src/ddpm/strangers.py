"""Files that anybody may have written, opened as data: nothing in them is run, and what they unpack to is bounded.

Every reader raises ValueError where a file is anything else; its message is the reason, and follows the file's name. It
raises OSError where the disk or the memory fails, and the file may be whole.
"""

import errno
import io
import os
import pickletools
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

_STRUCTURE = 8 * 2**20  # bytes of a pickle without its tensors; that of a network of 1,000 tensors has some 100,000
_PARTS, _DEPTH = 10**6, 32  # of the containers in a file
_PROTOCOL = 2  # of torch.save's pickles
_ZIP = b"PK\x03\x04"
_OF_FILES = (None, errno.EINVAL, errno.ENOENT, errno.EISDIR)  # errors of a file that points to where it has nothing
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_NAMES = {  # all that a file of tensors has to name; torch's own list has bytearray too, which takes any length
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {kind}Storage" for kind in _STORAGES),
}


def content(path: Path, of_others: bool = False) -> Any:
    """What `torch.save` has written, in plain containers: numbers, words and dense tensors on the CPU, which together
    have no more numbers than the file.

    of_others: it may be of the format that came before zip files, and its tensors of any stride, so that who asks has
        to compare their shapes with those that are expected.
    """
    try:
        _scan(path, of_others)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except _Foreign:
        raise
    except Exception as fault:  # whatever a file that anybody may have written makes the reader raise
        if lack := unread(fault):
            raise OSError(lack.errno, lack.strerror, str(path)) from fault
        raise ValueError("is damaged") from fault
    return _Plain(None if of_others else path.stat().st_size)(loaded)


def unread(fault: Exception) -> OSError | None:
    """What the disk or the memory lacked, if it was that which a reader met with: the file may be whole."""
    of_torch = isinstance(fault, RuntimeError) and "DefaultCPUAllocator" in str(fault)  # it has no class of its own
    if isinstance(fault, MemoryError) or of_torch:
        return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    return fault if isinstance(fault, OSError) and fault.errno not in _OF_FILES else None


def numbers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of each array in an .npz, of which no number is read yet."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy"): _shape_and_type(archive, name) for name in archive.namelist()}
    except (_Foreign, OSError):
        raise
    except Exception as fault:  # as above
        raise ValueError("is damaged or no .npz of numbers") from fault


class _Foreign(ValueError):
    """The file is whole, and not what it should be."""


def _scan(path: Path, legacy: bool) -> None:
    """Refuse what would take more memory than the file has bytes, and every name but those of tensors."""
    with path.open("rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP
        if not (is_zip or legacy):
            raise ValueError("no zip file")
        pickles = io.BytesIO(_pickle_of(path) if is_zip else _begin(file))
    for _ in range(1 if is_zip else 5):  # magic number, version, system, content, keys
        for opcode, argument, _position in pickletools.genops(pickles):
            if max(opcode.proto, int(argument or 0) if opcode.name == "PROTO" else 0) > _PROTOCOL:
                raise _Foreign("is pickled as no file of tensors is")
            if opcode.name == "GLOBAL" and argument not in _NAMES:
                raise _Foreign(f"names {argument!r}, which no file of tensors does: do not trust it")


def _begin(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(_STRUCTURE)


def _pickle_of(path: Path) -> bytes:
    """The structure in a zip file, whose records are as large as they are on the disk.

    Python's reader and torch's agree on what the records are where each name is there once, whatever its case, and
    nothing stands before the first one.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        names = Counter(record.filename.lower() for record in records)
        if max(names.values()) > 1 or min(record.header_offset for record in records) != 0:
            raise _Foreign("has records that readers may take for one another")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise _Foreign("unpacks to more bytes than it has")
        if archive.testzip() is not None:  # PyTorch reads over a checksum that does not agree
            raise ValueError("not what was written")
        [structure] = [record for record in records if record.filename.endswith(".pkl")]
        if structure.file_size > _STRUCTURE:
            raise _Foreign("is nested without end")
        return archive.read(structure)


class _Plain:
    """Loaded containers as plain ones. A file of a few bytes may hold lists whose parts are ever the same lists, which
    to walk takes years, and any number of tensors of the same numbers; so parts and numbers are counted."""

    def __init__(self, size: int | None) -> None:
        self.left, self.bytes = _PARTS, size

    def __call__(self, value: Any, depth: int = 0) -> Any:
        self.left -= 1
        if self.left < 0 or depth > _DEPTH:
            raise _Foreign("is nested without end")
        if isinstance(value, dict):  # by dict's own method: an OrderedDict from a file may hide its own
            return {self(key, depth + 1): self(below, depth + 1) for key, below in dict.items(value)}
        if type(value) in (list, tuple):
            return type(value)(self(below, depth + 1) for below in value)
        if isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu":
            return self.counted(value)
        if value is None or type(value) in (str, int, float, bool):
            return value
        raise _Foreign(f"holds a {type(value).__name__}, which no file of tensors does")

    def counted(self, value: Tensor) -> Tensor:
        if self.bytes is None:
            return value
        self.bytes -= value.nbytes
        if self.bytes < 0 or value.nbytes > value.untyped_storage().nbytes():  # a stride of 0 makes any shape of one
            raise _Foreign("names more numbers than it has")
        return value


def _shape_and_type(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    shape, kind, _, _ = header(archive, name)
    if kind.hasobject:
        raise _Foreign("holds objects, which allow_pickle=False keeps from being made")
    return shape, kind


def header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Of an array in an .npz: its shape and type, whether its first index runs fastest, and after how many bytes of its
    file the numbers begin. Raises whatever its reader does."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(name) as member:
        shape, is_fortran, kind = readers[np.lib.format.read_magic(member)](member)
        return shape, kind, is_fortran, member.tell()
