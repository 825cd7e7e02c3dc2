"""A run that a signal asks to end does so on all ranks at once, and can be gone on with exactly.

Between two steps it is saved there and then. What follows a step, a validation, scores or a picture, may last longer
than there is time; in the midst of it there is no state to save from which the rest could be made. So the run is saved
before such a step, which it makes again when it goes on.
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ddpm.callbacks.checkpoint import SaveLast, before_this_batch
from ddpm.callbacks.deferred import Deferred
from ddpm.callbacks.every import EveryNSteps
from ddpm.signals import ASKING, Stopped, heed, urgency


class StopWhenAsked(Callback):
    """Stands before the callbacks of a config, of which some log when a batch starts; raises Stopped.

    In place of what Lightning does: its handlers would end the rank that the signal came to, speak to the others in the
    midst of anything, or save at whatever line they were called, from where a run cannot go on exactly; and in every
    step of several ranks it has the host wait for the device, to hear of signals from the others. Here ranks hear of
    them one step later, when the word has long arrived.
    """

    def __init__(self) -> None:
        self._told: Deferred | None = None  # what all ranks were told before the last step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        heed()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        asked = self.asked(trainer)
        if asked or is_long(trainer.global_step + 1, trainer):
            with before_this_batch(trainer):
                save(trainer)
        if asked:
            raise Stopped(ASKING[asked - 1])

    def asked(self, trainer: Trainer) -> int:
        """The most urgent that any rank was told: by now, or where there are several before the last step."""
        if trainer.world_size == 1:
            return urgency()
        before, self._told = self._told, Deferred.of(most_urgent(trainer))
        return int(before.read()[0]) if before is not None else 0

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Every rank has as many of them."""
        end_if_asked(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        trainer.training = True  # a validation's end would leave the processes that read training images to themselves


def end_if_asked(trainer: Trainer) -> None:
    """In what follows a step: raises Stopped, on all ranks, where any was told to end."""
    asked = urgency() if trainer.world_size == 1 else int(most_urgent(trainer))
    if asked:
        raise Stopped(ASKING[asked - 1])


def most_urgent(trainer: Trainer) -> Tensor:
    """What any rank was told, (1,) on all of them."""
    told = torch.full((1,), float(urgency()), device=trainer.strategy.root_device)
    torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
    return told


def is_long(step: int, trainer: Trainer) -> bool:
    """Will something follow this step that may last? Not told of what a clock decides on."""
    every = trainer.val_check_batch
    if trainer.enable_validation and isinstance(every, int) and step * trainer.accumulate_grad_batches % every == 0:
        return True
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, EveryNSteps) and callback.is_due(step, trainer) for callback in callbacks)


def save(trainer: Trainer) -> None:
    """The last checkpoint, if the run has any."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SaveLast):
            callback.save(trainer)
