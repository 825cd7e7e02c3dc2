"""A grid of samples every n steps, from the same noise each time, so that grids compare."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from ddpm.callbacks.every import EveryNSteps, measuring
from ddpm.callbacks.stop import end_if_asked
from ddpm.errors import Refused
from ddpm.images import enlarged, grid, to_pil, to_uint8, write_png
from ddpm.sampler import Sampler
from ddpm.sampling import draw


class SampleGrid(EveryNSteps):
    """Draws images 0, ..., num_images - 1 of the run's seed with the averaged weights.

    Every rank draws its share; rank 0 writes `samples/step_*.png` and shows the grid to W&B and
    TensorBoard.
    """

    def __init__(
        self,
        *,
        every_n_steps: int,
        num_images: int,
        folder: Path,
        sampler: Sampler,
        shape: Sequence[int],
        seed: int,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps)
        if num_images < 1:
            raise Refused(f"callbacks.samples.num_images is {num_images}; it must be at least 1.")
        self.num_images, self.folder = num_images, folder / "samples"
        self.sampler, self.shape, self.seed = sampler, tuple(shape), seed

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        end_if_asked(trainer)
        picture = enlarged(grid(self.draw(trainer, module)), 512)
        if trainer.is_global_zero:
            self._write(trainer, picture)

    def draw(self, trainer: Trainer, module: LightningModule) -> Tensor:
        """The images, uint8, on every rank. Shares are rounded up, as ranks must gather equally many."""
        share = -(-self.num_images // trainer.world_size)
        indices = torch.arange(share, device=module.device) + trainer.global_rank * share
        with measuring(trainer, module):
            mine = to_uint8(draw(module.diffusion, self.sampler, indices, self.shape, self.seed))  # type: ignore[arg-type]
        gathered: Tensor = module.all_gather(mine)  # type: ignore[assignment]
        return gathered.reshape(-1, *self.shape)[: self.num_images].cpu()

    def _write(self, trainer: Trainer, picture: Tensor) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_png(picture, self.folder / f"step_{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("samples", [to_pil(picture)], step=trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", picture, trainer.global_step)
