"""Inception's features: what FID and inception score mean where no other are named."""

from collections.abc import Mapping

from torch import Tensor, nn

from ddpm.metric.features import FeatureBatch
from ddpm.metric.pretrained import Pretrained


class Inception(Pretrained):
    """The Inception-v3 of Heusel et al. (2017), as torch-fidelity ported it, with its TF1-like resize.

    2048 pooled features; logits without bias, as inception scores want. Its file is torch-fidelity's.
    Arguments: see Pretrained.
    """

    name = "inception"
    called = "Inception"
    num_features = 2048
    num_logits = 1008
    remedy = (
        "pass the place of torch-fidelity's file as metric.fid.features.weights=PATH, which the others take over "
        "(without fid: metric.inception_score.features.weights=PATH, metric.kid.features.weights=PATH and so on), "
        "or choose metric=[fid_classifier,inception_score_classifier]"
    )

    def url(self) -> str:
        from ddpm.metric import inception_network

        return inception_network.URL

    def made_of(self, state: Mapping[str, Tensor]) -> nn.Module:
        from ddpm.metric.inception_network import InceptionNetwork

        return InceptionNetwork(state)

    def asked(self, network: nn.Module, rgb: Tensor) -> FeatureBatch:
        return FeatureBatch(*network(rgb))
