"""A score of a model on the data itself."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddpm.data.image_data import ImageData
from ddpm.diffusion import GaussianDiffusion


class DataMetric(ABC):
    """A metric that looks at images of the data, each once, on whichever rank.

    prepare(data) once, when the run starts; then reset(), update(...) with the batches of this rank, and
    compute() on all ranks together.
    """

    larger_is_better: ClassVar[bool]

    @property
    @abstractmethod
    def name(self) -> str:
        """The key of the score."""

    @abstractmethod
    def prepare(self, data: ImageData) -> None:
        """Make ready what can be made ready. Raises Refused if it cannot be."""

    @abstractmethod
    def keep_at(self, place: Path) -> None:
        """Keep what is finished in a folder, from which a measurement that was killed goes on. It must belong to
        this model and this protocol alone."""

    place: Path

    @abstractmethod
    def reset(self, num_steps: int) -> None:
        """Forget all images; the model has T = num_steps."""

    @abstractmethod
    def batches(self, rank: int, world_size: int) -> list[Tensor]:
        """The numbers of the images that fall to a rank, of 0 to how many are looked at, in batches."""

    @abstractmethod
    def update(self, diffusion: GaussianDiffusion, indices: Tensor) -> None:
        """Add the images under these numbers."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The scores by name, the same on every rank."""

    @abstractmethod
    def details(self) -> dict[str, NDArray[np.float64]]:
        """After `compute`: what the scores are made of, time by time."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """What was measured, in plain values."""
