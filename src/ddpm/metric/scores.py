"""Several metrics at once: each image passes each extractor once."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ddpm.images import to_uint8
from ddpm.metric.features import Features
from ddpm.metric.sample_metric import SampleMetric
from ddpm.metric.source import Source


class Scores:
    """Metrics that see the same samples; those whose features are the same share one extractor.

    refuse_few(N) and prepare(data) once; then reset(N), update(...) with each of the N images once, and compute() on
    all ranks.
    """

    def __init__(self, metrics: Iterable[SampleMetric]) -> None:
        self.metrics = list(metrics)

    def refuse_few(self, num_images: int) -> None:
        """What is asked for before anything is made ready.

        Raises:
            Refused: if so many images are too few for one of the metrics.
        """
        for metric in self.metrics:
            metric.refuse_few(num_images)

    def prepare(self, data: Source) -> None:
        """Prepare each metric where its extractor is, and let go of the extractors that are there twice.

        Raises:
            Refused: if one cannot be prepared.
        """
        first: dict[str, Features] = {}
        # Those that keep the reference's features come first: the statistics of others are made of them.
        for metric in sorted(self.metrics, key=lambda metric: not metric.keeps_reference):
            metric.prepare(data)
            metric.features = first.setdefault(metric.features.key, metric.features)

    def to(self, device: torch.device | str) -> None:
        """Move the extractors; "cpu" gives a GPU's memory back."""
        for metric in self.metrics:
            metric.features.to(device)

    def reset(self, num_images: int) -> None:
        """Forget all images, and expect so many."""
        for metric in self.metrics:
            metric.reset(num_images)

    def update(self, images: Tensor, number: Tensor) -> None:
        """Add images (b, c, h, w) in [-1, 1], as the 8 bits of a file; `number` (b,) says which they are."""
        pixels = to_uint8(images)
        for features in {metric.features.key: metric.features for metric in self.metrics}.values():
            batch = features(pixels)
            for metric in self.metrics:
                if metric.features is features:
                    metric.update(batch, number)

    def compute(self) -> dict[str, float]:
        """All scores by name, the same on every rank."""
        return {name: score for metric in self.metrics for name, score in metric.compute().items()}
