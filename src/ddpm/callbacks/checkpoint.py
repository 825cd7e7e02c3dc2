"""Checkpoints: `last.ckpt`, and the one before it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ddpm.callbacks.run_log import FILE
from ddpm.checkpoint_io import AtomicCheckpointIO, give_back_names, remove, synchronise
from ddpm.errors import Failed, Refused
from ddpm.loggers import kept_id

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
NEW = "new.ckpt"  # until it is the last


class SaveLast(Callback):
    """Saves `last.ckpt` every n steps and at the end, and keeps the one before as `previous.ckpt`.

    It saves when the next batch starts, and stands first among the callbacks: by then all that belongs to
    the step is done and logged (Lightning logs and validates after the callbacks' end of a batch), and
    nothing of the next one. With it go the length of the run's own log, to cut it back to, and the id that
    the run has at W&B.
    """

    def __init__(self, *, every_n_steps: int, folder: Path) -> None:
        if every_n_steps < 1:
            raise Refused(f"callbacks.checkpoint.every_n_steps is {every_n_steps}; it must be at least 1.")
        self.every_n_steps = every_n_steps
        self.run_folder, self.folder, self.run_log = folder, folder / "checkpoints", folder / FILE
        self._last_step = 0

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning counts batches of one rank, of which a step may now accumulate more or fewer than before."""
        counts = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
        for count in (counts["total"], counts["current"]):
            count.update(dict.fromkeys(("ready", "started", "processed", "completed"), batches))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step
        if trainer.is_global_zero:
            for left in (self.folder / NEW, *self.folder.glob("*.part")):  # by a run that was killed
                remove(left)
            give_back_names(self.folder)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # the step that Lightning's rows carry, which it guesses wrongly when it resumes from a save made here
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if trainer.global_step % self.every_n_steps == 0:
            with before_this_batch(trainer):
                self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Once a step. There is always a whole `last.ckpt`, the old one or the new one, or, on a file system without
        hard links and between two renames, a whole `previous.ckpt`."""
        if trainer.global_step == self._last_step:
            return
        for logger in trainer.loggers:
            logger.save()  # what is logged up to here is on the disk before a checkpoint says how long it is
        write(trainer, self.folder / NEW)
        self._last_step = trainer.global_step
        if trainer.is_global_zero:
            self._rotate()

    def _rotate(self) -> None:
        new, last, previous = (self.folder / name for name in (NEW, LAST, PREVIOUS))
        if last.exists():
            remove(previous)
            try:
                os.link(last, previous)
            except OSError:  # a file system without hard links, or the folder of trainer=fsdp
                last.replace(previous)
        new.replace(last)
        synchronise(self.folder)

    def state_dict(self) -> dict[str, Any]:
        size = self.run_log.stat().st_size if self.run_log.exists() else 0
        return {"log_bytes": size, "wandb_id": kept_id(self.run_folder)}


def write(trainer: Trainer, path: Path) -> None:
    """Save a checkpoint. Raises Failed, on all ranks, where there is no room for it."""
    trainer.save_checkpoint(path)
    written_by = trainer.strategy.checkpoint_io
    lacks_room = written_by.lacks_room if isinstance(written_by, AtomicCheckpointIO) else None
    if told := trainer.strategy.broadcast(lacks_room):
        raise Failed(f"{told}: make room, then go on from the checkpoint before it with resume=auto.")


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
