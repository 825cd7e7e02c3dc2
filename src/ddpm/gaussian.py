"""The one distribution of the papers: every q and every p is a diagonal Gaussian."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.types import Images


@dataclass(frozen=True)
class Gaussian:
    """N(mean, exp(log_var) I), elementwise, in nats. `log_var` broadcasts against `mean`."""

    mean: Tensor
    log_var: Tensor

    def sample(self, eps: Images) -> Images:
        """mean + sigma eps, with eps ~ N(0, I) of the shape of the mean: randomness is an argument."""
        return self.mean + (0.5 * self.log_var).exp().to(eps) * eps

    def where(self, condition: Tensor, other: "Gaussian") -> "Gaussian":
        """This one where the condition holds, the other elsewhere."""
        return Gaussian(self.mean.where(condition, other.mean), self.log_var.where(condition, other.log_var))

    def kl(self, other: "Gaussian") -> Tensor:
        """KL(self || other) of each element, in nats; exact to rounding where the two nearly agree."""
        log_ratio = self.log_var - other.log_var
        spread = torch.expm1(log_ratio) - log_ratio  # no cancellation of 1 against exp(0)
        return 0.5 * (spread + (self.mean - other.mean).square() * (-other.log_var).exp())


def wide(x: Tensor) -> Tensor:
    """x in float64, for differences of numbers that nearly agree."""
    return x.double()
