"""DINOv2's features (Oquab et al. 2023), of which Stein et al. (2023) say that they see what people see."""

from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from ddpm.errors import Refused
from ddpm.metric.cache import fingerprint
from ddpm.metric.features import FeatureBatch, Features, refuse_channels
from ddpm.metric.source import Source
from ddpm.metric.weights import downloaded, tensors

URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
_REMEDY = (
    "pass the place of dinov2_vitl14_pretrain.pth as metric.fd_dinov2.features.weights=PATH, or leave fd_dinov2 out"
)


class DINOv2(Features):
    """The class token of DINOv2's ViT-L/14, of images at 224 x 224, as in Stein et al. (2023). Grey is repeated to RGB.

    Args:
        weights: the authors' file, dinov2_vitl14_pretrain.pth; None takes it from torch hub's cache, or
            downloads it.
    """

    name = "dinov2"
    num_features = 1024
    num_logits = 0
    depth: ClassVar[int] = 24

    def __init__(self, *, weights: str | None) -> None:
        super().__init__()
        self.weights = weights
        self.network: nn.Module | None = None

    def prepare(self, data: Source) -> None:
        """Open the weights, safely.

        Raises:
            Refused: if they can not be had, hold more than tensors, are damaged or another network's, or
                the images are neither grey nor RGB.
        """
        refuse_channels("DINOv2", data)
        if self.network is None:
            self._open(downloaded(URL, _REMEDY) if self.weights is None else Path(self.weights))

    def _open(self, path: Path) -> None:
        from ddpm.metric.dinov2_network import DINOv2Network

        try:
            network = DINOv2Network(tensors(path), depth=self.depth, width=self.num_features)
        except ValueError as fault:
            raise Refused(f"{path} {fault}, so it is not the weights of DINOv2's ViT-L/14: {_REMEDY}") from fault
        self.key = f"{self.name}-{fingerprint(network.state_dict())}"
        self.network = network.to(self.device)

    def extract(self, images: Tensor) -> FeatureBatch:
        assert self.network is not None  # prepare comes first
        return FeatureBatch(self.network(images.expand(-1, 3, -1, -1)), None)
