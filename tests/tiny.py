"""A training that takes milliseconds, for the tests of callbacks: its data are a function of the step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


class Tiny(LightningModule):
    """Two layers, a float64 table and a counter; `spoil` is the step whose loss becomes nan."""

    def __init__(self, spoil: int = -1) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 3))
        self.spoil = spoil
        self.register_buffer("table", torch.linspace(0, -10, 7, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.seen: Tensor

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        accumulation = self.trainer.accumulate_grad_batches
        source = torch.Generator().manual_seed(self.global_step * accumulation + batch_idx % accumulation)
        x = torch.randn(4, 3, generator=source)
        self.seen += 1
        loss: Tensor = (self.network(x) - x.flip(1)).square().mean()
        self.log("train/loss", loss.detach())
        return loss * torch.nan if self.global_step == self.spoil else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.network(torch.ones(2, 3)).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def tiny_trainer(folder: Path, max_steps: int, *callbacks: Callback, **options: Any) -> Trainer:
    """Validates after every third batch unless told otherwise."""
    quiet: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    usual = {"accelerator": "cpu", "devices": 1, "logger": False, "log_every_n_steps": 1}
    validation = {"val_check_interval": 3, "check_val_every_n_epoch": None, "limit_val_batches": 2}
    return Trainer(
        default_root_dir=folder,
        max_steps=max_steps,
        max_epochs=-1,
        callbacks=list(callbacks),
        **(quiet | usual | validation | {"num_sanity_val_steps": 0} | options),
    )


def fit(trainer: Trainer, module: LightningModule, ckpt_path: Path | None = None) -> None:
    trainer.fit(
        module,
        DataLoader(Endless()),
        DataLoader(TensorDataset(torch.zeros(4))),
        ckpt_path=ckpt_path,
        weights_only=True,
    )
