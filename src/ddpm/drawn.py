"""A drawing on the disk: written batch by batch as it is made, so that one that was killed goes on.

A folder holds the images of one drawing, told apart by its protocol in `drawing.json`. A batch is there as a
whole or is made again as a whole: batches are fixed ranges of indices, so for one batch size the files are byte
for byte those of an undisturbed drawing, whichever ranks made them.
"""

import json
import math
import re
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor

from ddpm import strangers, texts
from ddpm.errors import Refused
from ddpm.images import write_png
from ddpm.whole import is_there, whole

PROTOCOL = "drawing.json"
_NUMBER = re.compile(r"\d{6,9}", re.ASCII)  # the name of a picture
_ENDS = re.compile(r"(\d{6,9})-(\d{6,9})", re.ASCII)  # the name of a shard
_LARGEST = 10**6  # images of a shard


def numbered(out: Path, index: int) -> Path:
    """Where image number `index` goes: `NNNNNN.png`."""
    return out / f"{index:06d}.png"


class Drawn(ABC):
    """Images 0, ..., count - 1 in a folder, uint8."""

    def __init__(self, out: Path, count: int) -> None:
        self.out, self.count = out, count

    def missing(self, batches: Iterable[Tensor]) -> list[Tensor]:
        """The batches of indices that are not wholly there."""
        return [batch for batch in batches if not self.has(batch)]

    @abstractmethod
    def has(self, indices: Tensor) -> bool:
        """Are all of this batch there?"""

    @abstractmethod
    def write(self, indices: Tensor, images: Tensor) -> None:
        """Write a batch (b, c, h, w)."""

    @abstractmethod
    def read(self, indices: Tensor) -> Tensor:
        """A batch that is there: (b, c, h, w)."""

    @abstractmethod
    def indices(self) -> set[int]:
        """Which images are there."""


class Pictures(Drawn):
    """Image number i is `NNNNNN.png`."""

    def has(self, indices: Tensor) -> bool:
        return all(is_there(numbered(self.out, index)) for index in indices.tolist())

    def write(self, indices: Tensor, images: Tensor) -> None:
        for index, image in zip(indices.tolist(), images, strict=True):
            write_png(image, numbered(self.out, index))

    def read(self, indices: Tensor) -> Tensor:
        images = [_pixels(numbered(self.out, index)) for index in indices.tolist()]
        if any(image.shape != images[0].shape for image in images):
            raise Refused(f"the images in {self.out} are not of one size; take another out=FOLDER, or delete it.")
        return torch.stack(images)

    def indices(self) -> set[int]:
        paths = (path for path in self.out.glob("*.png") if _NUMBER.fullmatch(path.stem))
        return {int(path.stem) for path in paths if is_there(path)}


class Shards(Drawn):
    """A batch is `shards/FIRST-LAST.npz`."""

    def path(self, indices: Tensor) -> Path:
        return self.out / "shards" / f"{int(indices[0]):06d}-{int(indices[-1]):06d}.npz"

    def has(self, indices: Tensor) -> bool:
        return is_there(self.path(indices))

    def write(self, indices: Tensor, images: Tensor) -> None:
        self.path(indices).parent.mkdir(exist_ok=True)
        write_npz(self.path(indices), images.shape, [images])

    def read(self, indices: Tensor) -> Tensor:
        path = self.path(indices)
        if _count(path) != len(indices):
            raise Refused(f"{path} does not hold {len(indices)} images; delete it, and it is made again.")
        with np.load(path, allow_pickle=False) as kept:
            return torch.from_numpy(kept["arr_0"]).permute(0, 3, 1, 2)

    def indices(self) -> set[int]:
        names = [_ENDS.fullmatch(path.stem) for path in self.out.glob("shards/*.npz") if is_there(path)]
        ends = [(int(name[1]), int(name[2])) for name in names if name]
        return {index for first, last in ends for index in range(first, min(last, first + _LARGEST) + 1)}


@contextmanager
def alone(out: Path, first: bool) -> Iterator[None]:
    """Within it no other command draws into the folder; the first rank sees to it. Raises Refused if one does."""
    if not first:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Refused(f"another process draws into {out}; wait for it, or take another out=FOLDER.") from error
    try:
        yield
    finally:
        lock.release()


def open_drawing(drawn: Drawn, protocol: Mapping[str, Any], write: bool) -> None:
    """Claim the folder for a drawing of this protocol, or go on with it; one rank writes.

    Raises Refused for a folder that holds another drawing, or more images than are asked for.
    """
    told, file = json.loads(json.dumps(protocol)), drawn.out / PROTOCOL
    there = drawn.indices()
    before = _noted(file) if file.is_file() else (None if there else told)
    if before != told:
        changed = [key for key in told if isinstance(before, dict) and before.get(key) != told[key]]
        what = f"with another {', '.join(changed)}" if changed else "of unknown origin"
        raise Refused(f"{drawn.out} holds images {what}; take another out=FOLDER, or delete it.")
    if there and max(there) >= drawn.count:
        raise Refused(
            f"{drawn.out} holds more than num_images={drawn.count} images of this drawing; take another out=FOLDER."
        )
    if write:
        drawn.out.mkdir(parents=True, exist_ok=True)
        with whole(file) as part:
            part.write_text(json.dumps(told, indent=2) + "\n")


def finished(path: Path, count: int) -> bool:
    """Is there an .npz of all images already? Raises Refused if it is one of another number of them."""
    if not is_there(path):
        return False
    if (there := _count(path)) != count:
        raise Refused(f"{path} holds {there} images, not num_images={count}; take another out=FOLDER, or delete it.")
    return True


def pictures_of(folder: Path) -> Pictures:
    """The images of a drawing that is finished, whatever lies beside them. Raises Refused for one that is not."""
    there = Pictures(folder, 0).indices()
    if not there or there != set(range(len(there))):
        raise Refused(
            f"the drawing in {folder} is not finished, or not as PNG; start its sample.py again, with png=true."
        )
    return Pictures(folder, len(there))


def _noted(file: Path) -> Any:
    try:
        return texts.told(file)
    except ValueError:
        return None


def _count(path: Path) -> int:
    """How many images an .npz holds, uint8 (n, h, w, c). Raises Refused for anything else."""
    try:
        shape, kind = strangers.numbers(path)["arr_0"]
    except (ValueError, KeyError, OSError) as fault:
        raise Refused(f"{path} holds no images; delete it, and it is made again.") from fault
    if len(shape) != 4 or kind != np.uint8 or math.prod(shape) > path.stat().st_size:
        raise Refused(f"{path} holds no images; delete it, and it is made again.")
    return shape[0]


def _pixels(path: Path) -> Tensor:
    """The levels in a picture of ours, uint8 (c, h, w). Raises Refused for anything else."""
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            array = np.array(Image.open(path, formats=["PNG"]))
    except Exception as fault:  # decoders raise whatever a broken file leads them to
        raise Refused(f"{path} is no image ({fault}); delete it, and it is made again.") from fault
    if array.dtype != np.uint8:
        raise Refused(f"{path} is no image of ours; delete it, and it is made again.")
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def stream(drawn: Drawn, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches of a finished drawing in their order, one at a time."""
    return (drawn.read(batch) for batch in batches)


def write_npz(path: Path, shape: tuple[int, ...], images: Iterable[Tensor]) -> Path:
    """uint8 images of the whole shape (n, c, h, w), batch by batch, as `arr_0` (n, h, w, c), which the evaluators of
    others read. Written atomically and in constant memory; equal images give equal bytes."""
    n, c, h, w = shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, h, w, c)}
    entry = zipfile.ZipInfo("arr_0.npy")  # with the date of no file
    with (
        whole(path) as part,
        zipfile.ZipFile(part, "w") as archive,
        archive.open(entry, "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for batch in images:
            file.write(batch.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    return path
