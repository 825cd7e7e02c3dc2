"""Progressive lossy coding."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.diffusion import GaussianDiffusion
from ddpm.likelihood import bound
from ddpm.mode.base import Figured, at_least_one
from ddpm.mode.scene import Latent, Scene, Tick
from ddpm.pictures import Figure, Table
from ddpm.rate_distortion import rate_and_distortion
from ddpm.sampler import Noise
from ddpm.types import Images, Times, times


class LossyCoding(Figured):
    """What a receiver of x_T, ..., x_t knows of x_0, and what it has cost: Ho et al. (2020), Sec. 4.3,
    Algorithms 3 and 4, Eq. 15, Figure 5 and Table 4. It needs all T steps and leaves the sampler aside.

    rows          images shown at most; the numbers are means over all num_images
    t, num_times  the times shown beside t = 1, or T/n, 2T/n, ..., T; the table has them all
    """

    uses: ClassVar = frozenset({"label", "images"})

    def __init__(self, *, rows: int, t: Sequence[int] | int | None, num_times: int) -> None:
        at_least_one(rows=rows, num_times=num_times)
        self.rows, self.t, self.num_times = rows, t, num_times

    def figure(self, scene: Scene) -> Figure:
        shown = sorted({1, *scene.chosen(self.t, self.num_times)}, reverse=True)
        x_0 = scene.images(scene.num_images)
        spent, error = coded(scene, x_0)
        labels = [f"$t = {t}$\n{spent[t - 1]:.3g}\nbits/dim\nRMSE {error[t - 1]:.3g}" for t in shown]
        seen = x_0[: self.rows]
        images = torch.stack([*(received(scene, seen, t) for t in shown), seen], dim=1)
        numbers = [(t, float(spent[t - 1]), float(error[t - 1])) for t in range(scene.num_steps, 0, -1)]
        table = Table(("t", "rate_bits_per_dim", "rmse"), numbers)
        return Figure("lossy_coding", images, [""] * len(seen), [*labels, "$x_0$"], table=table)


def coded(scene: Scene, x_0: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rate and distortion over all images, for the receivers of x_1, ..., x_T."""
    batches = scene.batches(Latent(0, x_0, scene.indices(len(x_0))))
    with scene.progress(scene.num_steps * len(batches)) as tick:
        parts = [bound(scene.model(x.indices), x.x_t, ticking(scene.eps(x.indices), tick)) for x in batches]
    means = {
        "L_T": mean([part.prior for part in parts]),
        "bits_per_dim": mean([part.kl for part in parts]),
        "x_0_mse": mean([part.x_0_mse for part in parts]),
    }
    return rate_and_distortion(means)


def mean(parts: Sequence[Tensor]) -> NDArray[np.float64]:
    """Over the images (last) of all batches."""
    whole: NDArray[np.float64] = torch.cat(list(parts), dim=-1).cpu().double().mean(-1).numpy()
    return whole


def received(scene: Scene, x_0: Images, t: int) -> Images:
    """The estimates of x_0 from x_t, Eq. 15, clipped as in the authors' evaluation."""
    batches = scene.batches(scene.encoded(x_0, t, scene.indices(len(x_0))))
    return torch.cat([estimate(scene.model(x.indices), x.x_t, times(t, x.x_t)) for x in batches])


def estimate(diffusion: GaussianDiffusion, x_t: Images, t: Times) -> Images:
    """The network's estimate of x_0."""
    return diffusion.x_0(diffusion(x_t, t), x_t, t, clip=True)


def ticking(noise: Noise, tick: Tick) -> Noise:
    """The same noise, counted."""

    def counted(t: int) -> Images:
        tick()
        return noise(t)

    return counted
