"""Real images for the tests of metrics: scikit-learn's digits, as few as a test wants."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ddpm.data.facts import Batch, Facts
from ddpm.data.image_data import TensorSet
from ddpm.images import from_levels, to_uint8


@dataclass(frozen=True)
class Few:
    """A data set in memory that is no LightningDataModule: all that a sample metric may ask for."""

    facts: Facts
    splits: dict[str, TensorSet]
    identity: str = ""

    def load(self, split: str) -> TensorSet:
        return self.splits[split]

    def batches(self, split: str, batch_size: int, indices: Sequence[int] | Tensor | None = None) -> Iterator[Batch]:
        chosen = torch.arange(len(self.load(split))) if indices is None else torch.as_tensor(indices)
        for part in chosen.split(batch_size):
            levels, labels = self.load(split)[part]
            yield Batch(from_levels(levels, self.facts.num_levels), labels, part)

    def pixels(self, split: str) -> Tensor:
        """All images of a split as uint8 in {0, ..., 255}."""
        return torch.cat([to_uint8(batch.images) for batch in self.batches(split, 100)])

    def without_labels(self) -> "Few":
        splits = {
            name: TensorSet(images.levels, torch.full_like(images.labels, -1)) for name, images in self.splits.items()
        }
        return Few(replace(self.facts, class_names=()), splits)


def digits(train: int = 1500, test: int = 297, classes: Sequence[int] = tuple(range(10))) -> Few:
    """So many digits, of these classes, to train and to test."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    levels, label = torch.from_numpy(pixels).to(torch.uint8).reshape(-1, 1, 8, 8), torch.from_numpy(labels)
    order = order[torch.isin(label[order], torch.tensor(classes))]
    chosen = {"train": order[:train], "test": order[train : train + test]}
    facts = Facts("digits", (1, 8, 8), 17, tuple(str(digit) for digit in range(10)), "a permutation")
    return Few(facts, {name: TensorSet(levels[index], label[index].long()) for name, index in chosen.items()})


def classes_apart(count: int) -> Few:
    """Zeros to train on, and as many ones to test."""
    zeros, ones = digits(train=count, classes=[0]), digits(train=count, classes=[1])
    return Few(zeros.facts, {"train": zeros.load("train"), "test": ones.load("train")})
