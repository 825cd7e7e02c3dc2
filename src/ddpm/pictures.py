"""What drawing leaves on the disk: single images, grids, the way from noise, the noising of real images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor

from ddpm.diffusion import GaussianDiffusion
from ddpm.images import enlarged, grid, to_uint8, write_png, write_webp
from ddpm.noise import Stream, normal
from ddpm.sampler import Sampler
from ddpm.sampling import noise_of
from ddpm.types import Images, times

GRID_LIMIT = 256  # images shown in a grid


class WriteImages(BasePredictionWriter):
    """Writes image number i as `NNNNNN.png` as soon as its batch is done, on every rank."""

    def __init__(self, out: Path, num_images: int) -> None:
        super().__init__(write_interval="batch")
        self.out, self.digits = out, max(6, len(str(num_images - 1)))

    def path(self, index: int) -> Path:
        return self.out / f"{index:0{self.digits}}.png"

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: Any, prediction: Images, batch_indices: Any, batch: Tensor, *_: Any
    ) -> None:
        for index, picture in zip(batch.tolist(), to_uint8(prediction).cpu(), strict=True):
            write_png(picture, self.path(index))

    def written(self, count: int) -> Tensor:
        """The first `count` images as they are on disk: uint8 (count, c, h, w)."""
        arrays = [np.array(Image.open(self.path(index))) for index in range(count)]
        return torch.stack([torch.from_numpy(a if a.ndim == 3 else a[..., None]).permute(2, 0, 1) for a in arrays])


def write_grid(images: Tensor, path: Path, columns: int | None = None) -> Path:
    """uint8 images as one picture, large enough to look at."""
    write_png(enlarged(grid(images, columns), 512), path)
    return path


def write_npz(images: Tensor, path: Path) -> Path:
    """uint8 images as `arr_0` (b, h, w, c), which the evaluators of others read."""
    np.savez(path, images.permute(0, 2, 3, 1).numpy())
    return path


@torch.no_grad()
def write_trajectory(
    diffusion: GaussianDiffusion,
    sampler: Sampler,
    shape: tuple[int, ...],
    seed: int,
    out: Path,
    count: int = 8,
) -> list[Path]:
    """The way of the first few images from noise: rows of stages as a picture, all steps as an animation
    (Ho et al. 2020, Figure 6 shows the estimates; these are the x_t themselves)."""
    indices = torch.arange(count, device=diffusion.schedule.log_alpha_bar.device)
    noise = noise_of(seed, indices, shape)
    x_T = noise(diffusion.num_steps)
    steps = [to_uint8(x_T).cpu()] + [to_uint8(step.x_s).cpu() for step in sampler.trajectory(diffusion, x_T, noise)]
    stages = torch.linspace(0, len(steps) - 1, min(11, len(steps))).round().long().tolist()
    picture = torch.stack([steps[k] for k in stages], dim=1).flatten(0, 1)
    frames = torch.linspace(0, len(steps) - 1, min(61, len(steps))).round().long().tolist()
    animation = out / "trajectory.webp"
    write_webp([enlarged(grid(steps[k], min(count, 4)), 256) for k in frames], animation)
    return [write_grid(picture, out / "trajectory.png", columns=len(stages)), animation]


def write_forward(diffusion: GaussianDiffusion, x_0: Images, seed: int, out: Path) -> Path:
    """Real images, one a row, noised to evenly spaced times from 0 to T with one noise each."""
    eps = normal(seed, Stream.FORWARD, torch.arange(len(x_0)), 0, x_0.shape[1:]).to(x_0)
    stages = torch.linspace(0, diffusion.num_steps, 11).round().long().tolist()
    noised = [x_0 if t == 0 else diffusion.q(x_0, times(t, x_0), times(0, x_0)).sample(eps) for t in stages]
    return write_grid(to_uint8(torch.stack(noised, dim=1).flatten(0, 1)), out / "forward.png", columns=len(stages))
