"""A run that a signal asks to end does so between two steps, on all ranks at once, after a save."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ddpm.callbacks.checkpoint import SaveLast, before_this_batch
from ddpm.signals import ASKING, Stopped, heed, urgency


class StopWhenAsked(Callback):
    """Stands last among the callbacks, and raises Stopped.

    In place of what Lightning does: it would end the rank that the signal came to, or save at whatever line the
    handler was called, from where a run can not go on exactly.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        heed()  # Lightning has just set its own handlers, and will take these away again

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        if asked := agreed(trainer):
            with before_this_batch(trainer):
                save(trainer)
            raise Stopped(ASKING[asked - 1])


def agreed(trainer: Trainer) -> int:
    """The most urgent that any rank was told, on all of them."""
    mine = urgency()
    if trainer.world_size == 1:
        return mine
    told = torch.tensor(float(mine), device=trainer.strategy.root_device)
    torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
    return int(told)


def save(trainer: Trainer) -> None:
    """The last checkpoint, if the run has any."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SaveLast):
            callback.save(trainer)
