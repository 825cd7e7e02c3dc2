"""Any folder tree of images."""

import hashlib
import os
import stat
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.data.decode import Decoder, UnreadableError
from ddpm.data.decoded import DecodedData, DecodedSet
from ddpm.data.facts import Facts
from ddpm.data.image_data import ImageSet
from ddpm.data.listing import listing
from ddpm.data.stream import split_indices
from ddpm.errors import Refused


def classes(files: list[str]) -> tuple[str, ...]:
    """The folders at the first level, if all files lie in such and there are at least two; else none."""
    first = {file.partition(os.sep)[0] if os.sep in file else "" for file in files}
    return () if "" in first or len(first) < 2 else tuple(sorted(first))


class _Files(DecodedSet):
    """The files of a folder; one that has changed since it was first read counts as unreadable."""

    def __init__(
        self, *, root: Path, files: list[str], labels: Tensor, decoder: Decoder, unreadable_is_fatal: bool
    ) -> None:
        super().__init__(labels=labels, decoder=decoder, unreadable_is_fatal=unreadable_is_fatal)
        self._root = root
        # One buffer, which forked workers share; touching a million Python strings would copy them.
        self._files = np.array([os.fsencode(file) for file in files])
        self._stamps = torch.zeros(len(files), dtype=torch.int64)  # of the files when first read; 0 before
        self._stamps.share_memory_()  # type: ignore[no-untyped-call]

    def name(self, index: int) -> str:
        return str(self._path(index))

    def source(self, index: int) -> Path:
        path = self._path(index)
        stamp, first = _stamp(path), int(self._stamps[index])
        if first not in (0, stamp):
            raise UnreadableError("it has changed since this run first read it")
        self._stamps[index] = stamp
        return path

    def _path(self, index: int) -> Path:
        return self._root / os.fsdecode(self._files[index].item())


def _stamp(path: Path) -> int:
    """64 bits, not all 0, that tell a file from what it is after a change.

    Raises:
        UnreadableError: if it is gone, or no file (opening a pipe would wait for its other end).
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise UnreadableError(f"{type(error).__name__}: {error.strerror}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise UnreadableError("it is no regular file")
    return hash((facts.st_mtime_ns, facts.st_size)) or 1


def file_size(path: Path) -> int:
    """Bytes of a file; -1 of one that is gone, or a link to nothing."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


class ImageFolder(DecodedData):
    """Images below `root`, resized and cropped to one size; each file has to stay as it is while a run lasts,
    and goes on: its size tells one that was changed.

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

    @cached_property
    def identity(self) -> str:
        """Of names and sizes: a folder that was copied is the same, its times of change are not. So a file that is
        replaced by one of as many bytes shows in the run that has read it, and not when a run goes on."""
        names = hashlib.sha256(b"\0".join(os.fsencode(file) for file in self.files))
        sizes = hashlib.sha256(" ".join(str(file_size(self.folder / file)) for file in self.files).encode())
        return f"{len(self.files)} files, of names {names.hexdigest()[:16]} and sizes {sizes.hexdigest()[:16]}"

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
