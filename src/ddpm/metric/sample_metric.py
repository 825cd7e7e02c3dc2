"""A score of samples: float64 sums that run over the images of every rank, and a number at the end."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed

from ddpm.metric.features import FeatureBatch, Features
from ddpm.metric.source import Source


class SampleMetric(ABC):
    """A metric that needs only sums over images: no feature is gathered, no rank works alone.

    prepare(data) once, when the run starts; then reset(N), update(...) with each of the images 0 ... N - 1
    once, on whichever rank, and compute() on all ranks together. It is no nn.Module, so that no
    checkpoint and no average of weights takes the extractor along.

    Args:
        features: the extractor. Metrics whose features have one key can share its pass over the images.
    """

    kind: ClassVar[str]  # "fid": what is measured, whatever the features
    larger_is_better: ClassVar[bool]

    def __init__(self, *, features: Features) -> None:
        self.features = features
        self.num_images = 0
        self._sums: dict[str, Tensor] = {}

    @property
    def name(self) -> str:
        """The key of the score: fid_classifier; where the features are Inception's, just fid."""
        return self.kind if self.features.name == "inception" else f"{self.kind}_{self.features.name}"

    def prepare(self, data: Source) -> None:
        """Make ready what can be made ready before there are samples, on the extractor's device.

        Raises:
            Refused: if it can not be.
        """
        self.features.prepare(data)

    def reset(self, num_images: int) -> None:
        """Forget all images, and expect so many.

        Raises:
            Refused: if they are too few for the metric.
        """
        self.num_images = num_images
        shapes = {"count": ()} | dict(self.shapes())
        self._sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def update(self, batch: FeatureBatch, number: Tensor) -> None:
        """Add images; `number` (b,) says which of 0 ... N - 1 they are. The sums live where the batch is."""
        place = _with_float64(batch.features.device)
        logits = None if batch.logits is None else batch.logits.to(place).double()
        exact = FeatureBatch(batch.features.to(place).double(), logits)
        count = torch.tensor(len(number), dtype=torch.float64)
        for name, term in ({"count": count} | dict(self.terms(exact, number))).items():
            self._sums[name] = self._sums[name].to(place) + term.to(place)

    def compute(self) -> dict[str, float]:
        """The scores by name, the same on every rank.

        Raises:
            RuntimeError: if not exactly N images were added.
        """
        totals = {name: over_ranks(total).cpu() for name, total in self._sums.items()}
        count = int(totals.pop("count"))
        if count != self.num_images:
            raise RuntimeError(f"{self.name} expected {self.num_images} images and was given {count}")
        return self.score(totals)

    def protocol(self) -> dict[str, Any]:
        """What is measured, in plain values: two scores with the same protocol can be compared."""
        return self.features.protocol()

    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The sums by name."""

    @abstractmethod
    def terms(self, batch: FeatureBatch, number: Tensor) -> Mapping[str, Tensor]:
        """What a batch, here in float64, adds to each sum."""

    @abstractmethod
    def score(self, totals: Mapping[str, Tensor]) -> dict[str, float]:
        """The scores, from the sums over all images, on the CPU."""


def over_ranks(total: Tensor) -> Tensor:
    """The sum over all ranks, where there are several; the argument is left as it is."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return total
    place = "cuda" if "nccl" in distributed.get_backend() else "cpu"
    shared = total.to(place, copy=True)
    distributed.all_reduce(shared)
    return shared.to(total.device)


def _with_float64(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device
