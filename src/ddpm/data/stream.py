"""The training images as one infinite stream, and how ranks share it out.

Image number n = 0, 1, 2, ... of a run is what the n-th image to be seen is called, whatever rank sees
it: it lies in pass n // N over the N images of the data, and each pass is a permutation of its own
that is a function of (seed, pass). Nothing has to be remembered to go on from any step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ddpm.errors import Refused
from ddpm.noise import Stream, generator

_SPLIT_SEED = 0  # of the split itself, which is the same for every seed of a run


@lru_cache(maxsize=2)  # a batch lies in one pass or, at a seam, in two
def permutation(seed: int, data_pass: int, num_images: int) -> Tensor:
    """The order of one pass over the data: a permutation of {0, ..., num_images - 1}, int64."""
    return torch.randperm(num_images, generator=generator(seed, Stream.ORDER, step=data_pass))


def split_indices(num_images: int, held_out: int) -> tuple[Tensor, Tensor]:
    """The indices that train and those that are held out, each ascending, by one fixed permutation."""
    order = permutation(_SPLIT_SEED, 0, num_images)
    return order[held_out:].sort().values, order[:held_out].sort().values


@dataclass(frozen=True)
class Permuted:
    """From the numbers of training images to their indices in the data."""

    num_images: int
    seed: int

    def __call__(self, numbers: Tensor) -> Tensor:
        """Numbers (b,) int64 to indices (b,) int64; they may lie in any passes."""
        passes = numbers.div(self.num_images, rounding_mode="floor")
        indices = torch.empty_like(numbers)
        for data_pass in set(passes.tolist()):
            here = passes == data_pass
            order = permutation(self.seed, data_pass, self.num_images)
            indices[here] = order[numbers[here] % self.num_images]
        return indices


def micro_batch(global_batch: int, world_size: int, accumulation: int) -> int:
    """How many images one of R ranks that accumulate A micro-batches sees at once: B / (R A).

    Raises:
        Refused: if R A does not divide B.
    """
    parts = world_size * accumulation
    if global_batch % parts:
        raise Refused(
            f"data.batch_size={global_batch}, the batch of all ranks together, cannot be shared out over {world_size} "
            f"ranks x {accumulation} accumulated batches; choose a multiple of {parts}, or other trainer.devices or "
            "trainer.accumulate_grad_batches."
        )
    return global_batch // parts


class TrainBatches(Sampler[Tensor]):
    """The numbers of one rank's micro-batches, without end, from the step at which iteration begins.

    Optimiser step k sees numbers [kB, (k + 1)B), B the global batch. Of R ranks that accumulate A
    micro-batches of m = B / (R A) images, micro-batch a of rank r holds the positions
    [(a R + r) m, (a R + r + 1) m): every R and A make the same global batches.

    Args:
        global_batch: B, images an optimiser step.
        first_step: asked, whenever iteration begins, for the number of steps taken so far.
        rank, world_size: r in {0, ..., R - 1} and R.
        accumulation: A, micro-batches an optimiser step.

    Raises:
        Refused: if R A does not divide B.
    """

    def __init__(
        self,
        *,
        global_batch: int,
        first_step: Callable[[], int],
        rank: int,
        world_size: int,
        accumulation: int,
    ) -> None:
        self.micro_batch = micro_batch(global_batch, world_size, accumulation)
        self.global_batch, self.first_step = global_batch, first_step
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation

    def __iter__(self) -> Iterator[Tensor]:
        """int64 tensors (m,) of numbers."""
        start = self.first_step() * self.global_batch + self.rank * self.micro_batch
        while True:  # position a of step k + 1 follows position A - 1 of step k at the same distance
            yield torch.arange(start, start + self.micro_batch)
            start += self.world_size * self.micro_batch


def ranges(num_images: int, at_most: int, rank: int, world_size: int) -> list[Tensor]:
    """One rank's share of {0, ..., num_images - 1}: contiguous ranges of about equal size, round-robin.

    Every rank gets equally many, so that ranks which meet in each batch never wait for each other
    in vain; none is empty or, as long as each rank has that many images, larger than `at_most`.

    Raises:
        Refused: if there are fewer images than ranks.
    """
    if num_images < world_size:
        raise Refused(
            f"{num_images} test images are too few for {world_size} ranks: choose fewer trainer.devices, "
            "more data.held_out, or trainer.limit_val_batches=0"
        )
    rounds = min(-(-num_images // (at_most * world_size)), num_images // world_size)
    count = rounds * world_size
    bounds = [i * num_images // count for i in range(count + 1)]
    return [torch.arange(bounds[i], bounds[i + 1]) for i in range(rank, count, world_size)]


def index_batches(num_images: int, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
    """One rank's share of the fixed ranges [kB, (k + 1)B) of {0, ..., num_images - 1}, round-robin: what is
    in a batch does not depend on how many ranks there are."""
    starts = range(0, num_images, batch_size)[rank::world_size]
    return [torch.arange(k, min(k + batch_size, num_images)) for k in starts]


def as_loader(batches: list[Tensor]) -> "DataLoader[Tensor]":
    """Batches of indices, for a Trainer to walk over; a rank without any walks over an empty one, since
    Lightning refuses to walk over nothing."""
    return DataLoader(batches or [torch.arange(0)], batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]
