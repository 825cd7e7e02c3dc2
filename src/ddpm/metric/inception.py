"""Inception's features: what FID and inception score mean where no other are named."""

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import torch
from filelock import FileLock
from torch import Tensor, nn

from ddpm.errors import Refused
from ddpm.metric.cache import fingerprint
from ddpm.metric.features import FeatureBatch, Features
from ddpm.metric.source import Source

_SECONDS = 15.0  # without an answer, after which a download is given up
_REMEDY = (
    "pass the place of torch-fidelity's file as metric.fid.features.weights=PATH, "
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
        if data.facts.shape[0] not in (1, 3):
            raise Refused(
                f"Inception sees grey or RGB images, not the {data.facts.shape[0]} channels of "
                f"{data.facts.name}: choose metric=[fid_classifier] or metric=[fid_random]"
            )
        if self.network is None:
            self._open(_downloaded() if self.weights is None else Path(self.weights))

    def _open(self, path: Path) -> None:
        from ddpm.metric.inception_network import InceptionNetwork

        try:
            network = InceptionNetwork(_tensors(path))
        except ValueError as fault:
            raise Refused(f"{path} {fault}, so it is not Inception's weights: {_REMEDY}") from fault
        self.key = f"{self.name}-{fingerprint(network.state_dict())}"
        self.network = network.to(self.device)

    def extract(self, images: Tensor) -> FeatureBatch:
        assert self.network is not None  # prepare comes first
        return FeatureBatch(*self.network(images.expand(-1, 3, -1, -1)))


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of the file, of which nothing is executed."""
    if not path.is_file():
        raise ValueError("is not there")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # whatever a file that anybody may have written makes the reader raise
        raise ValueError("is damaged or holds more than tensors and was not opened") from fault
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("holds no tensors by name")
    return dict(state)


def _downloaded() -> Path:
    """torch-fidelity's file in torch hub's cache, downloaded by one process if it is missing."""
    from ddpm.metric.inception_network import URL

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(URL).path).name
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock")), _impatient():
            if not path.is_file():
                torch.hub.download_url_to_file(URL, str(path))
    except (OSError, http.client.HTTPException) as error:
        raise Refused(f"{URL} can not be downloaded to {path} ({error}): {_REMEDY}") from error
    return path


@contextmanager
def _impatient() -> Iterator[None]:
    """A network that swallows packets is given up in seconds; torch hub would wait for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
