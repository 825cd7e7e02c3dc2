"""Inception's features: what FID and inception score mean where no other are named."""

from pathlib import Path

from torch import Tensor, nn

from ddpm.errors import Refused
from ddpm.metric.cache import fingerprint
from ddpm.metric.features import FeatureBatch, Features, refuse_channels
from ddpm.metric.source import Source
from ddpm.metric.weights import downloaded, tensors

_REMEDY = (
    "pass the place of torch-fidelity's file as metric.fid.features.weights=PATH, which the others take over "
    "(without fid: metric.inception_score.features.weights=PATH, metric.kid.features.weights=PATH and so on), "
    "or choose metric=[fid_classifier,inception_score_classifier]"
)


class Inception(Features):
    """The Inception-v3 of Heusel et al. (2017), as torch-fidelity ported it, with its TF1-like resize.

    2048 pooled features; logits without bias, as inception scores want. Grey is repeated to RGB.

    Args:
        weights: torch-fidelity's file of weights; None takes it from torch hub's cache, or downloads it.
    """

    name = "inception"
    num_features = 2048
    num_logits = 1008

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
        refuse_channels("Inception", data)
        if self.network is None:
            from ddpm.metric.inception_network import URL

            self._open(downloaded(URL, _REMEDY) if self.weights is None else Path(self.weights))

    def _open(self, path: Path) -> None:
        from ddpm.metric.inception_network import InceptionNetwork

        try:
            network = InceptionNetwork(tensors(path))
        except ValueError as fault:
            raise Refused(f"{path} {fault}, so it is not Inception's weights: {_REMEDY}") from fault
        self.key = f"{self.name}-{fingerprint(network.state_dict())}"
        self.network = network.to(self.device)

    def extract(self, images: Tensor) -> FeatureBatch:
        assert self.network is not None  # prepare comes first
        return FeatureBatch(*self.network(images.expand(-1, 3, -1, -1)))
