"""The speed of training is that of training: what interrupts it does not count."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tiny import Tiny, fit, tiny_trainer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from yamls import node

from ddpm.callbacks.run_log import RunLog, read
from ddpm.callbacks.throughput import Throughput, flops, h200, outline, pause, peak
from ddpm.instantiate import make

STEP, INTERRUPTION, BATCH = 0.02, 0.8, 8


class Slow(Tiny):
    """A step takes 20 ms, a validation 0.8 s, the first step another 0.8 s."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        time.sleep(STEP + (INTERRUPTION if batch_idx == 0 else 0))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        time.sleep(INTERRUPTION)


class Interrupt(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 5:
            pause(trainer)
            time.sleep(INTERRUPTION)


@pytest.mark.parametrize("interrupt_first", [True, False])
def test_images_per_second_leave_interruptions_out(tmp_path: Path, interrupt_first: bool) -> None:
    callbacks: list[Callback] = [Throughput(batch_size=BATCH), Interrupt()]
    options = {"val_check_interval": 7, "limit_val_batches": 1, "log_every_n_steps": 10}
    log = RunLog(tmp_path)
    ordered = reversed(callbacks) if interrupt_first else callbacks
    fit(tiny_trainer(tmp_path, 10, *ordered, logger=log, **options), Slow())
    speeds = read(log.path)["speed/images_per_second"]
    assert len(speeds) == 1
    assert BATCH / STEP / 4 < next(iter(speeds.values())) <= BATCH / STEP


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    options = {"accumulate_grad_batches": 2, "limit_val_batches": 0, "log_every_n_steps": 4}
    fit(tiny_trainer(tmp_path, 8, Throughput(batch_size=BATCH), logger=log, **options), Slow())
    speeds = list(read(log.path)["speed/images_per_second"].values())
    assert len(speeds) == 2
    assert all(BATCH / STEP / 8 < speed <= BATCH / STEP / 2 for speed in speeds)


def tiny_unet() -> torch.nn.Module:
    model: torch.nn.Module = make(node("model", "tiny"), "model", shape=(1, 8, 8), num_classes=0, learned=False)
    return model


class WithNetwork(Slow):
    """Its batch has images."""

    def __init__(self) -> None:
        super().__init__()
        self.diffusion = torch.nn.Module()
        self.diffusion.network = tiny_unet()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return SimpleNamespace(images=torch.zeros(BATCH, 1, 8, 8))


def test_where_the_peak_is_known_its_share_is_logged(tmp_path: Path) -> None:
    log, peak = RunLog(tmp_path), 1e9
    throughput, module = Throughput(batch_size=BATCH), WithNetwork()
    throughput._peak = peak
    options = {"limit_val_batches": 0, "log_every_n_steps": 4}
    fit(tiny_trainer(tmp_path, 4, throughput, logger=log, **options), module)
    logged = read(log.path)
    (speed,), (mfu,) = logged["speed/images_per_second"].values(), logged["speed/mfu"].values()
    each = flops(outline(module.diffusion.network), torch.zeros(1, 1, 8, 8))
    assert mfu == pytest.approx(speed * each / peak, rel=1e-4)


@pytest.mark.parametrize("compiled", ["blocks", "whole"])
def test_operations_are_counted_on_the_network_that_is_not_compiled(compiled: str) -> None:
    """And are those of a batch with numbers; the CPU's attention, which the counter does not know, apart."""
    network, image = tiny_unet(), torch.zeros(1, 1, 8, 8)
    with FlopCounterMode(display=False) as counter:
        network(image, torch.zeros(1)).sum().backward()
    attention = 3 * 2 * 2 * 4**4 * 16  # q k and its product with v, of 4 x 4 pixels and 16 channels
    make(node("compile", compiled), "compile", network=network)
    copy = outline(network)
    assert flops(copy, image) == counter.get_total_flops() + attention
    assert all(part._compiled_call_impl is None for part in copy.modules())
    assert all(tensor.is_meta for tensor in copy.state_dict().values())
    assert not any(tensor.is_meta for tensor in network.state_dict().values())


def test_float32_products_beside_tf32_convolutions_have_no_one_peak() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        assert peak(torch.device("cuda"), torch.float32) is None
    finally:
        torch.set_float32_matmul_precision(before)


def test_an_h200_has_the_peaks_of_its_maker() -> None:
    assert h200("NVIDIA H200", torch.float32) == 495e12
    assert h200("NVIDIA H200", torch.bfloat16) == 989e12
    assert h200("NVIDIA H200 NVL", torch.bfloat16) is None
    assert h200("NVIDIA H100 80GB HBM3", torch.bfloat16) is None
