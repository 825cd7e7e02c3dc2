"""A run whose numbers are lost stops at once, before an optimiser step, the average or a file takes them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from ddpm.callbacks.deferred import Deferred
from ddpm.callbacks.lost import FILE, Lost, is_sharded
from ddpm.data.image_data import ImageData
from ddpm.errors import Diverged, Refused
from ddpm.model.sharded import whole


class StopOnNonFinite(Callback):
    """Raises Diverged when the loss, or the norm of its gradient, is nan or infinite.

    The message names the step, its images, and what overflowed first when the step is run once more; `diverged.json`
    in the run's folder has them all.

    Ranks stop together. What a rank saw is summed over all of them, after the gradients are, so that each
    reads the same numbers in the same step and none is left waiting for another.

    The numbers are read before the optimiser steps: weights and averages stay good. On a GPU that would make the
    host wait for the device in every step. So a fused optimizer is told on the device to leave a bad step out, while
    the numbers are copied behind the host's back and read one step later, when they have long arrived, but always
    before a file is written or a validation begins. Others are waited for.

    Under the loss scaling of 16-mixed a gradient that overflows is an everyday event, which the scaler answers by
    leaving the step out and halving its scale. Such steps are counted (`train/skipped_steps`), and the run ends only
    after `most_left_out` of them in a row.
    """

    def __init__(self, *, most_left_out: int, folder: Path, data: ImageData) -> None:
        if most_left_out < 1:
            raise Refused(f"callbacks.finite.most_left_out is {most_left_out}; it must be at least 1.")
        self.most_left_out, self.folder, self.data = most_left_out, folder, data
        self.skipped = self.in_a_row = 0
        self._bad_loss: Tensor | None = None  # on the device: any in the micro-batches of this step?
        self._unread: Verdict | None = None
        self._end: Diverged | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What an earlier attempt left is out of date."""
        if trainer.is_global_zero:
            (self.folder / FILE).unlink(missing_ok=True)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        bad = ~torch.isfinite(loss.detach())
        self._bad_loss = bad if self._bad_loss is None else self._bad_loss | bad

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.check(trainer)
        bad_loss, self._bad_loss = self._bad_loss, None
        assert bad_loss is not None
        counts = torch.stack([bad_loss, ~torch.isfinite(_gradient_norm(pl_module))]).float()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(counts)
        step = trainer.global_step + 1
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            self.count(trainer, Verdict(step, Deferred(counts, None)))
        elif self.may_wait(trainer, optimizer, counts):
            optimizer.found_inf = counts.sum().clamp(max=1)  # type: ignore[attr-defined]  # the loss scaler's own way
            self._unread = Verdict(step, Deferred.of(counts))
        else:
            self.judge(trainer, Verdict(step, Deferred(counts, None)))

    def may_wait(self, trainer: Trainer, optimizer: Optimizer, counts: Tensor) -> bool:
        """May the host read these later, since the device leaves a bad step out by itself? Not where a timestep
        learns from the losses, by which a second run of the step would see other t, nor where weights are spread over
        ranks."""
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        learns = trainer.lightning_module.timestep.learns  # type: ignore[union-attr]
        return counts.is_cuda and fused and not learns and not is_sharded(trainer)

    def count(self, trainer: Trainer, verdict: "Verdict") -> None:
        """A step of a loss scaler, which reads the same numbers in a moment: waiting costs nothing."""
        losses, gradients = verdict.counts.read()
        self.in_a_row = self.in_a_row + 1 if gradients else 0
        self.skipped += bool(gradients)
        if verdict.step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            trainer.lightning_module.log("train/skipped_steps", float(self.skipped))
        if self.in_a_row >= self.most_left_out or (losses and not gradients):
            self.judge(trainer, verdict)

    def judge(self, trainer: Trainer, verdict: "Verdict") -> None:
        """Raises Diverged if the step was bad; all ranks come here together."""
        losses, gradients = verdict.counts.read()
        if losses or gradients:
            what = "training loss" if losses else "gradient of the training loss"
            raise Lost(what, verdict.step, self.in_a_row).told(trainer, self.data, self.folder)

    def check(self, trainer: Trainer) -> None:
        """Raises Diverged if the last step was bad, and once more when that exception asks for a save."""
        if self._unread is not None:
            unread, self._unread = self._unread, None
            try:
                self.judge(trainer, unread)
            except Diverged as end:
                self._end = end
        if self._end is not None:
            raise self._end

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        self.check(trainer)
        if not all(parameter.isfinite().all() for parameter in pl_module.parameters()):
            raise Diverged(
                f"The weights are nan or infinite after step {trainer.global_step}, whose loss and gradient were not; "
                "they are not saved. Lower optimizer.lr."
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row} if self.skipped else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]


@dataclass(frozen=True)
class Verdict:
    """How many ranks met a bad loss and a bad gradient in a step."""

    step: int
    counts: Deferred


def _gradient_norm(module: LightningModule) -> Tensor:
    return whole(get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))
