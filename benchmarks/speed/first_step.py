"""A run that ends with its first step."""

import os
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class FirstStep(Callback):
    """Ends the process once the first step is done."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        os._exit(0)
