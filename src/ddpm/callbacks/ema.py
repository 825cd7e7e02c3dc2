"""The exponential moving average of the weights (Ho et al. 2020, Appendix B), never mixed up with them.

    average <- d average + (1 - d) raw       after every optimiser step; the first one copies

Three places where a plain exchange of the two would confuse them are closed: a save inside validation,
a save on an exception raised there, and a save after the end of training. Whenever a file is written its
`state_dict` holds the averages and its `current_model_state` the raw weights, and training goes on from
it bit for bit. The names are those of Lightning's `WeightAveraging`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ddpm.errors import Refused


class EMA(WeightAveraging):
    """Averages the parameters; validation, and whoever asks by `averaged`, sees the averages.

    decay   d, in [0, 1)
    warmup  d_n = min(d, (1 + n) / (10 + n)) after n updates (Song et al. 2021, score_sde), for short runs:
            a constant d leaves the share d^n of the initial weights in the average

    Buffers are not averaged: a file holds them as they are in the module. While the averages are shown, the
    raw weights wait in a second copy; the parameters stay the same objects at the same addresses, so DDP,
    compiled code and captured graphs follow. The copy lives where validation has freed the gradients.
    """

    def __init__(self, *, decay: float, warmup: bool) -> None:
        """Raises Refused for a decay outside [0, 1)."""
        if not 0 <= decay < 1:
            raise Refused(f"callbacks.ema.decay is {decay}; it must lie in [0, 1): the paper has 0.9999.")
        super().__init__(use_buffers=False)
        self.decay, self.warmup = decay, warmup
        self._stepped = False
        self._raw: list[Tensor] | None = None  # the raw weights while the module holds the averages

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After each step that the optimizer took: a loss scaler leaves some out."""
        return step_idx is not None and self._stepped

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self._note_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._stepped = False

    def _note_step(self, *_: Any) -> None:
        self._stepped = True

    def decay_after(self, updates: int) -> float:
        """d for the update that follows `updates` earlier ones."""
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts the average, or keeps it where a trainer fits once more."""
        if stage != "fit":
            return
        _refuse(trainer)
        if self._average_model is None:
            self._average_model = _Average(pl_module, trainer.strategy.root_device, self.decay_after)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._average_model is not None:
            self._show(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hide(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._hide(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the raw weights in the module, where Lightning would overwrite them."""

    @contextmanager
    def shown(self, trainer: Trainer) -> Iterator[None]:
        """The averages in the trainer's module, afterwards the raw weights again; see `averaged`."""
        if self._average_model is None or self._raw is not None:
            yield
            return
        try:
            self._show(trainer, trainer.lightning_module)
            yield
        finally:
            self._hide(trainer.lightning_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes the averages as `state_dict` and the raw weights as `current_model_state`, shown or not."""
        average = self._average_model
        if average is None:
            return
        self._catch_up(trainer, pl_module)
        raw = _values(pl_module) if self._raw is None else self._raw
        checkpoint["state_dict"] = _state(pl_module, _values(average.module))
        checkpoint["current_model_state"] = _state(pl_module, raw)
        checkpoint["averaging_state"] = {"n_averaged": average.n_averaged}
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    def _catch_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes in the last optimiser step, if a callback that stands before this one asks first."""
        self.on_train_batch_end(trainer, pl_module, None, None, 0)

    @torch.no_grad()
    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        self._catch_up(trainer, pl_module)
        self._raw = [parameter.clone() for parameter in pl_module.parameters()]
        torch._foreach_copy_(_values(pl_module), _values(self._average_model.module))

    @torch.no_grad()
    def _hide(self, pl_module: LightningModule) -> None:
        """Brings the raw weights back; does nothing where they are."""
        if self._raw is not None:
            torch._foreach_copy_(_values(pl_module), self._raw)
            self._raw = None


@contextmanager
def averaged(trainer: Trainer) -> Iterator[None]:
    """Within it the trainer's module holds its EMA weights, after it the raw ones, also on an exception.

    Changes nothing where there is no EMA callback, or where the averages are shown already. Dropout is not
    its business: `eval()` is the caller's.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    ema = next((callback for callback in callbacks if isinstance(callback, EMA)), None)
    with nullcontext() if ema is None else ema.shown(trainer):
        yield


class _Average(AveragedModel):
    """The averaged copy of a module. Its counter stays on the CPU: an update never waits for the device."""

    def __init__(self, module: nn.Module, device: torch.device, decay_after: Callable[[int], float]) -> None:
        super().__init__(module, device)
        self.n_averaged = self.n_averaged.cpu()
        self._decay_after = decay_after

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """One update. Where the module computes in less than float32 (bf16-true), the average stays in it."""
        updates = int(self.n_averaged)
        average = _values(self.module)
        raw = [mine.to(its) for its, mine in zip(average, _values(model), strict=True)]
        if updates == 0:
            torch._foreach_copy_(average, raw)
        else:
            torch._foreach_lerp_(average, raw, 1 - self._decay_after(updates))
        self.n_averaged += 1


def _values(module: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in module.parameters()]


def _state(module: nn.Module, values: list[Tensor]) -> dict[str, Any]:
    """The module's state_dict with `values` in place of its parameters; its buffers are its own."""
    replaced = {id(mine): its for mine, its in zip(module.parameters(), values, strict=True)}
    return {name: replaced.get(id(value), value) for name, value in module.state_dict(keep_vars=True).items()}


def _refuse(trainer: Trainer) -> None:
    """Raises Refused where the average cannot follow the weights or a file could not hold both."""
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
        raise Refused(
            f"callbacks.ema cannot average weights that {type(trainer.strategy).__name__} spreads over "
            "ranks; train with trainer=ddp, or without it (~callbacks.ema)."
        )
    saving = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    if any(callback.save_weights_only for callback in saving):
        raise Refused("a checkpoint with save_weights_only=true cannot hold raw and averaged weights; set it to false.")
