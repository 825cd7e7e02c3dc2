"""The one distribution of the papers: every q and every p is a diagonal Gaussian."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.types import Images

_FAR = 1e6  # standard deviations; log-CDFs there, about -5e11, still have gradients in float64


@dataclass(frozen=True)
class Gaussian:
    """N(mean, exp(log_var) I), elementwise, in nats. `log_var` broadcasts against `mean`."""

    mean: Tensor
    log_var: Tensor

    def sample(self, eps: Images) -> Images:
        """mean + sigma eps, with eps ~ N(0, I) of the shape of the mean: randomness is an argument."""
        return self.mean + (0.5 * self.log_var).exp().to(eps) * eps

    def log_prob(self, x: Images) -> Tensor:
        """log N(x; mean, sigma^2) of each element, in nats."""
        squared = (x - self.mean).square() * (-self.log_var).exp()
        return -0.5 * (math.log(2 * math.pi) + self.log_var + squared)

    def kl(self, other: "Gaussian") -> Tensor:
        """KL(self || other) of each element, in nats; exact to rounding where the two nearly agree."""
        log_ratio = self.log_var - other.log_var
        spread = torch.expm1(log_ratio) - log_ratio  # no cancellation of 1 against exp(0)
        return 0.5 * (spread + (self.mean - other.mean).square() * (-other.log_var).exp())

    def discretized_log_prob(self, x: Images, num_levels: int) -> Tensor:
        """The decoder of Ho et al. (2020), Eq. 13, in nats: the log of the mass that each element's
        bin of width 2/(num_levels - 1) around x has, the outermost bins reaching to infinity.

        x must lie on the levels {-1, ..., 1}. Computed in float64 as a difference of log-CDFs, so that
        it keeps its relative accuracy far out in the tails.
        """
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        half = 1 / (num_levels - 1)
        level = ((x.to(wide) + 1) / (2 * half)).round() * (2 * half) - 1  # without float32's rounding
        centred, inv_std = level - self.mean.to(wide), (-0.5 * self.log_var.to(wide)).exp()
        upper = ((centred + half) * inv_std).clamp(-_FAR, _FAR)
        lower = ((centred - half) * inv_std).clamp(-_FAR, _FAR)
        inside = _log_normal_mass(lower, upper)
        log_prob = torch.where(x > 1 - half, torch.special.log_ndtr(-lower), inside)
        return torch.where(x < -1 + half, torch.special.log_ndtr(upper), log_prob).to(x.dtype)


def _log_normal_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Phi(upper) - Phi(lower)) for lower < upper, from the tail in which both lie."""
    right = lower + upper > 0
    a, b = torch.where(right, -upper, lower), torch.where(right, -lower, upper)
    log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
    gap = (log_b - log_a).clamp(min=torch.finfo(a.dtype).tiny)
    log_mass: Tensor = log_b + torch.log(-torch.expm1(-gap))
    return log_mass
