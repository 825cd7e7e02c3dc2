"""Checkpoints: `last.ckpt`, and the one before it."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ddpm.callbacks.every import EveryNSteps

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class SaveLast(EveryNSteps, Checkpoint):
    """Saves `last.ckpt` every n steps and at the end, and keeps the one before as `previous.ckpt`.

    A Checkpoint to Lightning, so that it comes after all other callbacks of a step.
    """

    def __init__(self, *, every_n_steps: int, folder: Path) -> None:
        super().__init__(every_n_steps=every_n_steps)
        self.folder = folder / "checkpoints"

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        last = self.folder / LAST
        if trainer.is_global_zero and last.exists():
            last.replace(self.folder / PREVIOUS)
        trainer.save_checkpoint(last)
