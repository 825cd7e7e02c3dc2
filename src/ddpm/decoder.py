"""The decoder of L_0, log p_theta(x_0 | x_1) for data on grey levels: Ho et al. (2020), Eq. 13.

Each level x has the mass that N(mu_theta(x_1, 1), sigma_1^2) has in the bin between x - 1/(levels - 1) and
x + 1/(levels - 1), where the outermost bins reach to infinity: the masses of all levels sum to 1.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ddpm.errors import Refused
from ddpm.gaussian import Gaussian, wide
from ddpm.types import Images

_FAR = 1e6  # standard deviations; log-CDFs there, about -5e11, still have gradients in float64
_NARROW = -120.0  # stands in for smaller log-variances: 1/sigma = 1e26 is still finite in float32


class Decoder(ABC):
    """The log of a Gaussian's mass in a bin."""

    def log_prob(self, p: Gaussian, x: Images, num_levels: int) -> Images:
        """log p(x) of each element, in nats, for x on the levels {-1, ..., 1}. Finite, with a finite
        gradient, for every finite mean and however small the variance."""
        return self.log_mass(*_edges(p, x, num_levels)).to(x.dtype)

    @abstractmethod
    def log_mass(self, lower: Tensor, upper: Tensor) -> Tensor:
        """log(Phi(upper) - Phi(lower)) for lower <= upper, Phi being the standard normal CDF."""


class Exact(Decoder):
    """The mass itself, as a difference of log-CDFs, which keeps its relative accuracy in the tails."""

    def log_mass(self, lower: Tensor, upper: Tensor) -> Tensor:
        right = lower + upper > 0
        a, b = torch.where(right, -upper, lower), torch.where(right, -lower, upper)  # into the left tail
        log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
        log_mass: Tensor = log_b + _log_1m_exp(log_b - log_a)
        return log_mass


class Tanh(Decoder):
    """Ho et al.'s code: Phi(x) approximated by (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, and no
    probability below `floor`, so that no level costs more than -log(floor) and far out no gradient is left."""

    def __init__(self, *, floor: float) -> None:
        if not 0 < floor < 1:
            raise Refused(f"decoder.floor is {floor}; it must lie between 0 and 1 (the authors: 1e-12).")
        self.floor = floor

    def log_mass(self, lower: Tensor, upper: Tensor) -> Tensor:
        return (_tanh_cdf(upper) - _tanh_cdf(lower)).clamp(min=self.floor).log()


def _edges(p: Gaussian, x: Images, num_levels: int) -> tuple[Tensor, Tensor]:
    """The edges of x's bin in standard deviations of p from its mean, in float64. Neighbours have the very
    same edge in common, so that no mass is lost between them."""
    index = ((wide(x) + 1) / 2 * (num_levels - 1)).round()  # without float32's rounding of x
    mean, inv_std = wide(p.mean), (-0.5 * wide(p.log_var).clamp(min=_NARROW)).exp()
    edges = [(2 * k - num_levels) / (num_levels - 1) for k in (index, index + 1)]
    lower, upper = (((edge - mean) * inv_std).clamp(-_FAR, _FAR) for edge in edges)
    return lower.where(index > 0, -2 * _FAR), upper.where(index < num_levels - 1, 2 * _FAR)


def _log_1m_exp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x >= 0, from whichever form keeps its accuracy, with finite gradients of both."""
    middle = math.log(2)
    near = torch.log(-torch.expm1(-x.clamp(torch.finfo(x.dtype).tiny, middle)))
    return torch.where(x < middle, near, torch.log1p(-torch.exp(-x.clamp(min=middle))))


def _tanh_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
