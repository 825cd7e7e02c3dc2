"""Metrics that need the features themselves: some are kept, on disk, until the score is computed."""

import tempfile
from abc import abstractmethod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ddpm.errors import Refused
from ddpm.metric.cache import writable
from ddpm.metric.features import FeatureBatch, Features, exact
from ddpm.metric.real import real, spoken
from ddpm.metric.reference import Rows, reference_features
from ddpm.metric.sample_metric import SampleMetric, is_first_rank, over_ranks, refuse_miscounted
from ddpm.metric.source import Source

_BLOCK = 4096  # images that are in memory at once, where they need not all be


class KeptMetric(SampleMetric):
    """A metric of the features of samples and of real images; of each, at most so many.

    Each rank writes those of its samples to a file of its own, which is gone when the score is computed or
    the process ends, however it ends. Then the ranks put them together, block by block, without sharing a
    disk; the first rank computes and tells the others.

    Args:
        features: the extractor.
        reference: the real images: "train", "test" or a folder.
        at_most: how many features of either are kept: of samples the first, of real images evenly spaced ones.
        cache: the folder of the real images' features, and of the files.

    Raises:
        Refused: if fewer are kept than the metric needs.
    """

    keeps_reference = True

    def __init__(self, *, features: Features, reference: str, at_most: int, cache: str) -> None:
        super().__init__(features=features)
        self.reference, self.at_most, self.cache = reference, at_most, Path(cache)
        self.of_real: Rows = np.empty((0, 0), dtype=np.float32)
        self.reference_name = ""
        self._shard = Shard(self.cache)
        self._refuse(at_most, "at_most")

    @property
    def variant(self) -> str:
        return spoken(self.reference)

    @property
    def kept(self) -> int:
        """How many samples' features are kept."""
        return min(self.num_images, self.at_most)

    def prepare(self, data: Source) -> None:
        super().prepare(data)
        images = real(data, self.reference)
        self._refuse(len(images), f"the number of {self.reference} images")
        self.reference_name = images.name
        self.of_real = reference_features(self.features, images, self.at_most, str(self.cache))

    def refuse_few(self, num_images: int) -> None:
        self._refuse(num_images, "num_images")

    def reset(self, num_images: int) -> None:
        super().reset(num_images)
        self._shard.close()
        self._shard = Shard(self.cache)

    def update(self, batch: FeatureBatch, number: Tensor) -> None:
        number = number.cpu()
        first = number < self.at_most
        self._shard.add(number[first], batch.features.cpu()[first], seen=len(number))

    def compute(self) -> dict[str, float]:
        try:
            refuse_miscounted(self.name, self.num_images, self._shard.times(self.kept), self._shard.seen)
            features = self._together()
            scores = torch.zeros(len(self.names), dtype=torch.float64)
            try:
                if features is not None:
                    with exact(self.features.device):
                        scores = torch.tensor(self.score(features, torch.from_numpy(self.of_real)), dtype=scores.dtype)
            finally:  # the others wait for it also where this has failed
                scores = over_ranks(scores)
            return dict(zip(self.names, scores.tolist(), strict=True))
        finally:
            self._shard.close()

    def protocol(self) -> dict[str, Any]:
        counts = {"reference_images": len(self.of_real), "at_most": self.at_most}
        return super().protocol() | {"reference": self.reference_name} | counts

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The keys of the scores, `name` among them."""

    @property
    @abstractmethod
    def least(self) -> int:
        """How many images, of either kind, there must be."""

    @abstractmethod
    def score(self, features: Tensor, of_real: Tensor) -> tuple[float, ...]:
        """The scores in the order of the names, from float32 features (n, d) of samples and (m, d) of real images."""

    def _refuse(self, count: int, what: str) -> None:
        if count < self.least:
            raise Refused(f"{self.name} needs at least {self.least} images, and {what} is {count}")

    def _together(self) -> Tensor | None:
        """The kept features of all ranks, in the order of the images; None but on the first rank."""
        together = torch.empty(self.kept, self.features.num_features) if is_first_rank() else None
        for start in range(0, self.kept, _BLOCK):
            stop = min(start + _BLOCK, self.kept)
            block = over_ranks(self._shard.block(start, stop, self.features.num_features))
            if together is not None:
                together[start:stop] = block
        return together


class Shard:
    """Rows (d,) float32 by number, in a file without a name: it goes when it is closed or its process dies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen = 0
        self._file: IO[bytes] | None = None
        self._numbers = [torch.empty(0, dtype=torch.int64)]

    def add(self, number: Tensor, rows: Tensor, seen: int) -> None:
        """Append rows (b, d) under their numbers (b,), out of so many images that were seen.

        Raises:
            Refused: if the folder cannot be written.
        """
        self.seen += seen
        self._numbers.append(number)
        with writable(self.folder):
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 (it outlives this call)
            self._file.write(rows.float().contiguous().numpy().data)

    def times(self, count: int) -> Tensor:
        """How often each of the numbers 0 ... count - 1 was added: int64 (count,)."""
        return torch.bincount(torch.cat(self._numbers), minlength=count)[:count]

    def block(self, start: int, stop: int, width: int) -> Tensor:
        """The rows (stop - start, width) under the numbers from start on; zeros under those that are not here."""
        block = torch.zeros(stop - start, width)
        numbers = torch.cat(self._numbers)
        [here] = ((numbers >= start) & (numbers < stop)).nonzero(as_tuple=True)
        if self._file is not None and len(here):
            self._file.flush()
            rows = np.memmap(self._file, dtype=np.float32, mode="r", shape=(len(numbers), width))
            block[numbers[here] - start] = torch.from_numpy(rows[here.numpy()])
        return block

    def close(self) -> None:
        """Remove the file, and forget what was in it."""
        self._numbers = [torch.empty(0, dtype=torch.int64)]
        if self._file is not None:
            self._file.close()
            self._file = None
