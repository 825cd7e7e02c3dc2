"""A score of a model on the data itself."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from ddpm.data.image_data import ImageData
from ddpm.diffusion import GaussianDiffusion


class DataMetric(ABC):
    """A metric that looks at images of the data, each once, on whichever rank.

    prepare(data) once, when the run starts; then reset(), update(...) with the batches of this rank, and
    compute() on all ranks together.
    """

    name: ClassVar[str]
    larger_is_better: ClassVar[bool]

    @abstractmethod
    def prepare(self, data: ImageData) -> None:
        """Make ready what can be made ready. Raises Refused if it can not be."""

    @abstractmethod
    def reset(self) -> None:
        """Forget all images."""

    @abstractmethod
    def batches(self, rank: int, world_size: int) -> list[Tensor]:
        """The indices of the images that fall to a rank, in batches."""

    @abstractmethod
    def update(self, diffusion: GaussianDiffusion, indices: Tensor) -> None:
        """Add the images at these indices."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The scores by name, the same on every rank."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """What was measured, in plain values."""
