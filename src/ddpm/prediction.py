"""What the network predicts. At fixed (x_t, t) each is an affine bijection with x_0.

With a = sqrt(alpha_bar_t), b = sqrt(1 - alpha_bar_t), x_t = a x_0 + b eps (Ho et al. 2020, Eq. 4):

    epsilon   eps                       Ho et al. (2020), Eq. 11
    x_0       x_0                       Sec. 3.2
    mean      mu_tilde(x_t, x_0)        Eq. 7, the mean of q(x_{t-1} | x_t, x_0)
    velocity  a eps - b x_0             Salimans & Ho (2022), Appendix D
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from ddpm.schedule import NoiseSchedule
from ddpm.types import Factors, Images, Times


class Prediction(ABC):
    """The network's target, and x_0 back from the network's output."""

    needs_signal: ClassVar[bool] = False  # is x_0 lost where alpha_bar_t = 0?
    is_mean: ClassVar[bool] = False  # is the output the mean of p itself, whatever the estimate of x_0 is clipped to?

    @abstractmethod
    def target(self, schedule: NoiseSchedule, x_0: Images, eps: Images, t: Times) -> Images:
        """What the network should say at x_t = a x_0 + b eps."""

    @abstractmethod
    def x_0(self, schedule: NoiseSchedule, output: Images, x_t: Images, t: Times) -> Images:
        """The x_0 that the output at (x_t, t) stands for: the inverse of `target`."""

    @abstractmethod
    def squared_slope(self, schedule: NoiseSchedule, t: Times) -> Factors:
        """(d target / d x_0)^2 at fixed x_t: what carries a weight on ||x_0 - x_0_hat||^2 over to the
        error of the output, ||target - output||^2 = squared_slope ||x_0 - x_0_hat||^2."""


class Epsilon(Prediction):
    """The noise."""

    needs_signal = True

    def target(self, schedule: NoiseSchedule, x_0: Images, eps: Images, t: Times) -> Images:
        return eps

    def x_0(self, schedule: NoiseSchedule, output: Images, x_t: Images, t: Times) -> Images:
        a, b = schedule.alpha_bar(t).sqrt(), schedule.noise_var(t).sqrt()
        return (1 / a).to(x_t) * x_t - (b / a).to(x_t) * output

    def squared_slope(self, schedule: NoiseSchedule, t: Times) -> Factors:
        return schedule.snr(t)


class Data(Prediction):
    """The image itself."""

    def target(self, schedule: NoiseSchedule, x_0: Images, eps: Images, t: Times) -> Images:
        return x_0

    def x_0(self, schedule: NoiseSchedule, output: Images, x_t: Images, t: Times) -> Images:
        return output

    def squared_slope(self, schedule: NoiseSchedule, t: Times) -> Factors:
        return schedule.alpha_bar(t * 0)


class Mean(Prediction):
    """mu_tilde, the mean of the posterior of one step. As in Ho et al.'s code p has it as its mean, and what
    clipping touches is the estimate of x_0 alone."""

    is_mean = True

    def target(self, schedule: NoiseSchedule, x_0: Images, eps: Images, t: Times) -> Images:
        x_t = schedule.alpha_bar(t).sqrt().to(x_0) * x_0 + schedule.noise_var(t).sqrt().to(x_0) * eps
        of_x_0, of_x_t = posterior_coefficients(schedule, t, t - 1)
        return of_x_0.to(x_0) * x_0 + of_x_t.to(x_0) * x_t

    def x_0(self, schedule: NoiseSchedule, output: Images, x_t: Images, t: Times) -> Images:
        of_x_0, of_x_t = posterior_coefficients(schedule, t, t - 1)
        return (1 / of_x_0).to(x_t) * output - (of_x_t / of_x_0).to(x_t) * x_t

    def squared_slope(self, schedule: NoiseSchedule, t: Times) -> Factors:
        return posterior_coefficients(schedule, t, t - 1)[0].square()


class Velocity(Prediction):
    """a eps - b x_0."""

    def target(self, schedule: NoiseSchedule, x_0: Images, eps: Images, t: Times) -> Images:
        a, b = schedule.alpha_bar(t).sqrt(), schedule.noise_var(t).sqrt()
        return a.to(x_0) * eps - b.to(x_0) * x_0

    def x_0(self, schedule: NoiseSchedule, output: Images, x_t: Images, t: Times) -> Images:
        a, b = schedule.alpha_bar(t).sqrt(), schedule.noise_var(t).sqrt()
        return a.to(x_t) * x_t - b.to(x_t) * output

    def squared_slope(self, schedule: NoiseSchedule, t: Times) -> Factors:
        return 1 / schedule.noise_var(t)


def posterior_coefficients(schedule: NoiseSchedule, t: Times, s: Times) -> tuple[Factors, Factors]:
    """The coefficients of x_0 and x_t in mu_tilde, the mean of q(x_s | x_t, x_0): Ho et al. (2020),
    Eq. 7, for any s < t."""
    of_x_0 = schedule.alpha_bar(s).sqrt() * schedule.beta(t, s) / schedule.noise_var(t)
    of_x_t = schedule.alpha(t, s).sqrt() * schedule.noise_var(s) / schedule.noise_var(t)
    return of_x_0, of_x_t
