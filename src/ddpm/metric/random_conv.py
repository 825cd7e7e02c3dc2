"""Features for data that Inception does not suit and that has no labels: a random network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddpm.errors import Refused
from ddpm.metric.cache import fingerprint
from ddpm.metric.features import FeatureBatch, Features, small
from ddpm.metric.source import Source


class RandomConv(Features):
    """A convolutional network with fixed random weights (He et al. 2015, Eq. 10) and nothing to learn.

    Its features are the averages of its last activations over the four quarters of the image. Distances
    between them tell distributions of images apart, though not as people would weigh the differences.

    Args:
        channels: of each 3 x 3 convolution; the image is halved between them. 4 features a last channel.
        resolution: larger images are shrunk to it.
        seed: of the weights.

    Raises:
        Refused: if one of these is impossible.
    """

    name = "random"
    num_logits = 0

    def __init__(self, *, channels: Sequence[int], resolution: int, seed: int) -> None:
        super().__init__()
        if min(channels, default=0) < 1 or resolution < 1:
            raise Refused(f"random features need positive channels={list(channels)}, resolution={resolution}")
        self.channels, self.resolution, self.seed = tuple(channels), resolution, seed
        self.num_features = 4 * self.channels[-1]
        self.network = nn.Sequential()

    def prepare(self, data: Source) -> None:
        """Draw the weights, for the data's number of channels."""
        generator = torch.Generator().manual_seed(self.seed)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((data.facts.shape[0], *self.channels), self.channels, strict=False):
            layers += [_drawn(inputs, outputs, generator), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)]
        layers[-1:] = [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        self.network = nn.Sequential(*layers).requires_grad_(False).eval().to(self.device)
        self.key = f"{self.name}-{fingerprint(self.network.state_dict(), self.resolution)}"

    def extract(self, images: Tensor) -> FeatureBatch:
        return FeatureBatch(self.network(small(images, self.resolution)), None)


def _drawn(inputs: int, outputs: int, generator: torch.Generator) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, device="meta").to_empty(device="cpu")
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    return layer
