"""From noise to images: walks down a list of times t_1 > t_2 > ... > 0, one network call a step.

`trajectory` is Algorithm 2 of Ho et al. (2020): x_T ~ N(0, I), then x_s from x_t until s = 0. A step may
span any s < t, so fewer steps are the same formulas over fewer times.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np

from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import Refused
from ddpm.types import Images, Times, times

Noise = Callable[[int], Images]  # the noise that enters x_s; x_T itself at s = T


class Spacing(Enum):
    """Which n of the times {1, ..., T} are visited."""

    LEADING = "leading"  # 1, 1 + c, 1 + 2c, ... with c = T // n: "linear" of Song et al. (2021), D.2
    LINSPACE = "linspace"  # n times from 1 to T, both included, rounded
    TRAILING = "trailing"  # T, T - T/n, ..., rounded (Lin et al. 2024, Table 2)
    QUADRATIC = "quadratic"  # linspace(0, sqrt(0.8 T), n)^2: Song et al. (2021), D.2 and code

    def times(self, num_steps: int, n: int) -> list[int]:
        """Descending. Quadratic times that fall together are visited once."""
        visited = {
            Spacing.LEADING: 1 + np.arange(n) * (num_steps // n),
            Spacing.LINSPACE: 1 + np.linspace(num_steps - 1, 0, n).round(),
            Spacing.TRAILING: (num_steps - np.arange(n) * num_steps / n).round(),
            Spacing.QUADRATIC: 1 + np.floor(np.linspace(np.sqrt(0.8 * num_steps), 0, n) ** 2),
        }[self]
        return sorted({int(time) for time in visited}, reverse=True)


class Step(NamedTuple):
    """Where a step from t to s has led."""

    s: int
    x_s: Images
    x_0: Images  # the estimate of x_0 that it was made with


class Sampler(ABC):
    """A rule for one step, and the times it is applied at.

    num_steps  how many times to visit; None for all T
    clip       clip the estimates of x_0 to [-1, 1], as the authors do
    """

    has_own_sigma: ClassVar[bool] = False  # does it ignore the model's sigma?

    def __init__(self, *, num_steps: int | None, spacing: str, clip: bool) -> None:
        if num_steps is not None and num_steps < 1:
            raise Refused(f"sampler.num_steps is {num_steps}; it must be at least 1, or null for all T.")
        if spacing not in {choice.value for choice in Spacing}:
            raise Refused(f"sampler.spacing={spacing} is not one of {', '.join(choice.value for choice in Spacing)}.")
        self.num_steps, self.spacing, self.clip = num_steps, Spacing(spacing), clip

    def times(self, num_steps: int) -> list[int]:
        """The times visited for a model of T = num_steps, descending, and the 0 at the end."""
        n = num_steps if self.num_steps is None else self.num_steps
        if n > num_steps:
            raise Refused(f"sampler.num_steps is {n}, but the model has only {num_steps} steps.")
        visited = range(num_steps, 0, -1) if n == num_steps else self.spacing.times(num_steps, n)
        return [*visited, 0]

    @abstractmethod
    def step(self, diffusion: GaussianDiffusion, x_t: Images, t: Times, s: Times, eps: Images) -> tuple[Images, Images]:
        """x_s from x_t with noise eps, and the estimate of x_0 on the way."""

    def trajectory(
        self, diffusion: GaussianDiffusion, x_T: Images, noise: Noise, start: int | None = None
    ) -> Iterator[Step]:
        """All steps from x_T to x_0, or from x_t at the first visited time not above `start`."""
        x_t = x_T
        for t, s in pairwise(time for time in self.times(diffusion.num_steps) if start is None or time <= start):
            x_t, x_0 = self.step(diffusion, x_t, times(t, x_t), times(s, x_t), noise(s))
            yield Step(s, x_t, x_0)

    def __call__(self, diffusion: GaussianDiffusion, x_T: Images, noise: Noise) -> Images:
        """x_0 from x_T."""
        (last,) = deque(self.trajectory(diffusion, x_T, noise), maxlen=1)
        return last.x_s


class Ancestral(Sampler):
    """x_s ~ p_theta(x_s | x_t), and its mean at s = 0: Ho et al. (2020), Algorithm 2."""

    def step(self, diffusion: GaussianDiffusion, x_t: Images, t: Times, s: Times, eps: Images) -> tuple[Images, Images]:
        output = diffusion(x_t, t)
        x_0 = diffusion.x_0(output, x_t, t, self.clip)
        p = diffusion.p(output, x_t, t, s, self.clip)
        return p.sample(eps * (s > 0)), x_0


class DDIM(Sampler):
    """Song et al. (2021), Eq. 12, with sigma^2 = eta^2 beta_tilde(t, s) (Eq. 16): deterministic for
    eta = 0, ancestral with beta_tilde for eta = 1. eps is derived again from the clipped x_0."""

    has_own_sigma = True

    def __init__(self, *, num_steps: int | None, spacing: str, clip: bool, eta: float) -> None:
        super().__init__(num_steps=num_steps, spacing=spacing, clip=clip)
        if not 0 <= eta <= 1:
            raise Refused(f"sampler.eta is {eta}; it must lie in [0, 1], from DDIM to ancestral sampling.")
        self.eta = eta

    def step(self, diffusion: GaussianDiffusion, x_t: Images, t: Times, s: Times, eps: Images) -> tuple[Images, Images]:
        schedule = diffusion.schedule
        x_0 = diffusion.x_0(diffusion(x_t, t), x_t, t, self.clip)
        b_t = schedule.noise_var(t).sqrt()
        predicted = (x_t - schedule.alpha_bar(t).sqrt().to(x_t) * x_0) / b_t.to(x_t)
        variance = self.eta**2 * schedule.beta_tilde(t, s)
        direction = (schedule.noise_var(s) - variance).clamp(min=0).sqrt()
        mean = schedule.alpha_bar(s).sqrt().to(x_t) * x_0 + direction.to(x_t) * predicted
        return mean + variance.sqrt().to(x_t) * eps, x_0
