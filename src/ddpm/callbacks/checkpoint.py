"""Checkpoints: `last.ckpt`, and the one before it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ddpm.callbacks.run_log import FILE
from ddpm.errors import Refused

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class SaveLast(Callback):
    """Saves `last.ckpt` every n steps and at the end, and keeps the one before as `previous.ckpt`.

    It saves when the next batch starts, and stands first among the callbacks: by then all that belongs to
    the step is done and logged (Lightning logs and validates after the callbacks' end of a batch), and
    nothing of the next one. With it goes the length of the run's own log, to cut it back to.
    """

    def __init__(self, *, every_n_steps: int, folder: Path) -> None:
        if every_n_steps < 1:
            raise Refused(f"callbacks.checkpoint.every_n_steps is {every_n_steps}; it must be at least 1.")
        self.every_n_steps = every_n_steps
        self.folder, self.run_log = folder / "checkpoints", folder / FILE
        self._last_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # the step that Lightning's rows carry, which it guesses wrongly when it resumes from a save made here
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if trainer.global_step % self.every_n_steps == 0:
            with before_this_batch(trainer):
                self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Once a step. There is always a whole `last.ckpt`, the old one or the new one."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        new, last, previous = (self.folder / name for name in ("new.ckpt", LAST, PREVIOUS))
        trainer.save_checkpoint(new)
        if trainer.is_global_zero:
            if last.exists():
                previous.unlink(missing_ok=True)
                os.link(last, previous)
            new.replace(last)

    def state_dict(self) -> dict[str, Any]:
        return {"log_bytes": self.run_log.stat().st_size if self.run_log.exists() else 0}


@contextmanager
def before_this_batch(trainer: Trainer) -> Iterator[None]:
    """Lightning has counted the batch that starts now, by which it times validation; a file must not have it yet."""
    counts = trainer.fit_loop.epoch_loop.batch_progress
    for count in (counts.total, counts.current):
        count.ready -= 1
    try:
        yield
    finally:
        for count in (counts.total, counts.current):
            count.ready += 1
