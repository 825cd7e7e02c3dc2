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
import torch

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
    """A way down the times that it visits.

    num_steps  how many times to visit; None for all T
    clip       True: clip the estimates of x_0 to [-1, 1], as the authors do; False: do not; a quantile in
               (0, 1): threshold them dynamically (see `ddpm.diffusion.clipped`)
    """

    has_own_sigma: ClassVar[bool] = False  # does it ignore the model's sigma?

    def __init__(self, *, num_steps: int | None, spacing: str, clip: bool | float) -> None:
        if num_steps is not None and num_steps < 1:
            raise Refused(f"sampler.num_steps is {num_steps}; it must be at least 1, or null for all T.")
        if not isinstance(clip, bool) and not 0 < clip < 1:
            raise Refused(f"sampler.clip is {clip}; it must be true, false, or a quantile between 0 and 1.")
        if spacing not in {choice.value for choice in Spacing}:
            raise Refused(f"sampler.spacing={spacing} is not one of {', '.join(choice.value for choice in Spacing)}.")
        self.num_steps, self.spacing, self.clip = num_steps, Spacing(spacing), clip

    @property
    def name(self) -> str:
        """What it is called in a score's name."""
        return type(self).__name__.lower()

    def told(self, num_steps: int) -> str:
        """Its name and its steps for a model of T = num_steps: ancestral_1000."""
        return f"{self.name}_{num_steps if self.num_steps is None else self.num_steps}"

    def times(self, num_steps: int) -> list[int]:
        """The times visited for a model of T = num_steps, descending, and the 0 at the end."""
        n = num_steps if self.num_steps is None else self.num_steps
        if n > num_steps:
            raise Refused(f"sampler.num_steps is {n}, but the model has only {num_steps} steps.")
        visited = range(num_steps, 0, -1) if n == num_steps else self.spacing.times(num_steps, n)
        return [*visited, 0]

    @abstractmethod
    def trajectory(
        self, diffusion: GaussianDiffusion, x_T: Images, noise: Noise, start: int | None = None
    ) -> Iterator[Step]:
        """All steps from x_T (b, c, h, w) to x_0, or from x_t at the first visited time not above `start`; `noise` is
        asked once a step, for what enters x_s, unless nothing does."""

    def __call__(self, diffusion: GaussianDiffusion, x_T: Images, noise: Noise) -> Images:
        """x_0 from x_T, (b, c, h, w)."""
        (last,) = deque(self.trajectory(diffusion, x_T, noise), maxlen=1)
        return last.x_s


class Stepwise(Sampler):
    """A sampler whose steps know nothing of each other."""

    @property
    def is_noisy(self) -> bool:
        """Does noise enter on the way?"""
        return True

    @abstractmethod
    def step(self, diffusion: GaussianDiffusion, x_t: Images, t: Times, s: Times, eps: Images) -> tuple[Images, Images]:
        """x_s from x_t with noise eps, and the estimate of x_0 on the way: both (b, c, h, w)."""

    def trajectory(
        self, diffusion: GaussianDiffusion, x_T: Images, noise: Noise, start: int | None = None
    ) -> Iterator[Step]:
        x_t = x_T
        for t, s in pairwise(time for time in self.times(diffusion.num_steps) if start is None or time <= start):
            eps = noise(s) if self.is_noisy else torch.zeros_like(x_t)
            x_t, x_0 = self.step(diffusion, x_t, times(t, x_t), times(s, x_t), eps)
            yield Step(s, x_t, x_0)


class Ancestral(Stepwise):
    """x_s ~ p_theta(x_s | x_t), and its mean at s = 0: Ho et al. (2020), Algorithm 2."""

    def step(self, diffusion: GaussianDiffusion, x_t: Images, t: Times, s: Times, eps: Images) -> tuple[Images, Images]:
        output = diffusion(x_t, t)
        x_0 = diffusion.x_0(output, x_t, t, self.clip)
        p = diffusion.p(output, x_t, t, s, self.clip)
        return p.sample(eps * (s > 0)), x_0


class DDIM(Stepwise):
    """Song et al. (2021), Eq. 12, with sigma^2 = eta^2 beta_tilde(t, s) (Eq. 16): deterministic for
    eta = 0, ancestral with beta_tilde for eta = 1. eps is derived again from the clipped x_0."""

    has_own_sigma = True

    def __init__(self, *, num_steps: int | None, spacing: str, clip: bool | float, eta: float) -> None:
        super().__init__(num_steps=num_steps, spacing=spacing, clip=clip)
        if not 0 <= eta <= 1:
            raise Refused(f"sampler.eta is {eta}; it must lie in [0, 1], from DDIM to ancestral sampling.")
        self.eta = eta

    @property
    def name(self) -> str:
        return f"ddim_eta_{self.eta:g}" if self.eta else "ddim"

    @property
    def is_noisy(self) -> bool:
        return self.eta > 0

    def step(self, diffusion: GaussianDiffusion, x_t: Images, t: Times, s: Times, eps: Images) -> tuple[Images, Images]:
        schedule = diffusion.schedule
        x_0, predicted = estimates(diffusion, x_t, t, self.clip)
        variance = self.eta**2 * schedule.beta_tilde(t, s)
        direction = (schedule.noise_var(s) - variance).clamp(min=0).sqrt()
        mean = schedule.alpha_bar(s).sqrt().to(x_t) * x_0 + direction.to(x_t) * predicted
        return mean + variance.sqrt().to(x_t) * eps, x_0

    def invert(self, diffusion: GaussianDiffusion, x_0: Images) -> Images:
        """The noise x_T from which eta = 0 leads back to x_0: the same Euler steps of the ODE upwards
        (Song et al. 2021, Eq. 14), each with the eps of where it starts. At x_0 the network is asked for t = 1."""
        schedule, x_s = diffusion.schedule, x_0
        for s, t in pairwise(times(time, x_0) for time in reversed(self.times(diffusion.num_steps))):
            _, eps = estimates(diffusion, x_s, s.clamp(min=1), self.clip)
            gain = schedule.alpha(t, s).sqrt()
            rise = schedule.noise_var(t).sqrt() - gain * schedule.noise_var(s).sqrt()
            x_s = gain.to(x_s) * x_s + rise.to(x_s) * eps
        return x_s


class Heun(Stepwise):
    """Heun's second-order steps of the probability-flow ODE, d(x/a) = eps d(b/a) with a^2 = alpha_bar_t and
    b^2 = 1 - a^2 (Song et al. 2021, Eq. 14; Karras et al. 2022, Algorithm 1): a step of DDIM with eta = 0,
    corrected by the eps of where it leads. Two network calls a step; the last step, to s = 0, and one from
    alpha_bar_t = 0, where the slope has no end, stay of the first order."""

    has_own_sigma = True
    is_noisy = False

    def step(self, diffusion: GaussianDiffusion, x_t: Images, t: Times, s: Times, eps: Images) -> tuple[Images, Images]:
        schedule = diffusion.schedule
        x_0, here = estimates(diffusion, x_t, t, self.clip)
        a_s, b_s = schedule.alpha_bar(s).sqrt(), schedule.noise_var(s).sqrt()
        euler = a_s.to(x_t) * x_0 + b_s.to(x_t) * here
        _, there = estimates(diffusion, euler, s.clamp(min=1), self.clip)
        fall = b_s - schedule.alpha(t, s).rsqrt() * schedule.noise_var(t).sqrt()
        second = (s.to(fall.device) > 0) & fall.isfinite()
        return euler + torch.where(second, fall / 2, 0.0).to(x_t) * (there - here), x_0


def estimates(diffusion: GaussianDiffusion, x_t: Images, t: Times, clip: bool | float) -> tuple[Images, Images]:
    """x_0 as the network estimates it, clipped, and the eps that x_t then holds."""
    x_0 = diffusion.x_0(diffusion(x_t, t), x_t, t, clip)
    a, b = diffusion.schedule.alpha_bar(t).sqrt(), diffusion.schedule.noise_var(t).sqrt()
    return x_0, (x_t - a.to(x_t) * x_0) / b.to(x_t)
