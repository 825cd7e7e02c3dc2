"""The variational bound on -log p(x_0), Ho et al. (2020), Eq. 5, in bits per dimension.

    L_T      KL(q(x_T | x_0) || N(0, I))                               no parameters
    L_{t-1}  KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t))       t = 2, ..., T
    L_0      -log p_theta(x_0 | x_1), discretised (Eq. 13, by the model's decoder)

L_0 is the distortion of the bound, all else its rate (Sec. 4.3). In progressive coding, `ddpm.rate_distortion`, the
distortion is another: the error of the estimate of x_0 on the scale of the pixels.

Computed in float64 from what the network says, whatever its dtype: L_{t-1} compares two means that nearly
agree, of which float32 would leave three digits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.diffusion import GaussianDiffusion, Output
from ddpm.gaussian import Gaussian, wide
from ddpm.types import Images, Times, times


def mean_flat(x: Images) -> Tensor:
    """The mean over all dimensions but the batch's: (b,)."""
    return x.flatten(1).mean(1)


def prior(diffusion: GaussianDiffusion, x_0: Images) -> Tensor:
    """L_T of each image, bits/dim, (b,) float64."""
    q = diffusion.q(wide(x_0), times(diffusion.num_steps, x_0), times(0, x_0))
    standard = Gaussian(torch.zeros_like(q.mean), torch.zeros_like(q.log_var))
    return mean_flat(q.kl(standard)) / math.log(2)


def term(diffusion: GaussianDiffusion, output: Output, x_0: Images, x_t: Images, t: Times, clip: bool) -> Tensor:
    """L_{t-1} of each image, or L_0 where t = 1, bits/dim, (b,) float64."""
    p = diffusion.p(output.wide(), wide(x_t), t, t - 1, clip)
    posterior = diffusion.posterior(wide(x_0), wide(x_t), t, t - 1)
    kl = mean_flat(posterior.kl(p.where(t > 1, posterior)))  # 0 at t = 1, and so is its gradient
    decoder = -mean_flat(diffusion.decoder.log_prob(p, wide(x_0), diffusion.num_levels))
    return torch.where(t.flatten() == 1, decoder, kl) / math.log(2)


@dataclass(frozen=True)
class Terms:
    """The bound of some images, term by term, in float64: row t - 1 of `kl` and of the errors belongs to time t.

    Row 0 of `kl` is L_0, which is no KL but the decoder's.
    """

    prior: Tensor  # L_T (b,), bits/dim
    kl: Tensor  # L_0, ..., L_{T-1} (T, b), bits/dim
    x_0_mse: Tensor  # (T, b)
    eps_mse: Tensor  # (T, b)

    @property
    def total(self) -> Tensor:
        """The bound (b,), bits/dim."""
        return self.prior + self.kl.sum(0)

    @property
    def distortion(self) -> Tensor:
        """L_0 (b,), bits/dim."""
        return self.kl[0]

    @property
    def rate(self) -> Tensor:
        """L_1 + ... + L_T (b,), bits/dim."""
        return self.prior + self.kl[1:].sum(0)


def bound(diffusion: GaussianDiffusion, x_0: Images, noise: Callable[[int], Images], clip: bool = True) -> Terms:
    """The whole bound on -log p(x_0), one network call and one noise(t) a time, for t = 1, ..., T.

    clip is True in the authors' evaluation, False in their training.
    """
    rows = [at_time(diffusion, x_0, times(t, x_0), noise(t), clip) for t in range(1, diffusion.num_steps + 1)]
    kl, x_0_mse, eps_mse = (torch.stack(column) for column in zip(*rows, strict=True))
    return Terms(prior(diffusion, x_0), kl, x_0_mse, eps_mse)


def at_time(
    diffusion: GaussianDiffusion, x_0: Images, t: Times, eps: Images, clip: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """L_{t-1} in bits/dim, and the mean squared errors of x_0 and of eps, at one time: (b,) float64 each."""
    x_t = diffusion.q(x_0, t, t * 0).sample(eps)
    output = diffusion(x_t, t)
    squared = (wide(x_0) - diffusion.x_0(output.wide(), wide(x_t), t, clip)).square()
    eps_squared = diffusion.schedule.snr(t).to(squared) * squared
    return term(diffusion, output, x_0, x_t, t, clip), mean_flat(squared), mean_flat(eps_squared)
