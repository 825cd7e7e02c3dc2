"""What the metrics ask of a data set: no more than ddpm.data.ImageData gives."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ddpm.data.facts import Batch, Facts
from ddpm.data.image_data import ImageSet

_PROBED = 64


@runtime_checkable
class Source(Protocol):
    """A data set, as the metrics see it."""

    @property
    def facts(self) -> Facts: ...

    @property
    def identity(self) -> str:
        """What tells the images from those of another day, without opening them."""
        ...

    def load(self, split: str) -> ImageSet: ...

    def batches(self, split: str, batch_size: int, indices: Sequence[int] | Tensor | None = None) -> Iterator[Batch]:
        """Images in [-1, 1], in order and unflipped."""
        ...


def identity(data: Source, split: str) -> str:
    """Tells one split from another, also where name, shape and count are the same (two folders, an edited
    file): a hash of these, of what the data know of their files, and of what `probe` sees."""
    told = repr((data.facts.name, split, data.facts.shape, data.identity, probe(data, split)))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def probe(data: Source, split: str) -> str:
    """A hash of the count of a split's images and of up to 64 of them, evenly spaced, with their labels."""
    images = data.load(split)
    told = hashlib.sha256(repr(len(images)).encode())
    for tensor in images[evenly(len(images), _PROBED)]:
        told.update(tensor.contiguous().numpy().data)
    return told.hexdigest()


def evenly(count: int, at_most: int) -> Tensor:
    """At most so many of the indices 0 ... count - 1, evenly spaced; int64."""
    chosen = min(count, at_most)
    return torch.arange(chosen) * count // max(1, chosen)
