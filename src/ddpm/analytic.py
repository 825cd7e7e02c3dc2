"""What `sigma=analytic` has to know of a trained network: Gamma_t = E |eps_theta(x_t, t)|^2 / d, x_t ~ q(x_t).

Estimated once from images of the training split (Bao et al. 2022, Eq. 10), with one noise an image and a
time, and kept under a key of the weights, the images and their number.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from ddpm.data.image_data import ImageData
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import Refused
from ddpm.metric.cache import cached, fingerprint
from ddpm.metric.source import evenly, identity
from ddpm.noise import Stream, normal
from ddpm.sampler import estimates
from ddpm.types import Images, times

_log = logging.getLogger(__name__)


@torch.no_grad()
def eps_power(diffusion: GaussianDiffusion, x_0: Images, noise: Callable[[int], Images]) -> Tensor:
    """Gamma_t for t = 0, ..., T (Gamma_0 = 1 is never used): (T + 1,) float64, by T network calls.

    Raises Refused where alpha_bar_T = 0: x_T tells nothing of how far x_0 is from its estimate.
    """
    if not diffusion.schedule.log_alpha_bar.isfinite().all():
        raise Refused("sigma=analytic cannot be estimated where alpha_bar_T = 0; take sigma=beta_tilde or beta.")
    powers = [torch.ones((), dtype=torch.float64, device=x_0.device)]
    for t in range(1, diffusion.num_steps + 1):
        at = times(t, x_0)
        x_t = diffusion.q(x_0, at, at * 0).sample(noise(t))
        _, eps = estimates(diffusion, x_t, at, clip=False)
        powers.append(eps.double().square().mean())
    return torch.stack(powers).cpu()


def estimated(
    diffusion: GaussianDiffusion,
    data: ImageData,
    num_images: int,
    batch_size: int,
    cache: str,
    device: torch.device | str,
) -> Tensor:
    """Gamma of a model on images of its training split, computed on a device or read from the cache.

    Raises Refused if the cache cannot be written, or alpha_bar_T = 0.
    """
    schedule, noise = diffusion.schedule.log_alpha_bar.tolist(), int(Stream.SIGMA)
    weights = fingerprint(diffusion.network.state_dict(), num_images, schedule, noise)
    path = Path(cache) / f"eps-power-{identity(data, 'train')}-{weights}.npy"

    def make() -> Tensor:
        _log.info("estimating sigma on %d training images of %s, once", num_images, data.facts.name)
        chosen, moved = evenly(len(data.load("train")), num_images), diffusion.to(device)
        total = torch.zeros(diffusion.num_steps + 1, dtype=torch.float64)
        for indices in track(torch.split(chosen, batch_size), "estimating sigma", transient=True):
            total += len(indices) * of_batch(moved, data, indices, device)
        return total / len(chosen)

    try:
        return cached(path, read=lambda kept: _read(kept, diffusion.num_steps), make=make, write=_write)
    finally:
        diffusion.to("cpu")


def of_batch(diffusion: GaussianDiffusion, data: ImageData, indices: Tensor, device: torch.device | str) -> Tensor:
    """Gamma on these images of the training split, each with its own noise."""
    x_0, numbers = data.batch("train", indices).images.to(device), indices.to(device)
    return eps_power(diffusion, x_0, lambda t: normal(0, Stream.SIGMA, numbers, t, x_0.shape[1:]))


def _write(power: Tensor, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, power.numpy())


def _read(path: Path, num_steps: int) -> Tensor:
    power: Any = np.load(path, allow_pickle=False)
    if power.shape != (num_steps + 1,) or not np.isfinite(power).all():
        raise ValueError(f"no table of {num_steps + 1} finite numbers")
    return torch.from_numpy(power)
