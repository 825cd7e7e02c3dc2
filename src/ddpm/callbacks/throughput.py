"""How fast a run trains: images a second and, where the peak is known, the share of it that is used."""

from time import perf_counter
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode


class Throughput(Callback):
    """Logs `speed/images_per_second` over all ranks and, on a GPU that Lightning knows, `speed/mfu`.

    batch_size  the global batch: ranks x accumulation x micro-batch

    A number stands for the steps since the last one, with the loading of their data and without what
    interrupts them: validation, saving, and whoever calls `pause`. The first step of a run, which compiles
    and chooses kernels, is not timed; on a known GPU the operations of its first micro-batch are counted
    instead (forward and backward, as they ran). `speed/mfu` is that count, a second, over the peak that
    Lightning lists for the chip in the precision of the run.
    """

    def __init__(self, *, batch_size: int) -> None:
        self.batch_size = batch_size
        self._clock = _Clock()
        self._past_first = False
        self._steps = 0  # on the clock
        self._last_step = 0
        self._peak: int | None = None  # FLOP/s of one device
        self._counter: FlopCounterMode | None = None
        self._flops = 0  # of one micro-batch on one device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock, self._past_first, self._steps = _Clock(), False, 0
        self._last_step = trainer.global_step
        if trainer.strategy.root_device.type == "cuda":
            self._peak = get_available_flops(trainer.strategy.root_device, _dtype(trainer))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._past_first:
            self._clock.start()
        elif self._peak is not None and not self._flops:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()  # type: ignore[no-untyped-call]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop_counting()
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        if not self._past_first:
            _wait(trainer)
            self._past_first = True
            self._clock.start()
            return
        self._steps += 1
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._report(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pause(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.pause(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop_counting()

    def pause(self, trainer: Trainer) -> None:
        """Stops the clock until the next batch begins."""
        if self._clock.runs:
            _wait(trainer)
            self._clock.stop()

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pause(trainer)
        rate = self._steps / self._clock.seconds
        pl_module.log("speed/images_per_second", rate * self.batch_size)
        if self._peak and self._flops:
            pl_module.log("speed/mfu", rate * self._flops * trainer.accumulate_grad_batches / self._peak)
        self._clock, self._steps = _Clock(), 0
        self._clock.start()

    def _stop_counting(self) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._flops = self._counter.get_total_flops()
            self._counter = None


def pause(trainer: Trainer) -> None:
    """Whoever interrupts training calls this first: the time until the next batch is not training."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Throughput):
            callback.pause(trainer)


class _Clock:
    """A stopwatch."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0
        self.runs = False

    def start(self) -> None:
        if not self.runs:
            self.runs, self._since = True, perf_counter()

    def stop(self) -> None:
        self.runs, self.seconds = False, self.seconds + perf_counter() - self._since


def _wait(trainer: Trainer) -> None:
    """For the work that was handed to the device."""
    if trainer.strategy.root_device.type != "cpu":
        torch.accelerator.synchronize(trainer.strategy.root_device)


def _dtype(trainer: Trainer) -> torch.dtype:
    """What most multiplications of the run are computed in."""
    for name, dtype in (("bf16", torch.bfloat16), ("16", torch.float16), ("64", torch.float64)):
        if name in str(trainer.precision):
            return dtype
    return torch.float32
