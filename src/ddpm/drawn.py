"""A drawing on the disk: written batch by batch as it is made, so that one that was killed goes on.

A folder holds the images of one drawing, told apart by its protocol in `drawing.json`. A batch is there as a
whole or is made again as a whole: batches are fixed ranges of indices, so for one batch size the files are byte
for byte those of an undisturbed drawing, whichever ranks made them.
"""

import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm.errors import Refused
from ddpm.images import write_png

PROTOCOL = "drawing.json"


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
        return all(numbered(self.out, index).is_file() for index in indices.tolist())

    def write(self, indices: Tensor, images: Tensor) -> None:
        for index, image in zip(indices.tolist(), images, strict=True):
            write_png(image, numbered(self.out, index))

    def read(self, indices: Tensor) -> Tensor:
        arrays = [np.array(Image.open(numbered(self.out, index))) for index in indices.tolist()]
        return torch.stack([torch.from_numpy(a if a.ndim == 3 else a[..., None]).permute(2, 0, 1) for a in arrays])

    def indices(self) -> set[int]:
        return {int(path.stem) for path in self.out.glob("*.png") if path.stem.isdigit()}


class Shards(Drawn):
    """A batch is `shards/FIRST-LAST.npz`."""

    def path(self, indices: Tensor) -> Path:
        return self.out / "shards" / f"{int(indices[0]):06d}-{int(indices[-1]):06d}.npz"

    def has(self, indices: Tensor) -> bool:
        return self.path(indices).is_file()

    def write(self, indices: Tensor, images: Tensor) -> None:
        self.path(indices).parent.mkdir(exist_ok=True)
        write_npz(self.path(indices), images.shape, [images])

    def read(self, indices: Tensor) -> Tensor:
        with np.load(self.path(indices), allow_pickle=False) as kept:
            return torch.from_numpy(kept["arr_0"]).permute(0, 3, 1, 2)

    def indices(self) -> set[int]:
        ends = [path.stem.split("-") for path in self.out.glob("shards/*.npz")]
        return {index for first, last in ends for index in range(int(first), int(last) + 1)}


def open_drawing(drawn: Drawn, protocol: Mapping[str, Any], write: bool) -> None:
    """Claim the folder for a drawing of this protocol, or go on with it; one rank writes.

    Raises Refused for a folder that holds another drawing, or more images than are asked for.
    """
    told, file = json.loads(json.dumps(protocol)), drawn.out / PROTOCOL
    there = drawn.indices()
    before = json.loads(file.read_text()) if file.is_file() else (None if there else told)
    if before != told:
        changed = [key for key in told if before is not None and before.get(key) != told[key]]
        what = f"with another {', '.join(changed)}" if changed else "of unknown origin"
        raise Refused(f"{drawn.out} holds images {what}; take another out=FOLDER, or delete it.")
    if there and max(there) >= drawn.count:
        raise Refused(
            f"{drawn.out} holds more than num_images={drawn.count} images of this drawing; take another out=FOLDER."
        )
    if write:
        drawn.out.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        part.write_text(json.dumps(told, indent=2) + "\n")
        part.replace(file)


def finished(path: Path, count: int) -> bool:
    """Is there an .npz of all images already? Raises Refused if it is one of another number of them."""
    if not path.is_file():
        return False
    with np.load(path, allow_pickle=False) as kept:
        there = len(kept["arr_0"])
    if there != count:
        raise Refused(f"{path} holds {there} images, not num_images={count}; take another out=FOLDER, or delete it.")
    return True


def stream(drawn: Drawn, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches of a finished drawing in their order, one at a time."""
    return (drawn.read(batch) for batch in batches)


def write_npz(path: Path, shape: tuple[int, ...], images: Iterable[Tensor]) -> Path:
    """uint8 images of the whole shape (n, c, h, w), batch by batch, as `arr_0` (n, h, w, c), which the evaluators of
    others read. Written atomically and in constant memory; equal images give equal bytes."""
    n, c, h, w = shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, h, w, c)}
    part = path.with_name(path.name + ".part")
    entry = zipfile.ZipInfo("arr_0.npy")  # with the date of no file
    with zipfile.ZipFile(part, "w") as archive, archive.open(entry, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for batch in images:
            file.write(batch.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    part.replace(path)
    return path
