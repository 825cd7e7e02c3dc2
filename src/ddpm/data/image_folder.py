"""Any folder tree of images."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.data.decode import SUFFIXES, Decoder
from ddpm.data.decoded import DecodedData, DecodedSet
from ddpm.data.facts import Facts
from ddpm.data.image_data import ImageSet
from ddpm.data.stream import split_indices
from ddpm.errors import Refused


def _refuse(error: OSError) -> None:
    raise Refused(f"the folder {error.filename} can not be read: {error.strerror}")


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Folders below root, as prefixes relative to it, and their files.

    Hidden ones are left out, and each is met once even if links lead to it twice.
    """
    met = set()
    for folder, below, names in os.walk(root, onerror=_refuse, followlinks=True):
        identity = os.path.realpath(folder)
        below[:] = [] if identity in met else sorted(name for name in below if not name.startswith("."))
        if identity not in met:
            prefix = os.path.relpath(folder, root)
            yield ("" if prefix == os.curdir else prefix + os.sep), names
        met.add(identity)


def listing(root: Path) -> list[str]:
    """The image files below root, relative to it, sorted; known by their suffix, hidden ones left out.

    Raises:
        Refused: if root is no folder, holds no images or can not be read.
    """
    if not root.is_dir():
        raise Refused(f"there is no folder {root}: pass data.root=FOLDER, a folder of images")
    files = [
        prefix + name
        for prefix, names in _walk(root)
        for name in names
        if not name.startswith(".") and name.lower().endswith(SUFFIXES)
    ]
    if not files:
        raise Refused(f"there are no images in {root} (looked for {' '.join(SUFFIXES)})")
    return sorted(files)


def classes(files: list[str]) -> tuple[str, ...]:
    """The folders at the first level, if all files lie in such and there are at least two; else none."""
    first = {file.partition(os.sep)[0] if os.sep in file else "" for file in files}
    return () if "" in first or len(first) < 2 else tuple(sorted(first))


class _Files(DecodedSet):
    def __init__(
        self, *, root: Path, files: list[str], labels: Tensor, decoder: Decoder, unreadable_is_fatal: bool
    ) -> None:
        super().__init__(labels=labels, decoder=decoder, unreadable_is_fatal=unreadable_is_fatal)
        self._root = root
        # One buffer, which forked workers share; touching a million Python strings would copy them.
        self._files = np.array([os.fsencode(file) for file in files])

    def name(self, index: int) -> str:
        return str(self.source(index))

    def source(self, index: int) -> Path:
        return self._root / os.fsdecode(self._files[index].item())


class ImageFolder(DecodedData):
    """Images below `root`, resized and cropped to one size.

    The folders at the first level are the classes, if there are at least two and no image lies beside them.

    Args:
        held_out: how many images, by a fixed permutation, form the test split and never train; with 0
            the test split is the training images.

    The other arguments are DecodedData's; `root` must be given.

    Raises:
        Refused: if root is not given, or one of the values is impossible.
    """

    def __init__(
        self,
        *,
        root: str | None,
        image_size: int | Sequence[int],
        channels: int,
        held_out: int,
        unreadable_is_fatal: bool,
        batch_size: int,
        num_workers: int,
        flip: bool,
        seed: int,
    ) -> None:
        super().__init__(
            root=root,
            image_size=image_size,
            channels=channels,
            unreadable_is_fatal=unreadable_is_fatal,
            batch_size=batch_size,
            num_workers=num_workers,
            flip=flip,
            seed=seed,
        )
        if root is None:
            raise Refused("data=image_folder needs a folder of images: pass data.root=FOLDER")
        self.folder, self.held_out = Path(root), held_out

    @cached_property
    def files(self) -> list[str]:
        """The images, relative to the folder, sorted; listed once.

        Raises:
            Refused: if there are none, or none would be left to train on.
        """
        files = listing(self.folder)
        if not 0 <= self.held_out < len(files):
            raise Refused(
                f"data.held_out={self.held_out} must be at least 0 and leave some of the "
                f"{len(files)} images of {self.folder} to train on"
            )
        return files

    @cached_property
    def facts(self) -> Facts:
        split = (
            f"{len(self.files) - self.held_out} images train and {self.held_out} test, by a fixed permutation"
            if self.held_out
            else f"all {len(self.files)} images train, and the test split is the same images"
        )
        return Facts(
            name=self.folder.resolve().name,
            shape=self.decoder.shape,
            num_levels=256,
            class_names=classes(self.files),
            note=f"Resized and cropped, 8 bits a channel; {split}.",
        )

    def read(self, split: str) -> ImageSet:
        return _Files(
            root=self.folder,
            files=[self.files[i] for i in self._indices(split).tolist()],
            labels=self._labels()[self._indices(split)],
            decoder=self.decoder,
            unreadable_is_fatal=self.unreadable_is_fatal,
        )

    def _indices(self, split: str) -> Tensor:
        train, test = split_indices(len(self.files), self.held_out)
        return test if split == "test" and self.held_out else train

    def _labels(self) -> Tensor:
        label = {name: i for i, name in enumerate(self.facts.class_names)}
        return torch.tensor([label.get(file.partition(os.sep)[0], -1) for file in self.files])
