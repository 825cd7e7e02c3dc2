"""Images that are decoded when they are asked for, some of which may turn out to be unreadable."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddpm.data.decode import Decoder, UnreadableError, height_and_width
from ddpm.data.image_data import ImageData
from ddpm.errors import Failed


class DecodedSet(ABC):
    """An ImageSet of encoded images.

    An unreadable image is named in a warning, once, and the next readable one of the set stands in for
    it: what an index gives is a function of the files, whoever asks and in whatever order. Once unreadable, an image
    stays so while the process lasts.

    Args:
        labels: (N,) int64.
        decoder: to levels of one shape.
        unreadable_is_fatal: refuse an unreadable image instead.
    """

    def __init__(self, *, labels: Tensor, decoder: Decoder, unreadable_is_fatal: bool) -> None:
        self.labels, self.decoder, self.unreadable_is_fatal = labels, decoder, unreadable_is_fatal
        # Shared, so that what a worker finds is known to the others and counted in the training process.
        self._unreadable = torch.zeros(len(labels), dtype=torch.bool)
        self._unreadable.share_memory_()  # type: ignore[no-untyped-call]

    @abstractmethod
    def name(self, index: int) -> str:
        """What people call the image."""

    @abstractmethod
    def source(self, index: int) -> Path | bytes:
        """The file of the image, or its bytes.

        Raises:
            UnreadableError: with the reason.
        """

    @property
    def num_unreadable(self) -> int:
        """How many unreadable images were met so far, in all processes that read for this one."""
        return int(self._unreadable.sum())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Levels (b, c, h, w) uint8 and labels (b,) int64.

        Raises:
            Failed: if no image is readable, or one is not and that is fatal.
        """
        index = torch.as_tensor(indices, dtype=torch.long)
        found = [self._readable(i) for i in index.tolist()]
        levels = [image for _, image in found] or [torch.empty(self.decoder.shape, dtype=torch.uint8)]
        return torch.stack(levels)[: len(found)], self.labels[[i for i, _ in found]]

    def _readable(self, index: int) -> tuple[int, Tensor]:
        """The first readable image at or, cyclically, after the index."""
        for i in range(index, index + len(self)):
            levels = self._levels(i % len(self))
            if levels is not None:
                return i % len(self), levels
        raise Failed(
            f"none of the {len(self)} images can be read, {self.name(index)} to begin with: mend them, "
            "or choose other data"
        )

    def _levels(self, index: int) -> Tensor | None:
        if self._unreadable[index]:
            return None
        try:
            return self.decoder(self.source(index))
        except UnreadableError as fault:
            self._report(index, fault)
            return None

    def _report(self, index: int, fault: UnreadableError) -> None:
        if self.unreadable_is_fatal:
            raise Failed(
                f"{self.name(index)} cannot be read ({fault}): mend or remove it, "
                "or pass data.unreadable_is_fatal=false to do without it"
            ) from fault
        self._unreadable[index] = True
        warnings.warn(f"{self.name(index)} cannot be read ({fault}): the next image stands in", stacklevel=2)


class DecodedData(ImageData):
    """Data whose images come in any size and kind, and leave in one.

    Grey, palette, CMYK, 16-bit, transparent (put on white) and rotated (EXIF) images come out as they look.

    Args:
        image_size: pixels of a side, or [height, width].
        channels: 1 (grey) or 3 (colour).
        unreadable_is_fatal: refuse an unreadable image; else a warning names it, and the next one of its
            split stands in.

    The other arguments are ImageData's.

    Raises:
        Refused: if one of these values is impossible.
    """

    def __init__(
        self,
        *,
        root: str | None,
        image_size: int | Sequence[int],
        channels: int,
        unreadable_is_fatal: bool,
        batch_size: int,
        num_workers: int,
        flip: bool,
        seed: int,
    ) -> None:
        super().__init__(root=root, batch_size=batch_size, num_workers=num_workers, flip=flip, seed=seed)
        self.decoder = Decoder(channels, *height_and_width(image_size))
        self.unreadable_is_fatal = unreadable_is_fatal

    def num_unreadable(self, split: str) -> int:
        """How many unreadable images of a split were met so far, all workers of this rank together."""
        images = self._opened.get(split)
        return images.num_unreadable if isinstance(images, DecodedSet) else 0

    def teardown(self, stage: str) -> None:
        """At the end of a stage, say how many images were unreadable (Lightning's hook)."""
        for split in ("train", "test"):
            if count := self.num_unreadable(split):
                warnings.warn(
                    f"{count} of the {len(self.load(split))} {split} images of {self.facts.name} "
                    "could not be read; others stood in for them",
                    stacklevel=2,
                )
