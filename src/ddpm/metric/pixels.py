"""Pixels as features: what two images have in common without any network's opinion."""

import torch
from torch import Tensor

from ddpm.errors import Refused
from ddpm.metric.features import FeatureBatch, Features, small
from ddpm.metric.source import Source


class Pixels(Features):
    """The pixels, so scaled that the distance of two images is their root mean squared difference in grey levels
    of 0 to 255.

    Args:
        resolution: larger images are shrunk to it.

    Raises:
        Refused: if it is not positive.
    """

    name = "pixels"
    num_logits = 0

    def __init__(self, *, resolution: int) -> None:
        super().__init__()
        if resolution < 1:
            raise Refused(f"pixels need a positive resolution, not {resolution}")
        self.resolution = resolution

    def prepare(self, data: Source) -> None:
        shape = tuple(small(torch.zeros(1, *data.facts.shape), self.resolution).shape[1:])
        self.num_features = torch.Size(shape).numel()
        self.key = f"{self.name}-{'x'.join(map(str, shape))}"

    def extract(self, images: Tensor) -> FeatureBatch:
        levels = 127.5 * small(images, self.resolution).flatten(1)
        return FeatureBatch(levels / self.num_features**0.5, None)
