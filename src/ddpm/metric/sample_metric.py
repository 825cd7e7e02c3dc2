"""A score of samples, which come in batches on every rank."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, distributed

from ddpm.errors import Refused
from ddpm.metric.features import FeatureBatch, Features
from ddpm.metric.source import Source

warn = rank_zero_only(logging.getLogger(__name__).warning)


class SampleMetric(ABC):
    """A metric of the images 0 ... N - 1.

    refuse_few(N) and prepare(data) once, when the run starts; then reset(N), update(...) with each of the images
    0 ... N - 1 once, on whichever rank, and compute() on all ranks together. It is no nn.Module, so that no
    checkpoint and no average of weights takes the extractor along.

    Args:
        features: the extractor. Metrics whose features have one key can share its pass over the images.
    """

    kind: ClassVar[str]  # "fid": what is measured, whatever the features
    larger_is_better: ClassVar[bool]
    keeps_reference: ClassVar[bool] = False  # does `prepare` leave the reference's features in the cache?

    def __init__(self, *, features: Features) -> None:
        self.features = features
        self.num_images = 0

    @property
    def name(self) -> str:
        """The key of the (first) score: fid on Inception's features, else fid_classifier; fid_test in that variant."""
        return self.named(self.kind)

    @property
    def variant(self) -> str:
        """What tells this metric from the usual one of its kind; nothing for that."""
        return ""

    def named(self, kind: str) -> str:
        """The key of a score of this kind, on these features, in this variant."""
        features = "" if self.features.name == "inception" else self.features.name
        return "_".join(part for part in (kind, features, self.variant) if part)

    def prepare(self, data: Source) -> None:
        """Make ready what can be made ready before there are samples, on the extractor's device.

        Raises:
            Refused: if it cannot be.
        """
        self.features.prepare(data)

    def refuse_few(self, num_images: int) -> None:
        """What is asked for before anything is made ready.

        Raises:
            Refused: if so many images are too few for the metric.
        """
        if num_images < 2:
            raise Refused(f"{self.name} needs at least two images, and num_images is {num_images}")

    def reset(self, num_images: int) -> None:
        """Forget all images, and expect so many."""
        self.num_images = num_images

    @abstractmethod
    def update(self, batch: FeatureBatch, number: Tensor) -> None:
        """Add images; `number` (b,) says which of 0 ... N - 1 they are."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The scores by name, the same on every rank.

        Raises:
            RuntimeError: if not exactly N images were added.
        """

    def protocol(self) -> dict[str, Any]:
        """What is measured, in plain values: two scores with the same protocol can be compared."""
        return self.features.protocol()


class SummedMetric(SampleMetric):
    """A metric that needs only float64 sums over images: no feature is gathered, no rank works alone."""

    def __init__(self, *, features: Features) -> None:
        super().__init__(features=features)
        self._sums: dict[str, Tensor] = {}

    def reset(self, num_images: int) -> None:
        super().reset(num_images)
        shapes = {"count": ()} | dict(self.shapes())
        self._sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def update(self, batch: FeatureBatch, number: Tensor) -> None:
        """Add images; the sums live where the batch is."""
        place = batch.features.device
        logits = None if batch.logits is None else batch.logits.to(place).double()
        exact = FeatureBatch(batch.features.to(place).double(), logits)
        count = torch.tensor(len(number), dtype=torch.float64)
        for name, term in ({"count": count} | dict(self.terms(exact, number))).items():
            self._sums[name] = self._sums[name].to(place) + term.to(place)

    def compute(self) -> dict[str, float]:
        self._sums = {name: total.cpu() for name, total in self._sums.items()}  # a GPU gets their memory back
        totals = {name: over_ranks(total) for name, total in self._sums.items()}
        count = int(totals.pop("count"))
        if count != self.num_images:
            raise RuntimeError(f"{self.name} expected {self.num_images} images and was given {count}")
        return self.score(totals)

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


def refuse_miscounted(name: str, num_images: int, counts: Tensor, seen: int) -> None:
    """Raises RuntimeError, on all ranks, unless over all of them each image was counted once (n,) and N were seen."""
    total = over_ranks(torch.cat((counts, torch.tensor([seen]))))
    if total[-1] != num_images or (total[:-1] != 1).any():
        raise RuntimeError(f"{name} expected {num_images} images, each once, and was given {int(total[-1])}")


def is_first_rank() -> bool:
    """Is this the one that computes what only one has to?"""
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
