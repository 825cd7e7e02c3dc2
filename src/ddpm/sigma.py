"""The variance of the reverse process: p_theta(x_s | x_t) = N(mu_theta, sigma^2 I), Ho et al. (2020), Eq. 1.

beta is optimal for x_0 ~ N(0, I), beta_tilde for x_0 a single point (Sec. 3.2): they bound the variance
of the true reverse step for data of unit variance. Learned variances are Nichol & Dhariwal (2021), the
variance that is optimal for a given network is Bao et al. (2022).

The first step is a choice, and bits/dim depend on it: at s = 0, where beta_tilde vanishes, its log is
taken to be log beta_tilde_2, and for sigma = beta too, as in Ho et al.'s code ("fixedlarge").
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ddpm.errors import Refused
from ddpm.schedule import NoiseSchedule
from ddpm.types import Times


class Sigma(ABC):
    """log sigma^2 of p_theta(x_s | x_t), for s < t."""

    learned: ClassVar[bool]  # does the network give a second output v?
    strided: ClassVar[bool] = True  # is it known for s < t - 1?

    @abstractmethod
    def log_var(self, schedule: NoiseSchedule, t: Times, s: Times, v: Tensor | None) -> Tensor:
        """log sigma^2 in nats: (b, 1, ..., 1) where fixed, of v's shape (b, *shape) where learned."""


class Beta(Sigma):
    """sigma^2 = beta(t, s): "fixedlarge"."""

    learned = False

    def log_var(self, schedule: NoiseSchedule, t: Times, s: Times, v: Tensor | None) -> Tensor:
        log_beta_tilde = schedule.log_beta_tilde(t, s)
        return torch.where(s.to(log_beta_tilde.device) == 0, log_beta_tilde, schedule.beta(t, s).log())


class BetaTilde(Sigma):
    """sigma^2 = beta_tilde(t, s), the variance of the posterior (Eq. 7): "fixedsmall"."""

    learned = False

    def log_var(self, schedule: NoiseSchedule, t: Times, s: Times, v: Tensor | None) -> Tensor:
        return schedule.log_beta_tilde(t, s)


class Interpolated(Sigma):
    """log sigma^2 = f log beta + (1 - f) log beta_tilde, for one fixed f in [0, 1]."""

    learned = False

    def __init__(self, *, fraction: float) -> None:
        if not 0 <= fraction <= 1:
            raise Refused(f"sigma.fraction is {fraction}; it must lie in [0, 1], from beta_tilde to beta.")
        self.fraction = fraction

    def log_var(self, schedule: NoiseSchedule, t: Times, s: Times, v: Tensor | None) -> Tensor:
        large, small = Beta().log_var(schedule, t, s, v), schedule.log_beta_tilde(t, s)
        return self.fraction * large + (1 - self.fraction) * small


class Learned(Sigma):
    """log sigma^2 = v itself ("learned diagonal" of Ho et al. 2020, Table 2): that of one step of the
    trained process, so it cannot be strided."""

    learned = True
    strided = False

    def log_var(self, schedule: NoiseSchedule, t: Times, s: Times, v: Tensor | None) -> Tensor:
        return _given(v)


class LearnedRange(Sigma):
    """log sigma^2 = f log beta + (1 - f) log beta_tilde with f = (v + 1)/2 elementwise: Nichol &
    Dhariwal (2021), Eq. 15. At t = 1 the range is [beta_tilde_2, beta_1], as in their code."""

    learned = True

    def log_var(self, schedule: NoiseSchedule, t: Times, s: Times, v: Tensor | None) -> Tensor:
        fraction = (_given(v) + 1) / 2
        large, small = schedule.beta(t, s).log(), schedule.log_beta_tilde(t, s)
        return fraction * large.to(fraction) + (1 - fraction) * small.to(fraction)


class Analytic(Sigma):
    """The fixed variance that is optimal for the network as it is, for any stride (Bao et al. 2022, Theorem 1):

        sigma^2 = beta_tilde(t, s) + beta(t, s)^2 / (alpha(t, s) (1 - alpha_bar_t)) (1 - Gamma_t)

    with Gamma_t = E |eps_theta(x_t, t)|^2 / d. Images in [-1, 1] have a variance of at most 1 whatever is known of
    them, which bounds the second part (their Theorem 2) where the estimate of Gamma is noisy. The first entry,
    at s = 0, comes from the same formula, where that is not below log beta_tilde_2.

    num_images  images of the training split that Gamma is estimated with, at each t
    batch_size  images a network call
    cache       the folder where the estimate is kept
    eps_power   Gamma_t for t = 0, ..., T, (T + 1,); see `ddpm.analytic`
    """

    learned = False

    def __init__(self, *, num_images: int, batch_size: int, cache: str, eps_power: Tensor | None) -> None:
        if eps_power is None:
            raise Refused(
                "sigma=analytic is estimated from a trained model; to train choose sigma=beta_tilde, and give "
                "sigma=analytic to sample.py or evaluate.py."
            )
        self.eps_power = eps_power.double().clamp(max=1)

    def log_var(self, schedule: NoiseSchedule, t: Times, s: Times, v: Tensor | None) -> Tensor:
        place = schedule.log_alpha_bar.device
        self.eps_power = self.eps_power.to(place)
        unexplained = 1 - self.eps_power[t.to(place)]
        spread = schedule.beta(t, s).square() / (schedule.alpha(t, s) * schedule.noise_var(t))
        most = schedule.alpha_bar(s) * (schedule.beta(t, s) / schedule.noise_var(t)).square()
        variance = schedule.beta_tilde(t, s) + torch.minimum(spread * unexplained, most)
        return torch.maximum(variance.log(), schedule.log_beta_tilde(t, s))


def _given(v: Tensor | None) -> Tensor:
    if v is None:
        raise Refused("a learned sigma needs a network with a second output; train it with a learned sigma.")
    return v
