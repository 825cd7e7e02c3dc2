"""The distance of samples to their nearest training images: are they copies of what was trained on?"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm.errors import Refused
from ddpm.images import to_uint8
from ddpm.metric.cache import cached, fingerprint
from ddpm.metric.features import FeatureBatch, Features
from ddpm.metric.neighbours import Neighbours, few, nearest, none, together
from ddpm.metric.real import BATCH, Real, real, spoken
from ddpm.metric.reference import Rows, reference_features, rows, save
from ddpm.metric.sample_metric import SampleMetric, over_ranks, refuse_miscounted, warn
from ddpm.metric.source import Source, evenly


class Nearest(SampleMetric):
    """The share of samples that lie nearer to a training image than real images do that were not trained on.

    Nearer: than the nearest `quantile` of these held-out images. They themselves would score the quantile, copies
    score 1, and what looks like no real image scores 0. With it come the medians of the distance to the nearest
    training image, of the samples and of the held-out images. Distances are Euclidean, between features.

    A mirrored copy is not noticed, although flip=true trains on mirrored images too. Where held-out images have twins
    among the training images, as 3 % of CIFAR-10's have (Barz and Denzler 2020), the nearest of them are twins, and
    fewer samples count as nearer. In pixels, what is plain and smooth lies near much.

    Each rank looks for the neighbours of its own samples as they come, among one block of training images after the
    other; of a sample no more is kept than its distance. Of a few the image is kept too, for a picture: `first` and
    `closest` are there after `compute`.

    Args:
        features: the extractor.
        held_out: the real images that were not trained on: "test" or a folder.
        quantile: in (0, 1).
        at_most: how many training images, and how many held-out ones, are looked at: evenly spaced ones.
        neighbours: how many training images the picture shows of a sample.
        shown: how many samples it shows: so many of the first, and so many of those with the nearest neighbours.
        cache: the folder where features of training images and distances of held-out ones are kept.

    Raises:
        Refused: if one of the numbers is impossible.
    """

    kind = "share_nearer"
    larger_is_better = False
    keeps_reference = True
    first: Neighbours
    closest: Neighbours

    def __init__(
        self,
        *,
        features: Features,
        held_out: str,
        quantile: float,
        at_most: int,
        neighbours: int,
        shown: int,
        cache: str,
    ) -> None:
        super().__init__(features=features)
        if not 0 < quantile < 1:
            raise Refused(f"{self.kind} needs a quantile between 0 and 1, not {quantile}")
        if min(neighbours, shown) < 1 or at_most < neighbours:
            raise Refused(
                f"{self.kind} needs neighbours={neighbours} and shown={shown} to be at least 1, "
                f"and at_most={at_most} no fewer than the neighbours"
            )
        self.held_out, self.quantile, self.at_most = held_out, quantile, at_most
        self.neighbours, self.shown, self.cache = neighbours, shown, cache
        self.of_training: Rows = np.empty((0, 0), dtype=np.float32)
        self.of_held_out: Rows = np.empty(0, dtype=np.float32)
        self.held_out_name = ""

    @property
    def variant(self) -> str:
        return "" if self.held_out == "test" else spoken(self.held_out)

    @property
    def threshold(self) -> float:
        """The distance under which a sample counts as nearer."""
        return float(np.quantile(self.of_held_out.astype(np.float64), self.quantile))

    def prepare(self, data: Source) -> None:
        super().prepare(data)
        self.training, held_out = real(data, "train"), real(data, self.held_out)
        self._refuse(held_out)
        self.chosen = evenly(len(self.training), self.at_most)
        if len(self.chosen) < len(self.training):
            warn(
                "%s looks at %d of %d training images and takes no notice of copies of the others: raise its at_most",
                self.name, len(self.chosen), len(self.training),
            )  # fmt: skip
        self.of_training = reference_features(self.features, self.training, self.at_most, self.cache)
        self.held_out_name, self.of_held_out = held_out.name, self._distances(held_out)

    def reset(self, num_images: int) -> None:
        super().reset(num_images)
        self._seen = [(torch.empty(0, dtype=torch.int64), torch.empty(0))]
        self._few = none(self.training.data.facts.shape, self.neighbours)

    def update(self, batch: FeatureBatch, number: Tensor) -> None:
        assert batch.images is not None  # an extractor gives them
        number = number.cpu()
        distance, row = nearest(batch.features, self.of_training, self.neighbours)
        self._seen.append((number, distance[:, 0]))
        new = Neighbours(number, batch.images.cpu(), distance, self.chosen[row])
        self._few = few(self._few, new, self.shown)

    def compute(self) -> dict[str, float]:
        number, distance = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        counts = number.bincount(minlength=self.num_images)[: self.num_images]
        refuse_miscounted(self.name, self.num_images, counts, len(number))
        distance = over_ranks(torch.zeros(self.num_images).index_put((number,), distance))
        self.first = together(self._few, torch.arange(self.num_images)[: self.shown])
        self.closest = together(self._few, distance.argsort(stable=True)[: self.shown])
        self.reset(self.num_images)
        share = float((distance.double() < self.threshold).double().mean())
        medians = (float(np.median(array)) for array in (distance.numpy(), self.of_held_out))
        names = self.name, self.named("nearest"), self.named("nearest_held_out")
        return dict(zip(names, (share, *medians), strict=True))

    def protocol(self) -> dict[str, Any]:
        counts = {"training_images": len(self.of_training), "held_out_images": len(self.of_held_out)}
        return super().protocol() | {"quantile": self.quantile, "held_out": self.held_out_name} | counts

    def training_images(self, indices: Tensor) -> Tensor:
        """The training images at these indices (n,): uint8 (n, c, h, w)."""
        batches = self.training.data.batches(self.training.split, BATCH, indices)
        return torch.cat([to_uint8(batch.images) for batch in batches])

    def _refuse(self, held_out: Real) -> None:
        if held_out.probe == self.training.probe:
            raise Refused(
                f"{self.name} needs real images that were not trained on, and {held_out.data.facts.name} holds none "
                f"out: pass a folder of some as metric.{self.name}.held_out=FOLDER, or leave {self.name} out"
            )
        if len(self.training) < self.neighbours:
            raise Refused(f"{self.name} cannot show {self.neighbours} of {len(self.training)} training images")

    def _distances(self, held_out: Real) -> Rows:
        """Of the held-out images to their nearest training images, from the cache if it has them."""
        chosen = evenly(len(held_out), self.at_most)
        parts = self.training.identity, len(self.chosen), held_out.identity, len(chosen), self.features.key
        path = Path(self.cache) / f"nearest-{held_out.split}-{self.features.name}-{fingerprint({}, *parts)}.npy"
        return cached(
            path,
            read=lambda kept: rows(kept, (len(chosen),)),
            make=lambda: self._measured(held_out, chosen),
            write=save,
        )

    def _measured(self, held_out: Real, chosen: Tensor) -> Rows:
        batches = held_out.features(self.features, chosen)
        found = [nearest(batch.to(self.features.device), self.of_training, 1)[0] for batch in batches]
        return torch.cat(found)[:, 0].numpy()
