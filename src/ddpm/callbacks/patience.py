"""Ranks wait for each other for as long as it takes."""

from datetime import timedelta

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

WAIT = timedelta(days=20)  # in milliseconds it fits into 32 bits


class Patience(Callback):
    """No collective gives up by itself: a rank may have many more images than another, or compute a score alone.

    That a rank is lost is the Lifeline's to say; so ranks also wait here for the last of them to draw its images,
    and not where it no longer watches. Until all are connected the limit is Lightning's, of half an hour, since a rank
    may never start.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if distributed.is_available() and distributed.is_initialized():
            assert distributed.group.WORLD is not None
            distributed.group.WORLD.set_timeout(WAIT)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier("predicted")
