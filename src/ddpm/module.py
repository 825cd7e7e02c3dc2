"""Training: the loss of a batch, validation, the optimiser.

All randomness of training is drawn here and is a function: t, eps and label drops of (seed, step, position
in the global batch), dropout of (seed, micro-batch, rank). Nothing has to be restored when a run resumes, and any
number of ranks sees the same batch.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from ddpm.data.facts import Batch
from ddpm.diffusion import GaussianDiffusion
from ddpm.lr_schedule import Factor
from ddpm.model.sharded import shard, whole
from ddpm.noise import Stream, normal, scalar, uniform
from ddpm.objective import Objective
from ddpm.timestep import Timestep
from ddpm.types import times

GOLDEN = (5**0.5 - 1) / 2  # frac(i GOLDEN) spreads any run of indices i evenly over [0, 1)

Seen = list[tuple[Tensor, Tensor, Tensor, Tensor]]  # of each micro-batch: positions, t and losses (b,), and loss (1,)


class DiffusionModule(LightningModule):
    """A diffusion in training.

    optimizer      parameters to an optimiser
    batch_size     of the global batch: ranks x accumulation x micro-batch
    label_dropout  the share of labels replaced by the null one, for classifier-free guidance
    input_perturbation  gamma: the network is shown eps + gamma xi, xi ~ N(0, I) (Ning et al. 2023)
    card           what a checkpoint tells of itself: the resolved config and the facts of the data
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        objective: Objective,
        timestep: Timestep,
        *,
        optimizer: Callable[[Iterator[Tensor]], Optimizer],
        lr_factor: Factor,
        seed: int,
        batch_size: int,
        label_dropout: float,
        input_perturbation: float,
        card: dict[str, Any],
    ) -> None:
        super().__init__()
        self.diffusion, self.objective, self.timestep = diffusion, objective, timestep
        self.make_optimizer, self.lr_factor, self.card = optimizer, lr_factor, card
        self.seed, self.batch_size, self.label_dropout = seed, batch_size, label_dropout
        self.input_perturbation = input_perturbation
        self.seen: Seen = []  # in this step
        self.val_loss = MeanMetric(nan_strategy="disable")  # a nan shows

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss of a micro-batch (Ho et al. 2020, Algorithm 1)."""
        accumulation = self.trainer.accumulate_grad_batches
        loss, losses, t = self.loss_of(batch, self.global_step * accumulation + batch_idx % accumulation)
        self.seen.append((batch.number % self.batch_size, t, losses.detach(), loss.detach().reshape(1)))
        return loss

    def loss_of(self, batch: Batch, micro_step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted mean of the losses (b,), these and their t (b,): a function of the batch and of how many
        micro-batches a rank had before it."""
        torch.manual_seed(scalar(self.seed, Stream.DROPOUT, micro_step, self.global_rank))
        step, position = batch.number // self.batch_size, batch.number % self.batch_size
        t, weights = self.draw_times(step, position)
        eps = normal(self.seed, Stream.TRAIN_EPS, position, step, batch.images.shape[1:])
        extra = self.extra_noise(step, position, eps)
        losses = self.losses(batch, self.kept_labels(batch.labels, step, position), t, eps, extra)
        return (weights.to(losses) * losses).mean(), losses, t

    def draw_times(self, step: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """t (b,) and the weights of the losses (b,)."""
        index, shift = self.timestep.spread(position, self.batch_size)
        u = (uniform(self.seed, Stream.TRAIN_TIME, index, step) + shift) % 1
        return self.timestep.times(u, self.diffusion.num_steps)

    def kept_labels(self, labels: Tensor, step: Tensor, position: Tensor) -> Tensor:
        """The labels, of which a share is replaced by the null label, where the network takes labels."""
        null = getattr(self.diffusion.network, "null_label", None)
        if null is None:
            return labels
        dropped = uniform(self.seed, Stream.LABEL_DROP, position, step) < self.label_dropout
        return labels.masked_fill(dropped, null)

    def extra_noise(self, step: Tensor, position: Tensor, eps: Tensor) -> Tensor | None:
        """gamma xi, of the shape of eps, if there is any: the input perturbation."""
        if self.input_perturbation == 0:
            return None
        return self.input_perturbation * normal(self.seed, Stream.PERTURBATION, position, step, eps.shape[1:])

    def losses(self, batch: Batch, labels: Tensor, t: Tensor, eps: Tensor, extra: Tensor | None = None) -> Tensor:
        """The objective (b,) of images under their labels, where the network takes them."""
        conditional = getattr(self.diffusion.network, "null_label", None) is not None
        diffusion = self.diffusion.given(self.known(labels)) if conditional else self.diffusion
        return self.objective(diffusion, batch.images, times(t, batch.images), eps, extra)

    def known(self, labels: Tensor) -> Tensor:
        """The labels, with the null one where an image has none."""
        null: int = self.diffusion.network.null_label  # type: ignore[assignment]
        return labels.masked_fill(labels < 0, null)

    def log_training(self, seen: Seen) -> None:
        """The loss of a step, and its mean over each quarter of {1, ..., T} (nan where no rank's batch has one
        there)."""
        _, t, losses, loss = joined(seen)
        self.log("train/loss", loss.mean(), sync_dist=self.trainer.world_size > 1)
        quarter = (t - 1) * 4 // self.diffusion.num_steps
        mine = [losses.new_zeros(4).index_add(0, quarter, x) for x in (losses, torch.ones_like(losses))]
        sums, counts = torch.as_tensor(self.all_gather(torch.stack(mine))).reshape(-1, 2, 4).sum(0)
        for k, mean in enumerate(sums / counts):
            self.log(f"train/loss_quarter_{k + 1}", mean)

    def show_losses(self, seen: Seen) -> None:
        """Show the losses of the global batch, in its own order, to the timesteps; of a step that a loss scaler
        leaves out, those that are numbers."""
        position, t, losses, _ = (torch.as_tensor(self.all_gather(x)).flatten() for x in joined(seen))
        order = position.argsort()
        order = order[losses[order].isfinite()]
        self.timestep.update(t[order], losses[order])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss at one fixed t and eps for each image: a smooth curve, whatever the seed of the run."""
        u = (batch.number.double() * GOLDEN + 0.5) % 1
        t = (u * self.diffusion.num_steps).long() + 1
        eps = normal(0, Stream.VALIDATION_EPS, batch.number, 0, batch.images.shape[1:])
        # not self.log's own mean, which divides over ranks by a whole number of images; and each image for itself, as
        # torchmetrics overlooks weights where nan_strategy is "disable"
        self.val_loss.update(self.losses(batch, batch.labels, t, eps))
        self.log("val/loss", self.val_loss, batch_size=len(t))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Whatever is saved after the step has seen its losses."""
        seen, self.seen = self.seen, []
        if self.timestep.learns:
            self.show_losses(seen)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_training(seen)
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/gradient_norm", whole(get_total_norm(gradients)))

    def configure_model(self) -> None:
        """trainer=fsdp, which alone has a mesh of devices, wants the network spread over it."""
        if self._device_mesh is not None and not isinstance(self.diffusion.network, FSDPModule):
            shard(self.diffusion.network, self._device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        schedule = {"scheduler": LambdaLR(optimizer, self.lr_factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint opens by itself."""
        checkpoint["ddpm"] = self.card


def joined(seen: Seen) -> tuple[Tensor, ...]:
    """Each column of all micro-batches."""
    return tuple(torch.cat(column) for column in zip(*seen, strict=True))
