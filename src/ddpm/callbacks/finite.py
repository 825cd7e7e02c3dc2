"""A run whose numbers are lost stops at once, before an optimizer step, the average or a file takes them."""

from dataclasses import dataclass

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from ddpm.errors import Diverged


class StopOnNonFinite(Callback):
    """Raises Diverged when the loss, or the norm of its gradient, is nan or infinite.

    Ranks stop together. What a rank saw is summed over all of them, after the gradients are, so that each
    reads the same numbers in the same step and none is left waiting for another.

    On a CPU the numbers are read before the optimizer steps: weights and averages stay good. On a GPU that
    would make the host wait for the device in every step, so they are copied behind its back and read one
    step later, when they have long arrived, but always before a file is written or a validation begins:
    at most the memory of a run that ends takes one bad step.

    Under the loss scaling of 16-mixed an infinite gradient is an everyday event, which the scaler answers
    by leaving the step out; there only the loss itself is watched.
    """

    def __init__(self) -> None:
        self._bad_loss: Tensor | None = None  # on the device: any in the micro-batches of this step?
        self.unread: Verdict | None = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        bad = ~torch.isfinite(loss.detach())
        self._bad_loss = bad if self._bad_loss is None else self._bad_loss | bad

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.check()
        bad_loss, self._bad_loss = self._bad_loss, None
        assert bad_loss is not None
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        bad_gradient = torch.zeros_like(bad_loss) if scaled else ~torch.isfinite(_gradient_norm(pl_module))
        counts = torch.stack([bad_loss, bad_gradient]).float()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(counts)
        self.judge(trainer.global_step + 1, counts)

    def judge(self, step: int, counts: Tensor) -> None:
        """Reads the counts now where that costs nothing, else leaves them for later."""
        if counts.is_cuda:
            on_host = torch.empty(counts.shape, pin_memory=True).copy_(counts, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
            self.unread = Verdict(step, on_host, arrived)
        else:
            Verdict(step, counts, None).read()

    def check(self) -> None:
        """Raises Diverged if the last step was bad, and once more when that exception asks for a save."""
        if self.unread is not None:
            self.unread.read()
            self.unread = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        self.check()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check()


@dataclass(frozen=True)
class Verdict:
    """How many ranks met a bad loss and a bad gradient in a step, and when the host may read it."""

    step: int
    counts: Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> None:
        """Raises Diverged if any did."""
        if self.arrived is not None:
            self.arrived.synchronize()
        losses, gradients = self.counts.tolist()
        if losses or gradients:
            what = "The training loss" if losses else "The gradient of the training loss"
            raise Diverged(
                f"{what} is nan or infinite in step {self.step}: lower optimizer.lr, clip gradients harder "
                "(trainer.gradient_clip_val), or compute in float32 (trainer.precision=32-true)."
            )


def _gradient_norm(module: LightningModule) -> Tensor:
    return get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
