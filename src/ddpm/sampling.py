"""Sampling as a Lightning module, so that it runs on whatever the Trainer runs on.

Image i of seed s starts from normal(s, i, T) and takes normal(s, i, s') on its way into x_{s'}: the noise
that it sees depends neither on the batch it is made in nor on the rank that makes it.
"""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ddpm.diffusion import GaussianDiffusion
from ddpm.noise import Stream, normal
from ddpm.sampler import Noise, Sampler
from ddpm.types import Images


def noise_of(seed: int, indices: Tensor, shape: Sequence[int]) -> Noise:
    """The noise of each image of `indices` (b,) as a function of the time that it enters."""
    return lambda s: normal(seed, Stream.SAMPLE, indices, s, shape)


def draw(diffusion: GaussianDiffusion, sampler: Sampler, indices: Tensor, shape: Sequence[int], seed: int) -> Images:
    """Images number `indices` (b,) of a seed, in [-1, 1] but for what the sampler leaves unclipped."""
    noise = noise_of(seed, indices, shape)
    return sampler(diffusion, noise(diffusion.num_steps), noise)


class SamplingModule(LightningModule):
    """predict_step: indices (b,) to images (b, c, h, w)."""

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        sampler: Sampler,
        *,
        shape: Sequence[int],
        seed: int,
        label: int | None,
        guidance: float,
    ) -> None:
        super().__init__()
        self.diffusion, self.sampler, self.shape, self.seed = diffusion, sampler, tuple(shape), seed
        self.label, self.guidance = label, guidance

    def given(self, indices: Tensor) -> GaussianDiffusion:
        """The model of the asked label, if one is asked for."""
        if self.label is None:
            return self.diffusion
        return self.diffusion.given(torch.full_like(indices, self.label), self.guidance)

    def predict_step(self, indices: Tensor, batch_idx: int = 0) -> Images:
        if len(indices) == 0:
            return torch.empty(0, *self.shape, device=self.device)
        return draw(self.given(indices), self.sampler, indices, self.shape, self.seed)
