"""How fast a run trains: images a second and, where the peak is known, the share of it that is used."""

from copy import deepcopy
from time import perf_counter
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# FLOP/s of an H200 SXM, which Lightning does not list rightly: half of what NVIDIA's H200 datasheet gives with
# sparsity, the same chip as the H100 SXM (NVIDIA H100 Tensor Core GPU Architecture, Table 2).
_H200 = {torch.bfloat16: 989e12, torch.float16: 989e12, torch.float32: 495e12}


class Throughput(Callback):
    """Logs `speed/images_per_second` over all ranks and, on a GPU whose peak is known, `speed/mfu`.

    batch_size  the global batch: ranks x accumulation x micro-batch

    A number stands for the steps since the last one, with the loading of their data and without what
    interrupts them: validation, saving, and whoever calls `pause`. The first step of a run, which compiles
    and chooses kernels, is not timed. `speed/mfu` is the operations that the network takes forward and
    backward, a second, over the chip's peak in the precision of the run. They are counted once, on a copy
    without numbers: neither compiled nor sharded, and nothing that is computed twice to spare memory.
    """

    def __init__(self, *, batch_size: int) -> None:
        self.batch_size = batch_size
        self._clock = _Clock()
        self._past_first = False
        self._steps = 0  # on the clock
        self._last_step = 0
        self._peak: float | None = None  # FLOP/s of one device
        self._outline: nn.Module | None = None
        self._flops = 0  # of one micro-batch on one device

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before anything shards the network."""
        if stage == "fit" and trainer.strategy.root_device.type == "cuda":
            self._peak = peak(trainer.strategy.root_device, _dtype(trainer))
        if self._peak is not None:
            self._outline = outline(pl_module.diffusion.network)  # type: ignore[union-attr, arg-type]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock, self._past_first, self._steps = _Clock(), False, 0
        self._last_step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._past_first:
            self._clock.start()
        elif self._outline is not None:
            self._flops, self._outline = len(batch.images) * flops(self._outline, batch.images[:1]), None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
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


def pause(trainer: Trainer) -> None:
    """Whoever interrupts training calls this first: the time until the next batch is not training."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Throughput):
            callback.pause(trainer)


def outline(network: nn.Module) -> nn.Module:
    """A copy of its structure with tensors that are only shapes; what was compiled is not."""
    weights = {id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in network.parameters()}
    return deepcopy(network, weights | {id(b): torch.empty_like(b, device="meta") for b in network.buffers()})


def flops(network: nn.Module, image: Tensor) -> int:
    """Floating-point operations of an outline for one image (1, c, h, w), forward and backward: its convolutions,
    matrix products and attentions."""
    x, time = torch.empty_like(image, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        network(x, time).sum().backward()
    counted: int = counter.get_total_flops()
    return counted


def peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """The dense FLOP/s that the maker of a GPU gives for a precision; None where that is not known, and in float32
    unless products are computed in TF32, as cudnn's convolutions are."""
    if dtype is torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return None
    listed = h200(torch.cuda.get_device_name(device), dtype)
    return get_available_flops(device, dtype) if listed is None else listed


def h200(name: str, dtype: torch.dtype) -> float | None:
    """Those of an H200 SXM; None for another chip."""
    if "h200" not in name.lower() or "nvl" in name.lower():
        return None
    return _H200.get(dtype)


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
