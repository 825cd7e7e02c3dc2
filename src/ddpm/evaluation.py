"""Evaluation: what a set of metrics says of a model, whether a training run or `evaluate.py` asks.

Sample metrics look at images 0, ..., num_images - 1 of a seed, data metrics at images of the data. Both are
dealt out to the ranks as fixed ranges of indices, and reduce by themselves.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from ddpm.data.image_data import ImageData
from ddpm.data.stream import as_loader, index_batches
from ddpm.errors import Refused
from ddpm.metric import DataMetric, SampleMetric, Scores
from ddpm.sampling import SamplingModule


class Evaluation:
    """Some metrics by name, and how many samples they look at in batches of what size on each rank.

    Raises Refused for fewer samples than a metric needs or an empty batch.
    """

    def __init__(
        self,
        metrics: Mapping[str, SampleMetric | DataMetric],
        data: ImageData,
        num_images: int,
        batch_size: int,
    ) -> None:
        self.metrics, self.data, self.num_images, self.batch_size = metrics, data, num_images, batch_size
        self.of_data = [metric for metric in metrics.values() if isinstance(metric, DataMetric)]
        self.of_samples = Scores(metric for metric in metrics.values() if isinstance(metric, SampleMetric))
        if batch_size < 1:
            raise Refused(f"the batch size of an evaluation is {batch_size}; it must be at least 1.")
        self.of_samples.refuse_few(num_images)

    def prepare(self, device: torch.device) -> None:
        """Get all weights and reference statistics, so that what is missing shows before a run starts."""
        self.of_samples.to(device)
        self.of_samples.prepare(self.data)
        self.of_samples.reset(self.num_images)  # what there is to say of so few is said here
        self.of_samples.to("cpu")
        for metric in self.of_data:
            metric.prepare(self.data)

    def sample_batches(self, rank: int, world_size: int) -> list[Tensor]:
        """The indices of the samples that fall to a rank; none if no metric looks at samples."""
        count = self.num_images if self.of_samples.metrics else 0
        return index_batches(count, self.batch_size, rank, world_size)

    def reset(self, device: torch.device, num_steps: int) -> None:
        """Start over, with the extractors on this device, for a model of T = num_steps."""
        self.of_samples.reset(self.num_images)
        self.of_samples.to(device)
        for metric in self.of_data:
            metric.reset(num_steps)

    def results(self) -> dict[str, float]:
        """The scores of all ranks together; a GPU gets the extractors' memory back."""
        scores = self.of_samples.compute()
        self.of_samples.to("cpu")
        for metric in self.of_data:
            scores |= metric.compute()
        return scores

    def protocol(self) -> dict[str, dict[str, Any]]:
        """What makes each score comparable with another."""
        return {name: metric.protocol() for name, metric in self.metrics.items()}

    def run(
        self, model: SamplingModule, rank: int, world_size: int, look: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """All of it, on the device of the model. All ranks `look` up together before each batch that all of them have,
        and at the end."""
        self.reset(model.device, model.diffusion.num_steps)
        parts: list[tuple[Callable[..., list[Tensor]], Callable[[Tensor], None]]] = [
            (self.sample_batches, lambda indices: self.see_samples(model, indices.to(model.device))),
            *((metric.batches, partial(metric.update, model.diffusion)) for metric in self.of_data),
        ]
        for batches, see in parts:
            fewest = len(batches(world_size - 1, world_size))  # the last rank's, where they are dealt out in turn
            for k, indices in enumerate(batches(rank, world_size)):
                if k < fewest:
                    look()
                see(indices)
        look()
        return self.results()

    def see_samples(self, model: SamplingModule, indices: Tensor) -> None:
        """Draw the images at these indices and show them to the metrics."""
        self.of_samples.update(model.predict_step(indices), indices)


class ScoringModule(LightningModule):
    """An evaluation as predict steps, so that it runs on whatever the Trainer runs on."""

    def __init__(self, evaluation: Evaluation, model: SamplingModule) -> None:
        super().__init__()
        self.evaluation, self.model = evaluation, model
        self.scores: dict[str, float] = {}

    def on_predict_start(self) -> None:
        self.evaluation.reset(self.device, self.model.diffusion.num_steps)

    def on_predict_end(self) -> None:
        """While the ranks still mind each other: one may be lost here too."""
        self.scores = self.evaluation.results()

    def loaders(self, rank: int, world_size: int) -> list[DataLoader[Tensor]]:
        """A rank's samples, then its share of each data metric's images: batches of indices."""
        of_data = [metric.batches(rank, world_size) for metric in self.evaluation.of_data]
        return [as_loader(batches) for batches in (self.evaluation.sample_batches(rank, world_size), *of_data)]

    def predict_step(self, indices: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        if len(indices) == 0:
            return
        if dataloader_idx == 0:
            self.evaluation.see_samples(self.model, indices)
        else:
            self.evaluation.of_data[dataloader_idx - 1].update(self.model.diffusion, indices)
