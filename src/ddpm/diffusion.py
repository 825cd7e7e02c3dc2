"""The diffusion model: q, its posterior, and the reverse process p that a network gives.

q(x_t | x_s)        any s < t; Ho et al. (2020), Eq. 2 where s = t - 1, Eq. 4 where s = 0
q(x_s | x_t, x_0)   Eq. 6, 7
p_theta(x_s | x_t)  Eq. 1: the posterior with the network's x_0, and sigma as its variance
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.decoder import Decoder, Exact
from ddpm.gaussian import Gaussian, wide
from ddpm.prediction import Prediction, posterior_coefficients
from ddpm.schedule import NoiseSchedule
from ddpm.sigma import Sigma
from ddpm.types import Images, Times


@dataclass(frozen=True)
class Output:
    """What the network says: the prediction, and v where sigma is learned."""

    mean: Tensor
    v: Tensor | None

    def detach_mean(self) -> "Output":
        """The same, with no gradient to the mean: L_hybrid's bound (Nichol & Dhariwal 2021, Sec. 3.1)."""
        return replace(self, mean=self.mean.detach())

    def wide(self) -> "Output":
        """The same in float64."""
        return Output(wide(self.mean), None if self.v is None else wide(self.v))


class GaussianDiffusion(nn.Module):
    """A network as a model of images.

    network     (x_t (b, *shape), time (b,)) to (b, *shape), or twice the channels where sigma is learned
    num_levels  grey levels of the data, for the decoder of L_0
    decoder     how L_0 counts the mass of a level; None: as it is
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        sigma: Sigma,
        prediction: Prediction,
        num_levels: int,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule
        self.sigma, self.prediction = sigma, prediction
        self.num_levels, self.decoder = num_levels, decoder or Exact()

    @property
    def num_steps(self) -> int:
        """T."""
        return self.schedule.num_steps

    def forward(self, x_t: Images, t: Times) -> Output:
        """The one call of the network. It sees the paper's t minus 1, as the published weights do,
        rescaled to thousandths of T where the model says so."""
        time = t.flatten() - 1
        if getattr(self.network, "rescale_time", False):
            time = time * (1000 / self.num_steps)
        output = self.network(x_t, time).to(x_t.dtype)
        mean, v = output.chunk(2, dim=1) if self._learned(output, x_t) else (output, None)
        return Output(mean, v)

    def _learned(self, output: Tensor, x_t: Tensor) -> bool:
        """A network trained with a learned sigma has its second output also under a fixed one."""
        return output.shape[1] == 2 * x_t.shape[1]

    def x_0(self, output: Output, x_t: Images, t: Times, clip: bool | float) -> Images:
        """The network's estimate of x_0, `clipped` as asked."""
        return clipped(self.prediction.x_0(self.schedule, output.mean, x_t, t), clip)

    def q(self, x_s: Images, t: Times, s: Times) -> Gaussian:
        """q(x_t | x_s), Eq. 2 and 4."""
        mean = self.schedule.alpha(t, s).sqrt().to(x_s) * x_s
        return Gaussian(mean, self.schedule.beta(t, s).log().to(x_s))

    def posterior(self, x_0: Images, x_t: Images, t: Times, s: Times) -> Gaussian:
        """q(x_s | x_t, x_0), Eq. 6 and 7. At s = 0 its log-variance is that of the second step."""
        return Gaussian(self._posterior_mean(x_0, x_t, t, s), self.schedule.log_beta_tilde(t, s).to(x_t))

    def _posterior_mean(self, x_0: Images, x_t: Images, t: Times, s: Times) -> Images:
        of_x_0, of_x_t = posterior_coefficients(self.schedule, t, s)
        mean: Images = of_x_0.to(x_0) * x_0 + of_x_t.to(x_t) * x_t
        return mean

    def p(self, output: Output, x_t: Images, t: Times, s: Times, clip: bool | float) -> Gaussian:
        """p_theta(x_s | x_t), Eq. 1: of the `clipped` estimate of x_0, or of the mean that the network says."""
        x_0 = self.x_0(output, x_t, t, False if self.prediction.is_mean else clip)
        mean = self._posterior_mean(x_0, x_t, t, s)
        return Gaussian(mean, self.sigma.log_var(self.schedule, t, s, output.v).to(x_t))

    def with_sigma(self, sigma: Sigma) -> "GaussianDiffusion":
        """The same model with another sigma: a choice of sampling where it is fixed."""
        return self._with(sigma=sigma)

    def with_decoder(self, decoder: Decoder) -> "GaussianDiffusion":
        """The same model with another decoder: a choice of how the bound is measured."""
        return self._with(decoder=decoder)

    def given(self, label: Tensor, guidance: float = 1.0) -> "GaussianDiffusion":
        """The model of images of a label (b,), with classifier-free guidance if it is not 1."""
        return self._with(network=Conditioned(self.network, label, guidance))

    def _with(self, **changes: Any) -> "GaussianDiffusion":
        parts = ("network", "schedule", "sigma", "prediction", "num_levels", "decoder")
        return GaussianDiffusion(**({name: getattr(self, name) for name in parts} | changes))


def clipped(x_0: Images, clip: bool | float) -> Images:
    """x_0 as it is (False), clipped to [-1, 1] (True), or thresholded dynamically: clipped to [-r, r] and
    divided by r, the given quantile of an image's |x_0| where that exceeds 1 (Saharia et al. 2022, Sec. 2.3)."""
    if isinstance(clip, bool):
        return x_0.clamp(-1, 1) if clip else x_0
    quantiles = [image.abs().float().quantile(clip) for image in x_0.flatten(1)]  # of all at once it has a limit
    r = torch.stack(quantiles).clamp(min=1).to(x_0).reshape(-1, *(1,) * (x_0.dim() - 1))
    return x_0.clamp(-r, r) / r


class Conditioned(nn.Module):
    """A network bound to a label for each image of the batch.

    With guidance w the prediction is out(null) + w (out(label) - out(null)), so that w = 1 is the conditional model:
    Ho & Salimans (2022), Eq. 6, whose w is one less. A learned v is never extrapolated.
    """

    def __init__(self, network: nn.Module, label: Tensor, guidance: float) -> None:
        super().__init__()
        self.network, self.label, self.guidance = network, label, guidance
        self.rescale_time = getattr(network, "rescale_time", False)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        if self.guidance == 1:
            output: Tensor = self.network(x, time, self.label)
            return output
        null = torch.full_like(self.label, self.network.null_label)  # type: ignore[arg-type]
        both = self.network(torch.cat((x, x)), torch.cat((time, time)), torch.cat((self.label, null)))
        given, free = both.chunk(2)
        c = x.shape[1]
        return torch.cat((free[:, :c] + self.guidance * (given[:, :c] - free[:, :c]), given[:, c:]), dim=1)
