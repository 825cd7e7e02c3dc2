"""Frechet inception distance (Heusel et al. 2017)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddpm.errors import Refused
from ddpm.metric.features import FeatureBatch, Features
from ddpm.metric.reference import Statistics, moments, reference, statistics
from ddpm.metric.sample_metric import SampleMetric
from ddpm.metric.source import Source


class FID(SampleMetric):
    """The Frechet distance between Gaussians fitted to features of samples and of a split of the data.

    Args:
        features: the extractor.
        split: of the data, "train" as in most papers or "test".
        cache: the folder where the split's statistics are kept.
    """

    kind = "fid"
    larger_is_better = False

    def __init__(self, *, features: Features, split: str, cache: str) -> None:
        super().__init__(features=features)
        self.split, self.cache = split, cache
        self.reference: Statistics | None = None

    def prepare(self, data: Source) -> None:
        super().prepare(data)
        self.reference = reference(self.features, data, self.split, self.cache)

    def reset(self, num_images: int) -> None:
        if num_images < 2:
            raise Refused(f"{self.name} needs at least two images, and num_images is {num_images}")
        super().reset(num_images)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        width = self.features.num_features
        return {"features": (width,), "squares": (width, width)}

    def terms(self, batch: FeatureBatch, number: Tensor) -> Mapping[str, Tensor]:
        return moments(batch.features)

    def score(self, totals: Mapping[str, Tensor]) -> dict[str, float]:
        assert self.reference is not None  # prepare comes first
        return {self.name: frechet_distance(self.reference, statistics(totals, self.num_images))}

    def protocol(self) -> dict[str, Any]:
        assert self.reference is not None
        told = {"reference_split": self.split, "reference_images": self.reference.count}
        return super().protocol() | told


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)) (Dowson and Landau 1982), in float64.

    The trace of the root is that of the symmetric (R S_2 R)^(1/2) with R = S_1^(1/2): its eigenvalues are
    those of S_1 S_2, found without a complex number, also where the covariances are singular.
    """
    values, vectors = torch.linalg.eigh(one.sigma)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ other.sigma @ root).clamp(min=0).sqrt().sum()
    apart = (one.mu - other.mu).square().sum()
    return float(apart + one.sigma.trace() + other.sigma.trace() - 2 * overlap)
