"""Bits per dimension: the bound of Ho et al. (2020), Eq. 5, on real images."""

from typing import Any

import torch
from torch import Tensor

from ddpm.data.image_data import ImageData
from ddpm.data.stream import index_batches
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import Refused
from ddpm.likelihood import Terms, at_time, bound, prior
from ddpm.metric.data_metric import DataMetric
from ddpm.metric.sample_metric import over_ranks
from ddpm.noise import Stream, normal, uniform
from ddpm.types import Images, times


class BitsPerDim(DataMetric):
    """The bound on -log2 p(x_0) per dimension, with clipped estimates as in the authors' evaluation.

    split       "train" or "test"
    num_images  the first so many images of the split; None for all
    num_times   None: all T terms, exactly. Else L_0 and so many of the other terms for each image, spread
                evenly over {2, ..., T}: unbiased, and cheaper by T/num_times
    batch_size  images a network call
    """

    name = "bits_per_dim"
    larger_is_better = False

    def __init__(self, *, split: str, num_images: int | None, num_times: int | None, batch_size: int) -> None:
        if any(count is not None and count < 1 for count in (num_images, num_times, batch_size)):
            raise Refused("the counts of metric.bits_per_dim must be at least 1 (num_images, num_times: or null).")
        self.split, self.num_images, self.num_times = split, num_images, num_times
        self.batch_size = batch_size
        self.reset()

    def prepare(self, data: ImageData) -> None:
        if data.facts.num_levels is None:
            raise Refused("bits_per_dim needs data with discrete grey levels; leave it out of metric=[...].")
        self.data = data
        available = len(data.load(self.split))
        self.count = min(self.num_images or available, available)

    def reset(self) -> None:
        self.sums = torch.zeros(6, dtype=torch.float64)

    def batches(self, rank: int, world_size: int) -> list[Tensor]:
        return list(index_batches(self.count, self.batch_size, rank, world_size))

    def update(self, diffusion: GaussianDiffusion, indices: Tensor) -> None:
        """Add the images at these indices of the split."""
        device = diffusion.schedule.log_alpha_bar.device
        x_0 = self.data.batch(self.split, indices.cpu()).images.to(device)
        indices = indices.to(device)
        if self.num_times is None:
            terms = bound(diffusion, x_0, lambda t: normal(0, Stream.BOUND, indices, t, x_0.shape[1:]))
        else:
            terms = self.subsampled(diffusion, x_0, indices, self.num_times)
        total = terms.total.double()
        parts = (total, total**2, terms.rate, terms.distortion, terms.prior, torch.ones_like(total))
        self.sums += torch.stack([part.double().sum() for part in parts]).cpu()

    def subsampled(self, diffusion: GaussianDiffusion, x_0: Images, indices: Tensor, k: int) -> Terms:
        """L_0, and k stratified terms of L_1, ..., L_{T-1}, each standing for (T - 1)/k of them."""
        steps = diffusion.num_steps - 1
        u = uniform(0, Stream.BOUND, indices)
        drawn = [torch.ones_like(indices)] + [((u + j) / k * steps).long() + 2 for j in range(k)]
        rows = []
        for t in drawn:
            eps = normal(0, Stream.BOUND, indices, t, x_0.shape[1:])
            rows.append(at_time(diffusion, x_0, times(t, x_0), eps, clip=True))
        kl, x_0_mse, eps_mse = (torch.stack(column) for column in zip(*rows, strict=True))
        kl[1:] *= steps / k
        return Terms(prior(diffusion, x_0), kl, x_0_mse, eps_mse)

    def compute(self) -> dict[str, float]:
        """The mean over all ranks' images, its standard error over images, and its parts; bits/dim."""
        total, squares, rate, distortion, prior_, n = over_ranks(self.sums).tolist()
        variance = max(squares / n - (total / n) ** 2, 0.0)
        return {
            "bits_per_dim": total / n,
            "bits_per_dim_std_error": (variance / max(n - 1, 1)) ** 0.5,
            "rate": rate / n,
            "distortion": distortion / n,
            "L_T": prior_ / n,
        }

    def protocol(self) -> dict[str, Any]:
        return {"split": self.split, "images": self.count, "times": self.num_times or "all", "clip": True}
