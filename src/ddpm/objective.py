"""What training minimises: a loss for each image at a given t and eps. Nothing here draws a number.

L_simple  ||eps - eps_theta||^2, mean over dimensions        Ho et al. (2020), Eq. 14
L_vlb     L_{t-1} in bits/dim                                Eq. 5
L_hybrid  L_simple + lambda L_vlb                            Nichol & Dhariwal (2021), Eq. 16
min-SNR   min(SNR, gamma) ||x_0 - x_0_hat||^2                Hang et al. (2023), Sec. 3.4
P2        SNR / (k + SNR)^gamma ||x_0 - x_0_hat||^2          Choi et al. (2022)
truncated max(SNR, floor) ||x_0 - x_0_hat||^2                Salimans & Ho (2022), Sec. 4

The weight of the error of eps itself is SNR. Where SNR_T = 0, of these weights only the truncated one is not 0.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from ddpm.diffusion import GaussianDiffusion, Output
from ddpm.errors import Refused
from ddpm.likelihood import mean_flat, term
from ddpm.schedule import NoiseSchedule
from ddpm.types import Factors, Images, Times


class Objective(ABC):
    """A loss (b,) for images x_0 at times t with noise eps."""

    trains_sigma: ClassVar[bool]  # does a learned sigma get a gradient?
    only_for_learned: ClassVar[bool] = False  # is it pointless for a fixed sigma?

    def __call__(
        self, diffusion: GaussianDiffusion, x_0: Images, t: Times, eps: Images, extra: Images | None = None
    ) -> Tensor:
        """One network call at x_t ~ q(x_t | x_0).

        With extra = gamma xi the network sees the x_t of eps + gamma xi, and the network alone: target and
        bound stay those of eps (input perturbation, Ning et al. 2023).
        """
        q = diffusion.q(x_0, t, t * 0)
        x_t = q.sample(eps)
        seen = x_t if extra is None else q.sample(eps + extra)
        return self.loss(diffusion, diffusion(seen, t), x_0, x_t, t, eps)

    @abstractmethod
    def loss(
        self, diffusion: GaussianDiffusion, output: Output, x_0: Images, x_t: Images, t: Times, eps: Images
    ) -> Tensor:
        """The loss of the network's output at x_t: (b,)."""


class Weighted(Objective):
    """weight(t) ||x_0 - x_0_hat||^2, mean over dimensions, whatever the network predicts."""

    trains_sigma = False

    def loss(
        self, diffusion: GaussianDiffusion, output: Output, x_0: Images, x_t: Images, t: Times, eps: Images
    ) -> Tensor:
        return self.carried(diffusion, t).flatten().to(x_0) * target_error(diffusion, output, x_0, t, eps)

    def carried(self, diffusion: GaussianDiffusion, t: Times) -> Factors:
        """The weight of the squared error of the output that stands for this weight of that of x_0."""
        return self.weight(diffusion.schedule, t) / diffusion.prediction.squared_slope(diffusion.schedule, t)

    @abstractmethod
    def weight(self, schedule: NoiseSchedule, t: Times) -> Factors:
        """The weight of the squared error of x_0."""


class Simple(Objective):
    """The squared error of whatever the network predicts, unweighted (L_simple, Eq. 14, for epsilon)."""

    trains_sigma = False

    def loss(
        self, diffusion: GaussianDiffusion, output: Output, x_0: Images, x_t: Images, t: Times, eps: Images
    ) -> Tensor:
        return target_error(diffusion, output, x_0, t, eps)


class MinSNR(Weighted):
    """min(SNR, gamma) on the error of x_0."""

    def __init__(self, *, gamma: float) -> None:
        if gamma <= 0:
            raise Refused(f"objective.gamma is {gamma}; it must be positive (Hang et al. take 5).")
        self.gamma = gamma

    def weight(self, schedule: NoiseSchedule, t: Times) -> Factors:
        return schedule.snr(t).clamp(max=self.gamma)


class P2(Weighted):
    """1/(k + SNR)^gamma on the error of eps, which is SNR/(k + SNR)^gamma on that of x_0."""

    def __init__(self, *, k: float, gamma: float) -> None:
        if k <= 0 or gamma < 0:
            raise Refused(f"objective.k={k} must be positive and objective.gamma={gamma} at least 0 (the paper: 1, 1).")
        self.k, self.gamma = k, gamma

    def weight(self, schedule: NoiseSchedule, t: Times) -> Factors:
        snr = schedule.snr(t)
        return snr / (self.k + snr) ** self.gamma


class TruncatedSNR(Weighted):
    """max(SNR, floor) on the error of x_0: with floor 1, the larger of the errors of x_0 and eps."""

    def __init__(self, *, floor: float) -> None:
        if floor < 0:
            raise Refused(f"objective.floor is {floor}; it must be at least 0 (Salimans & Ho take 1).")
        self.floor = floor

    def weight(self, schedule: NoiseSchedule, t: Times) -> Factors:
        return schedule.snr(t).clamp(min=self.floor)


class Bound(Objective):
    """L_{t-1} in bits/dim, unclipped: its mean over t, or T times that, which is the bound less L_T."""

    trains_sigma = True

    def __init__(self, *, times_num_steps: bool) -> None:
        self.times_num_steps = times_num_steps

    def loss(
        self, diffusion: GaussianDiffusion, output: Output, x_0: Images, x_t: Images, t: Times, eps: Images
    ) -> Tensor:
        scale = diffusion.num_steps if self.times_num_steps else 1
        return (scale * term(diffusion, output, x_0, x_t, t, clip=False)).to(x_0)


class Hybrid(Objective):
    """L_simple for the mean and lambda times the whole bound for the variance: the mean is detached in
    the bound, and v has no part in L_simple."""

    trains_sigma = True
    only_for_learned = True

    def __init__(self, *, bound_weight: float) -> None:
        if bound_weight <= 0:
            raise Refused(f"objective.bound_weight is {bound_weight}; it must be positive (the paper: 0.001).")
        self.bound_weight = bound_weight

    def loss(
        self, diffusion: GaussianDiffusion, output: Output, x_0: Images, x_t: Images, t: Times, eps: Images
    ) -> Tensor:
        bound = term(diffusion, output.detach_mean(), x_0, x_t, t, clip=False).to(x_0)
        return target_error(diffusion, output, x_0, t, eps) + self.bound_weight * diffusion.num_steps * bound


def target_error(diffusion: GaussianDiffusion, output: Output, x_0: Images, t: Times, eps: Images) -> Tensor:
    """||target - output||^2, mean over dimensions: (b,)."""
    target = diffusion.prediction.target(diffusion.schedule, x_0, eps, t)
    return mean_flat((target - output.mean).square())
