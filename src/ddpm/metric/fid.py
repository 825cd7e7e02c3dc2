"""Frechet inception distance (Heusel et al. 2017), and its like on other features."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.metric.cache import cached, fingerprint
from ddpm.metric.features import FeatureBatch, Features
from ddpm.metric.real import Real, real, spoken, unseen
from ddpm.metric.reference import Statistics, given, moments, reference_statistics, statistics, statistics_of
from ddpm.metric.sample_metric import SummedMetric, warn
from ddpm.metric.source import Source, evenly

_PUBLISHED = 50_000  # images of which published values are


class FrechetDistance(SummedMetric):
    """The Frechet distance between Gaussians fitted to features of samples and of real images.

    Args:
        features: the extractor.
        reference: the real images: "train" as in most papers, "test" or a folder; or an .npz with their mu
            and sigma, as pytorch-fid writes it.
        cache: the folder where statistics are kept.
    """

    kind = "fd"
    larger_is_better = False

    def __init__(self, *, features: Features, reference: str, cache: str) -> None:
        super().__init__(features=features)
        self.reference, self.cache = reference, cache
        self.statistics: Statistics | None = None
        self.reference_name = ""
        self._unseen: Real | None = None

    @property
    def variant(self) -> str:
        return spoken(self.reference)

    def prepare(self, data: Source) -> None:
        super().prepare(data)
        if self.reference.endswith(".npz"):
            self.statistics = given(Path(self.reference), self.features)
            self.reference_name = f"{Path(self.reference).name}-{_fingerprint(self.statistics)}"
        else:
            images = real(data, self.reference)
            self.statistics, self.reference_name = reference_statistics(self.features, images, self.cache), images.name
        self._unseen = unseen(data, self.reference)

    def reset(self, num_images: int) -> None:
        if num_images != self.num_images and num_images < _PUBLISHED:
            self._warn(num_images)
        super().reset(num_images)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        width = self.features.num_features
        return {"features": (width,), "squares": (width, width)}

    def terms(self, batch: FeatureBatch, number: Tensor) -> Mapping[str, Tensor]:
        return moments(batch.features)

    def score(self, totals: Mapping[str, Tensor]) -> dict[str, float]:
        return {self.name: self._to_reference(statistics(totals, self.num_images))}

    def protocol(self) -> dict[str, Any]:
        assert self.statistics is not None
        told = {"reference": self.reference_name, "reference_images": self.statistics.count}
        return super().protocol() | told

    def of_unseen(self, count: int) -> float | None:
        """The distance of so many real images that are not in the reference, from the cache if it has it; None
        where there are not so many. A perfect model would score it."""
        assert self.statistics is not None  # prepare comes first
        if self._unseen is None or len(self._unseen) < count:
            return None
        key = fingerprint({}, _fingerprint(self.statistics), self._unseen.identity, self.features.key, count)
        path = Path(self.cache) / f"unseen-{self._unseen.split}-{self.features.name}-{key}.json"
        images, chosen = self._unseen, evenly(len(self._unseen), count)
        return cached(
            path,
            read=_read,
            make=lambda: self._to_reference(statistics_of(images.features(self.features, chosen))),
            write=_write,
        )

    def _to_reference(self, other: Statistics) -> float:
        assert self.statistics is not None  # prepare comes first
        return frechet_distance(self.statistics, other)

    def _warn(self, count: int) -> None:
        floor = self.of_unseen(count)
        perfect = "" if floor is None else f": as many real images that are not in the reference get {floor:.4g}"
        warn("%s of %d images is not comparable with values of %d images%s", self.name, count, _PUBLISHED, perfect)


class FID(FrechetDistance):
    """The Frechet distance as papers mean it, on Inception's features; with another extractor its name says so."""

    kind = "fid"


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


def _fingerprint(given: Statistics) -> str:
    return fingerprint({"mu": given.mu, "sigma": given.sigma})


def _read(path: Path) -> float:
    return float(json.loads(path.read_text())["distance"])


def _write(distance: float, path: Path) -> None:
    path.write_text(json.dumps({"distance": distance}))
