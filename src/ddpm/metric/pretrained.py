"""Extractors that others have trained, on photographs: their weights are a file, which is opened safely."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from ddpm.errors import Refused
from ddpm.metric.cache import fingerprint
from ddpm.metric.features import FeatureBatch, Features
from ddpm.metric.source import Source
from ddpm.metric.weights import downloaded, tensors


class Pretrained(Features):
    """A network whose weights are published. Grey is repeated to RGB.

    Args:
        weights: the authors' file; None takes it from torch hub's cache, or downloads it.
    """

    called: ClassVar[str]  # the network, as a sentence names it
    remedy: ClassVar[str]  # what to do without the file

    def __init__(self, *, weights: str | None) -> None:
        super().__init__()
        self.weights = weights
        self.network: nn.Module | None = None

    @abstractmethod
    def url(self) -> str:
        """Where the authors' file is."""

    @abstractmethod
    def made_of(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The network, uint8 images (b, 3, h, w) to their features. Raises ValueError if these are not its tensors."""

    @abstractmethod
    def asked(self, network: nn.Module, rgb: Tensor) -> FeatureBatch:
        """What that network says of uint8 images (b, 3, h, w)."""

    def prepare(self, data: Source) -> None:
        """Open the weights, safely.

        Raises:
            Refused: if they cannot be had, hold more than tensors, are damaged or another network's, or
                the images are neither grey nor RGB.
        """
        if data.facts.shape[0] not in (1, 3):
            raise Refused(
                f"{self.called} sees grey or RGB images, not the {data.facts.shape[0]} channels of "
                f"{data.facts.name}: choose metric=[fid_classifier] or metric=[fid_random]"
            )
        if self.network is None:
            self._open(downloaded(self.url(), self.remedy) if self.weights is None else Path(self.weights))

    def _open(self, path: Path) -> None:
        try:
            network = self.made_of(tensors(path))
        except ValueError as fault:
            raise Refused(f"{path} {fault}, so it is not the weights of {self.called}: {self.remedy}") from fault
        self.key = f"{self.name}-{fingerprint(network.state_dict())}"
        self.network = network.to(self.device)

    def extract(self, images: Tensor) -> FeatureBatch:
        assert self.network is not None  # prepare comes first
        return self.asked(self.network, images.expand(-1, 3, -1, -1))
