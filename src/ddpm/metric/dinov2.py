"""DINOv2's features (Oquab et al. 2023), of which Stein et al. (2023) say that they see what people see."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from ddpm.metric.features import FeatureBatch
from ddpm.metric.pretrained import Pretrained

URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"


class DINOv2(Pretrained):
    """The class token of DINOv2's ViT-L/14, of images at 224 x 224, as in Stein et al. (2023).

    Its file is dinov2_vitl14_pretrain.pth. Arguments: see Pretrained.
    """

    name = "dinov2"
    called = "DINOv2"
    num_features = 1024
    num_logits = 0
    depth: ClassVar[int] = 24
    remedy = (
        "pass the place of dinov2_vitl14_pretrain.pth as metric.fd_dinov2.features.weights=PATH, or leave fd_dinov2 out"
    )

    def url(self) -> str:
        return URL

    def made_of(self, state: Mapping[str, Tensor]) -> nn.Module:
        from ddpm.metric.dinov2_network import DINOv2Network

        return DINOv2Network(state, depth=self.depth, width=self.num_features)

    def asked(self, network: nn.Module, rgb: Tensor) -> FeatureBatch:
        return FeatureBatch(network(rgb), None)
