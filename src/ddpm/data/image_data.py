"""What all data sets share: loaders, scaling, flips. A new set adds its facts and how it is read."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import Dataset

from ddpm.data.facts import Batch, Facts
from ddpm.data.stream import Permuted, TrainBatches, ranges
from ddpm.data.workers import Loader
from ddpm.errors import Refused
from ddpm.images import from_levels
from ddpm.noise import Stream, uniform
from ddpm.signals import outlived


@runtime_checkable
class ImageSet(Protocol):
    """The images of one split as they are stored."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Levels (b, c, h, w) uint8 in {0, ..., num_levels - 1}, and labels (b,) int64, -1 where none."""
        ...


@dataclass(frozen=True)
class TensorSet:
    """Images that fit into memory: levels (N, c, h, w) uint8 and labels (N,) int64."""

    levels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(indices, dtype=torch.long)
        return self.levels[index], self.labels[index]


class RawBatch(NamedTuple):
    """A batch on its way to the device, where a byte a level is a quarter of a float."""

    levels: Tensor  # (b, c, h, w) uint8
    labels: Tensor  # (b,) int64
    number: Tensor  # (b,) int64


def as_they_are(numbers: Tensor) -> Tensor:
    """The order of what is no stream: number n is index n."""
    return numbers


@dataclass(frozen=True)
class _Batches(Dataset["RawBatch | Refused"]):
    """A data set whose keys are the numbers of a whole batch, so that a worker decodes batches.

    A refusal travels as a value: raised in a worker, it would arrive as a traceback in a string.
    """

    images: ImageSet
    order: Callable[[Tensor], Tensor]

    def __getitem__(self, numbers: Tensor) -> RawBatch | Refused:
        try:
            return RawBatch(*self.images[self.order(numbers)], numbers)
        except Refused as refusal:
            return refusal


def flipped(images: Tensor, number: Tensor, seed: int) -> Tensor:
    """Images (b, c, h, w), each mirrored left to right or not by a toss that its number (b,) decides."""
    heads = uniform(seed, Stream.FLIP, number) < 0.5
    return torch.where(heads.reshape(-1, 1, 1, 1), images.flip(-1), images)


class ImageData(LightningDataModule, ABC):
    """Images in [-1, 1] for training, validation and measurement.

    Args:
        root: the folder of the data's files; None where a set needs none or has a default.
        batch_size: images an optimiser step, over all ranks and accumulated batches.
        num_workers: processes a rank that read images; 0 reads in the training process.
        flip: mirror each training image left to right with probability 1/2.
        seed: of the order and the flips.

    Raises:
        Refused: if batch_size is not positive or num_workers negative.
    """

    def __init__(self, *, root: str | None, batch_size: int, num_workers: int, flip: bool, seed: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise Refused(f"data.batch_size={batch_size} leaves nothing to train on: choose at least 1")
        if num_workers < 0:
            raise Refused(f"data.num_workers={num_workers} must be 0 (no extra process) or more")
        self.root, self.batch_size, self.num_workers = root, batch_size, num_workers
        self.flip, self.seed = flip, seed
        self._opened: dict[str, ImageSet] = {}
        self._began_with: str | None = None

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """What is known of the data; opens no image."""

    @abstractmethod
    def read(self, split: str) -> ImageSet:
        """Open "train" or "test"; `load` asks once for each.

        Raises:
            Refused: if the files are missing, wrong or unreadable.
        """

    def load(self, split: str) -> ImageSet:
        """The images of "train" or "test", opened once.

        Raises:
            Refused: for any other split, and if the data cannot be read.
        """
        if split not in ("train", "test"):
            raise Refused(f"{self.facts.name} has no split {split!r}: choose train or test")
        if split not in self._opened:
            self._opened[split] = self.read(split)
        return self._opened[split]

    def batch(self, split: str, indices: Sequence[int] | Tensor) -> Batch:
        """The images at these indices of a split, unflipped, on the CPU; `number` is their index."""
        numbers = torch.as_tensor(indices, dtype=torch.long)
        return self._scaled(_Batches(self.load(split), as_they_are)[numbers])

    def batches(self, split: str, batch_size: int, indices: Sequence[int] | Tensor | None = None) -> Iterator[Batch]:
        """A split, or these indices of it, in order, in batches of at most that size; unflipped, on CPU."""
        images = self.load(split)
        chosen = torch.arange(len(images)) if indices is None else torch.as_tensor(indices, dtype=torch.long)
        for raw in self._loader(_Batches(images, as_they_are), torch.split(chosen, batch_size)):
            yield self._scaled(raw)

    def indices_of(self, number: Tensor) -> Tensor:
        """Where in the training split the images with these numbers (b,) lie: int64 (b,)."""
        return self._order()(number.cpu())

    @property
    def identity(self) -> str:
        """What tells the training images from those of another day, without opening them."""
        return f"{len(self.load('train'))} images"

    def state_dict(self) -> dict[str, Any]:
        return {"identity": self._began_with or self.identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run goes on with the images that it began with: others would come in another order.

        Raises:
            Refused: if they are not the same.
        """
        before = state_dict["identity"]
        if before != self.identity:
            raise Refused(
                f"this run was begun with other data ({self.facts.name}: {before} then, {self.identity} now): "
                "bring its files back as they were, or set name=NAME for a new run"
            )

    def setup(self, stage: str) -> None:
        """Open what the stage needs, so that data which cannot be read end a run before it starts."""
        if stage == "fit":
            self.load("train")
            self._began_with = self.identity  # before any file changes
        self.load("test")

    def train_dataloader(self) -> Loader[RawBatch | Refused]:
        """This rank's micro-batches, without end, from the trainer's global step on."""
        trainer = self._attached()
        return self._loader(self._stream(), self.numbers(lambda: trainer.global_step))

    def numbers(self, first_step: Callable[[], int]) -> TrainBatches:
        """The numbers of this rank's micro-batches, without end, from a step on."""
        trainer = self._attached()
        return TrainBatches(
            global_batch=self.batch_size,
            first_step=first_step,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            accumulation=trainer.accumulate_grad_batches,
        )

    def trained_on(self, number: Tensor, device: torch.device) -> Batch:
        """What training sees under these numbers (b,), read anew."""
        raw = self._stream()[number]
        return self._flipped(self._scaled(raw if isinstance(raw, Refused) else RawBatch(*(x.to(device) for x in raw))))

    def val_dataloader(self) -> Loader[RawBatch | Refused]:
        """This rank's share of the test split, in batches no larger than those of training."""
        trainer, images = self._attached(), self.load("test")
        at_most = max(1, self.batch_size // (trainer.world_size * trainer.accumulate_grad_batches))
        share = ranges(len(images), at_most, trainer.global_rank, trainer.world_size)
        return self._loader(_Batches(images, as_they_are), share)

    def on_after_batch_transfer(self, batch: RawBatch | Refused, dataloader_idx: int) -> Batch:
        """Scale, and in training flip, where the batch already is: on the device."""
        scaled = self._scaled(batch)
        return self._flipped(scaled) if self._attached().training else scaled

    def _flipped(self, batch: Batch) -> Batch:
        return batch._replace(images=flipped(batch.images, batch.number, self.seed)) if self.flip else batch

    def _scaled(self, raw: RawBatch | Refused) -> Batch:
        if isinstance(raw, Refused):
            raise raw
        return Batch(from_levels(raw.levels, self.facts.num_levels), raw.labels, raw.number)

    def _stream(self) -> _Batches:
        return _Batches(self.load("train"), self._order())

    def _order(self) -> Permuted:
        return Permuted(len(self.load("train")), self.seed)

    def _attached(self) -> Trainer:
        if self.trainer is None:
            raise RuntimeError("the loaders share the data out among a Trainer's ranks: attach one first")
        return self.trainer

    def _loader(self, data: _Batches, numbers: Iterable[Tensor]) -> Loader[RawBatch | Refused]:
        workers = self.num_workers
        return Loader(
            data,
            batch_size=None,  # `numbers` already are batches
            sampler=numbers,
            num_workers=workers,
            worker_init_fn=outlived,
            persistent_workers=workers > 0,
            timeout=0,  # so DataLoader looks every five seconds if its workers live; else it only waits
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            generator=torch.Generator(),  # it seeds workers that draw nothing; spare the global generator
        )
