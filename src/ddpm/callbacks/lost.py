"""What is told of a step whose numbers were lost: its images, and what overflowed first when it is run again."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from ddpm.callbacks.overflow import first_overflow
from ddpm.data.image_data import ImageData
from ddpm.errors import Diverged
from ddpm.privacy import without_paths
from ddpm.whole import whole

FILE = "diverged.json"
_SHOWN = 8  # indices in the message


@dataclass(frozen=True, order=True)
class Place:
    """Where numbers were lost first: in which micro-batch (from 1) of which rank, and in what."""

    micro_batch: int
    rank: int
    where: str


@dataclass(frozen=True)
class Lost:
    """A loss or a gradient that is nan or infinite, in a step (from 1) of training.

    left_out  how many steps a loss scaler has left out in a row, this one included
    """

    what: str
    step: int
    left_out: int

    def told(self, trainer: Trainer, data: ImageData, folder: Path) -> Diverged:
        """The exception that tells of it, and a file in the folder with all that is known.

        Each rank runs its own share of the step again; what one of them finds is told on all.
        """
        found = _agreed(trainer, self.found(trainer, data))
        first = (self.step - 1) * data.batch_size
        indices = data.indices_of(torch.arange(first, first + data.batch_size)).tolist()
        if trainer.is_global_zero:
            known = asdict(found) if isinstance(found, Place) else {"where": None, "why": without_paths(found)}
            _write(folder / FILE, asdict(self) | known | {"indices": indices})
        return Diverged(f"{self._sentence(trainer, found, indices, folder / FILE)}; {self._remedy(trainer)}.")

    def found(self, trainer: Trainer, data: ImageData) -> Place | str:
        """What this rank's share of the step, run once more, shows; or why it shows nothing."""
        if is_sharded(trainer):
            return "it is not run once more, since the weights are spread over ranks that would wait for each other"
        try:
            with _training(trainer):
                return self._again(trainer, data) or "run once more, all that it computes is finite"
        except Exception as fault:  # a file that is gone by now, memory that does not suffice: the run has ended anyway
            return f"it could not be run once more ({fault})"

    def _again(self, trainer: Trainer, data: ImageData) -> Place | None:
        module, accumulation = trainer.lightning_module, trainer.accumulate_grad_batches
        shares = islice(data.numbers(lambda: self.step - 1), accumulation)
        for k, number in enumerate(shares):
            loss_of = partial(_loss, trainer, data, number, (self.step - 1) * accumulation + k)
            if where := first_overflow(module, loss_of):
                return Place(k + 1, trainer.global_rank, where)
        return None

    def _sentence(self, trainer: Trainer, found: Place | str, indices: list[int], file: Path) -> str:
        steps = f"step {self.step}" if self.left_out < 2 else f"step {self.step}, as in the {self.left_out - 1} before"
        shown = ", ".join(map(str, indices[:_SHOWN])) + (", ..." if len(indices) > _SHOWN else "")
        return (
            f"The {self.what} is nan or infinite in {steps}: {_where(trainer, found)}, on {len(indices)} training "
            f"images, of indices {shown} (all in {file})"
        )

    def _remedy(self, trainer: Trainer) -> str:
        other = {"16-mixed": "bf16-mixed or 32-true", "bf16-mixed": "32-true"}.get(str(trainer.precision))
        compute = f", or compute in another precision (trainer.precision={other})" if other else ""
        return f"lower optimizer.lr, clip gradients harder (trainer.gradient_clip_val){compute}"


def is_sharded(trainer: Trainer) -> bool:
    """Are the weights spread over the ranks?"""
    return any(isinstance(part, FSDPModule) for part in trainer.lightning_module.modules())


def _where(trainer: Trainer, found: Place | str) -> str:
    if isinstance(found, str):
        return found
    parts = [f"micro-batch {found.micro_batch}"] if trainer.accumulate_grad_batches > 1 else []
    parts += [f"rank {found.rank}"] if trainer.world_size > 1 else []
    return f"first in {found.where}" + (f" ({', '.join(parts)})" if parts else "")


def _loss(trainer: Trainer, data: ImageData, number: Tensor, micro_step: int) -> Tensor:
    """The loss that training had of the images with these numbers."""
    batch = data.trained_on(number, trainer.strategy.root_device)
    with trainer.precision_plugin.forward_context():
        loss: Tensor = trainer.lightning_module.loss_of(batch, micro_step)[0]  # type: ignore[operator]
    return loss


@contextmanager
def _training(trainer: Trainer) -> Iterator[None]:
    """Within it the module trains, whoever asks; its gradients make room for another run."""
    module = trainer.lightning_module
    was_training = module.training
    module.zero_grad()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            module.train()
            yield
    finally:
        module.train(was_training)


def _agreed(trainer: Trainer, found: Place | str) -> Place | str:
    """Of what all ranks found the first, on each of them."""
    everyone: list[Any] = [found]
    if trainer.world_size > 1:
        everyone = [None] * trainer.world_size
        torch.distributed.all_gather_object(everyone, found)
    places = [one for one in everyone if isinstance(one, Place)]
    return min(places) if places else everyone[0]


def _write(file: Path, content: dict[str, Any]) -> None:
    with whole(file) as part:
        part.write_text(json.dumps(content) + "\n")
