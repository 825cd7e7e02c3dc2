"""The speed of training is that of training: what interrupts it does not count."""

import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from tiny import Tiny, fit, tiny_trainer
from torch import Tensor

from ddpm.callbacks.run_log import RunLog, read
from ddpm.callbacks.throughput import Throughput, pause

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
