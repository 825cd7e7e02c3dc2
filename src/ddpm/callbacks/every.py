"""What the callbacks that do something every n optimiser steps share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ddpm.callbacks.ema import averaged
from ddpm.callbacks.throughput import pause
from ddpm.errors import Refused
from ddpm.model.sharded import gathered


class EveryNSteps(Callback, ABC):
    """Calls `act` after every n-th optimiser step and after the last one, once each, on all ranks."""

    def __init__(self, *, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise Refused(f"every_n_steps of {type(self).__name__} is {every_n_steps}; it must be at least 1.")
        self.every_n_steps = every_n_steps
        self._last_step = 0

    @abstractmethod
    def act(self, trainer: Trainer, module: LightningModule) -> None:
        """What is to be done at this step."""

    def is_due(self, step: int, trainer: Trainer) -> bool:
        """Will it act after this step?"""
        return step % self.every_n_steps == 0 or step == trainer.max_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that resumes has already acted at the step of its checkpoint."""
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._last_step and self.is_due(trainer.global_step, trainer):
            self._act_once(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The stream has no epochs: this is the end. A run that ended before its last step (a time limit, a
        signal) acts on what it has, before the last checkpoint is written."""
        if trainer.global_step > self._last_step:
            self._act_once(trainer, pl_module)

    def _act_once(self, trainer: Trainer, module: LightningModule) -> None:
        self._last_step = trainer.global_step
        self.act(trainer, module)


@contextmanager
def measuring(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Averaged weights, no dropout, no gradients and the run's precision, for as long as it lasts."""
    pause(trainer)
    was_training = module.training
    module.eval()
    try:
        with averaged(trainer), gathered(module), torch.no_grad(), trainer.precision_plugin.forward_context():
            yield
    finally:
        module.train(was_training)
