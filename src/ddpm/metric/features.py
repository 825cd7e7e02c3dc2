"""A network that turns images into the features (and class logits) that metrics compare."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ddpm.metric.source import Source

Extractor = TypeVar("Extractor", bound="Features")


class FeatureBatch(NamedTuple):
    """What an extractor says of a batch of images."""

    features: Tensor  # (b, d) float32
    logits: Tensor | None  # (b, k) float32; None where the extractor knows no classes
    images: Tensor | None = None  # (b, c, h, w) uint8: what it says it of, wherever that was


class Features(nn.Module, ABC):
    """An extractor: always in eval mode, without gradients, in float32.

    It is never a submodule of what is trained, averaged or saved in a checkpoint. `prepare` comes first;
    it leaves the network on the device to which the extractor was moved.
    """

    name: str  # the scores carry it: fid_classifier
    num_features: int
    num_logits: int  # 0 where it knows no classes
    key: str  # name and content of the network: extractors with one key give the same features

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where images are expected; follows `.to(...)`, also before there is a network."""
        place = self._place
        assert isinstance(place, Tensor)
        return place.device

    @abstractmethod
    def prepare(self, data: Source) -> None:
        """Open, download, make or train the weights, so that a problem shows before anything is trained.

        Raises:
            Refused: if that cannot be done for this data, or not here.
        """

    @abstractmethod
    def extract(self, images: Tensor) -> FeatureBatch:
        """The features of uint8 images (b, c, h, w) in {0, ..., 255}, on the extractor's device."""

    def forward(self, images: Tensor) -> FeatureBatch:
        """The features of uint8 images (b, c, h, w) in {0, ..., 255}, wherever they are."""
        with exact(self.device):
            return self.extract(images.to(self.device))._replace(images=images)

    def train(self: Extractor, mode: bool = True) -> Extractor:
        """Stay in eval mode, whatever is asked: extractors hold batch statistics."""
        return super().train(False)

    def protocol(self) -> dict[str, Any]:
        """What these features are, in plain values."""
        return {"features": self.name, "features_key": self.key}


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Float32 means float32: no gradient, autocast, TF32 or bf16, whatever the training run has chosen."""
    convolution = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # it is there since torch 2.9
    before = torch.get_float32_matmul_precision(), convolution.fp32_precision
    torch.set_float32_matmul_precision("highest")
    convolution.fp32_precision = "ieee"
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        convolution.fp32_precision = before[1]


def small(images: Tensor, resolution: int) -> Tensor:
    """uint8 images as float32 in [-1, 1], shrunk by averaging until no side exceeds the resolution."""
    x = images.float() / 127.5 - 1
    height, width = x.shape[-2:]
    factor = resolution / max(height, width)
    if factor >= 1:
        return x
    size = max(1, round(height * factor)), max(1, round(width * factor))
    return nn.functional.adaptive_avg_pool2d(x, size)
