"""Samples that are measured lie on the disk until all of it is, so that a measurement that was killed goes on."""

import shutil
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ddpm.drawn import Shards
from ddpm.images import from_levels, to_uint8
from ddpm.sampling import SamplingModule
from ddpm.types import Images


class Kept(SamplingModule):
    """Gives what lies in a folder, and leaves what it draws there, where the folder is its own."""

    def __init__(self, model: SamplingModule, folder: Path) -> None:
        super().__init__(
            model.diffusion,
            model.sampler,
            shape=model.shape,
            seed=model.seed,
            label=model.label,
            guidance=model.guidance,
        )
        self.drawn, self.is_own = Shards(folder, 0), False

    def predict_step(self, indices: Tensor, batch_idx: int = 0) -> Images:
        place = indices.cpu()
        if self.is_own and self.drawn.has(place):
            return from_levels(self.drawn.read(place), 256).to(self.device)
        images = super().predict_step(indices)
        if self.is_own:
            self.drawn.write(place, to_uint8(images).cpu())
        return images


class Keeping(Callback):
    """Claims the folder for all ranks. Another process that draws the same beside this one keeps nothing."""

    def __init__(self, kept: Kept) -> None:
        self.kept, self.folder = kept, kept.drawn.out
        self.lock = FileLock(self.folder.with_name(f".{self.folder.name}.lock"))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mine = trainer.is_global_zero and self.claimed()
        self.kept.is_own = bool(trainer.strategy.broadcast(mine))

    def claimed(self) -> bool:
        """Is nobody else at it?"""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            return False
        self.folder.mkdir(exist_ok=True)
        return True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.lock.release()  # another job of this process may go on with it

    def forget(self) -> None:
        """All is measured, and its row is written."""
        if self.lock.is_locked:
            shutil.rmtree(self.folder)
            self.lock.release()
