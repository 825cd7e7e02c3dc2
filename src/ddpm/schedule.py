"""The forward process: how fast data becomes noise.

    q(x_t | x_{t-1}) = N(x_t; sqrt(1 - beta_t) x_{t-1}, beta_t I)                 Ho et al. (2020), Eq. 2
    alpha_bar_t = prod_{s <= t} (1 - beta_s)
    q(x_t | x_0) = N(x_t; sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I)             Eq. 4

A schedule is a function that gives beta_1, ..., beta_T. `NoiseSchedule` keeps one table made of them,
log alpha_bar_t for t = 0, ..., T, from which every other number follows: through differences of the
table and `expm1` the product over a thousand steps costs no accuracy. A transition may go between any
two times s < t (Song et al. 2021, Sec. 4.2), which is all that strided sampling needs:

    alpha_bar_t / alpha_bar_s = 1 - beta(t, s)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.errors import Refused
from ddpm.types import Factors, Times

_MOST = 10**6  # steps; published schedules have up to 4,000


class NoiseSchedule(nn.Module):
    """The numbers of the forward process at the times of a batch, as float64 Factors.

    The table stays float64 whatever the module is cast to: a float32 copy errs by 3.7e-5 in beta.

    Raises Refused unless there are at least two betas in (0, 1], of which only the last may be 1.
    """

    log_alpha_bar: Tensor

    def __init__(self, betas: Tensor) -> None:
        super().__init__()
        _check(betas)
        self.register_buffer("log_alpha_bar", _running_sum(torch.log1p(-betas.double())), persistent=False)

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.log_alpha_bar) - 1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NoiseSchedule":
        """Follow a move to another device, never a cast."""
        self.log_alpha_bar = self.log_alpha_bar.to(fn(torch.empty(0)).device)
        return self

    def _at(self, t: Times) -> Tensor:
        return self.log_alpha_bar[t.to(self.log_alpha_bar.device)]

    def alpha_bar(self, t: Times) -> Factors:
        """prod_{s <= t} (1 - beta_s); 1 at t = 0."""
        return self._at(t).exp()

    def noise_var(self, t: Times) -> Factors:
        """1 - alpha_bar_t, the variance of q(x_t | x_0); 0 at t = 0."""
        return -torch.expm1(self._at(t))

    def snr(self, t: Times) -> Factors:
        """alpha_bar_t / (1 - alpha_bar_t), the signal-to-noise ratio (Kingma et al. 2021)."""
        return self.alpha_bar(t) / self.noise_var(t)

    def beta(self, t: Times, s: Times) -> Factors:
        """The variance of q(x_t | x_s); beta_t where s = t - 1."""
        return -torch.expm1(self._at(t) - self._at(s))

    def alpha(self, t: Times, s: Times) -> Factors:
        """1 - beta(t, s): the share of x_s's variance that is left in x_t."""
        return (self._at(t) - self._at(s)).exp()

    def beta_tilde(self, t: Times, s: Times) -> Factors:
        """The variance of q(x_s | x_t, x_0), Ho et al. (2020), Eq. 7, for any s < t; 0 at s = 0."""
        return self.noise_var(s) / self.noise_var(t) * self.beta(t, s)

    def log_beta_tilde(self, t: Times, s: Times) -> Factors:
        """log beta_tilde(t, s), with the first entry of the authors' code: where s = 0, at which
        beta_tilde vanishes, beta_tilde_2 stands in. Bits/dim depend on this choice."""
        return torch.where(s.to(self.log_alpha_bar.device) == 0, self._log_beta_tilde_2(), self.beta_tilde(t, s).log())

    def _log_beta_tilde_2(self) -> Tensor:
        two = torch.full((1,), 2, device=self.log_alpha_bar.device)  # made there: for a copy the host would wait
        return self.beta_tilde(two, two - 1).log()


def _running_sum(terms: Tensor) -> Tensor:
    """0 and the sums of the first 1, 2, ... terms. What rounding took from each sum is given back, as it
    adds up where the terms are equal: to 5e-12 over 4000 steps of beta = 0.02."""
    zero, sums = terms.new_zeros(1), terms.cumsum(0)
    lost = (terms - sums.diff(prepend=zero)).nan_to_num(0)  # nan: the last term may be -inf
    return torch.cat((zero, sums + lost.cumsum(0)))


def _check(betas: Tensor) -> None:
    if betas.dim() != 1 or len(betas) < 2:
        raise Refused(f"a schedule needs a list of at least two betas, not {tuple(betas.shape)}.")
    inside = (betas > 0) & (betas < 1)
    if not (inside[:-1].all() and (inside[-1] or betas[-1] == 1)):
        raise Refused(
            "schedule: every beta must lie strictly between 0 and 1 (the last one may be 1); change its numbers."
        )


def _checked(num_steps: int) -> int:
    if not 2 <= num_steps <= _MOST:
        raise Refused(f"schedule.num_steps is {num_steps}, but a diffusion has at least 2 steps and at most {_MOST:,}.")
    return num_steps


def linear(*, num_steps: int, beta_1: float, beta_T: float, rescale: bool) -> Tensor:
    """Evenly spaced betas, Ho et al. (2020), Sec. 4. `rescale` multiplies both ends by 1000/T, which
    keeps alpha_bar_T near its value at T = 1000 (Nichol & Dhariwal 2021, code); Ho et al. do not."""
    T = _checked(num_steps)
    scale = 1000 / T if rescale else 1.0
    return torch.linspace(scale * beta_1, scale * beta_T, T, dtype=torch.float64)


def quadratic(*, num_steps: int, beta_1: float, beta_T: float) -> Tensor:
    """sqrt(beta) evenly spaced: "quad" of Ho et al.'s code, "scaled_linear" of others."""
    if min(beta_1, beta_T) < 0:
        raise Refused(f"schedule.beta_1={beta_1} and schedule.beta_T={beta_T} must not be negative.")
    roots = torch.linspace(beta_1**0.5, beta_T**0.5, _checked(num_steps), dtype=torch.float64)
    return roots.square()


def constant(*, num_steps: int, beta: float) -> Tensor:
    """The same beta at every step."""
    return torch.full((_checked(num_steps),), beta, dtype=torch.float64)


def warmup(*, num_steps: int, beta_1: float, beta_T: float, fraction: float) -> Tensor:
    """Linear over the first `fraction` of the steps, then beta_T: "warmup10", "warmup50" of Ho et al."""
    if not 0 < fraction <= 1:
        raise Refused(f"schedule.fraction is {fraction}; it must lie in (0, 1].")
    betas = torch.full((_checked(num_steps),), beta_T, dtype=torch.float64)
    first = int(num_steps * fraction)
    betas[:first] = torch.linspace(beta_1, beta_T, first, dtype=torch.float64)
    return betas


def jsd(*, num_steps: int) -> Tensor:
    """beta_t = 1/(T - t + 1) (Sohl-Dickstein et al. 2015, Sec. 2.4.1): the last is 1, alpha_bar_T = 0."""
    return 1 / torch.arange(_checked(num_steps), 0, -1, dtype=torch.float64)


def sigmoid(*, num_steps: int, beta_1: float, beta_T: float, reach: float) -> Tensor:
    """beta_1 + (beta_T - beta_1) sigmoid(linspace(-reach, reach, T)), as in DDIM's code and diffusers."""
    rise = torch.linspace(-reach, reach, _checked(num_steps), dtype=torch.float64).sigmoid()
    return beta_1 + (beta_T - beta_1) * rise


def cosine(*, num_steps: int, offset: float, beta_max: float) -> Tensor:
    """alpha_bar_t = f(t)/f(0), f(t) = cos^2((t/T + offset)/(1 + offset) pi/2), each beta capped at
    beta_max: Nichol & Dhariwal (2021), Eq. 17.

    With c_t the angle from t to where the cosine vanishes, f(t) = sin^2 c_t, and 1 - f(t)/f(t-1) is
    sin(c_{t-1} - c_t) sin(c_{t-1} + c_t) / sin^2 c_{t-1}, in which nothing cancels."""
    if not 0 <= offset < math.inf:
        raise Refused(f"schedule.offset is {offset}; it must be 0 or more, 0.008 in the paper.")
    unit = math.pi / 2 / (1 + offset) / _checked(num_steps)
    c = unit * torch.arange(num_steps, -1, -1, dtype=torch.float64)
    betas = math.sin(unit) * (c[:-1] + c[1:]).sin() / c[:-1].sin().square()
    return betas.clamp(max=beta_max)


def custom(*, betas: Sequence[Any]) -> Tensor:
    """Any list of betas."""
    return torch.tensor([float(beta) for beta in betas], dtype=torch.float64)


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas (T,) of any schedule to betas (T,) whose alpha_bar_T is 0 and alpha_bar_1 as before:
    sqrt(alpha_bar) is shifted and scaled, Lin et al. (2024), Algorithm 1. Raises Refused for what are no betas.

    With a = sqrt(alpha_bar), the share of a_{t-1} - a_T that step t takes is all that is needed, and all
    that it is made of is positive: no digit is lost, and the last beta is 1 exactly.
    """
    _check(betas)
    half_logs = torch.log1p(-betas.double()) / 2
    fall = -_running_sum(half_logs)[1:-1].exp() * torch.expm1(half_logs[1:])  # a_{t-1} - a_t for t = 2, ..., T
    share = fall / fall.flip(0).cumsum(0).flip(0)
    return torch.cat((betas[:1].double(), share * (2 - share)))  # 1 - (1 - share)^2
