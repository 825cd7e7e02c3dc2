"""Exact networks: the closed-form optimum of every prediction for data that are simple enough."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from ddpm.diffusion import GaussianDiffusion
from ddpm.prediction import Epsilon, Prediction
from ddpm.sampler import Sampler
from ddpm.schedule import NoiseSchedule
from ddpm.sigma import Beta, Sigma
from ddpm.types import times


class ExactNetwork(nn.Module):
    """Says the prediction that stands for a given estimate of x_0, a function of (x_t, t)."""

    def __init__(self, schedule: NoiseSchedule, prediction: Prediction, estimate: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.schedule, self.prediction, self.estimate = schedule, prediction, estimate

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        t = times(time + 1, x_t)
        x_0 = self.estimate(x_t, t)
        a, b = self.schedule.alpha_bar(t).sqrt().to(x_t), self.schedule.noise_var(t).sqrt().to(x_t)
        return self.prediction.target(self.schedule, x_0, (x_t - a * x_0) / b, t)


def point(
    schedule: NoiseSchedule, x: float, sigma: Sigma | None = None, prediction: Prediction | None = None
) -> GaussianDiffusion:
    """Data that are one point."""
    prediction = prediction or Epsilon()
    network = ExactNetwork(schedule, prediction, lambda x_t, t: torch.full_like(x_t, x))
    return GaussianDiffusion(network, schedule, sigma or Beta(), prediction, 256)


def gaussian(
    schedule: NoiseSchedule,
    m: float,
    v: float,
    sigma: Sigma | None = None,
    prediction: Prediction | None = None,
) -> GaussianDiffusion:
    """Data ~ N(m, v): E[x_0 | x_t] = m + a v / (a^2 v + b^2) (x_t - a m)."""

    def estimate(x_t: Tensor, t: Tensor) -> Tensor:
        a, noise = schedule.alpha_bar(t).sqrt(), schedule.noise_var(t)
        return m + (a * v / (a**2 * v + noise)).to(x_t) * (x_t - (a * m).to(x_t))

    prediction = prediction or Epsilon()
    return GaussianDiffusion(ExactNetwork(schedule, prediction, estimate), schedule, sigma or Beta(), prediction, 256)


def moments(
    sampler: Sampler, diffusion: GaussianDiffusion, mean: float, var: float
) -> Iterator[tuple[int, float, float]]:
    """(s, mean, variance) of x_s after each step from x_T ~ N(mean, var), read off the affine steps."""
    for t, s in pairwise(sampler.times(diffusion.num_steps)):
        x = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
        eps = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
        at_0, of_x, of_eps = sampler.step(diffusion, x, times(t, x), times(s, x), eps)[0].flatten().tolist()
        mean, var = at_0 + (of_x - at_0) * mean, (of_x - at_0) ** 2 * var + (of_eps - at_0) ** 2
        yield s, mean, var
