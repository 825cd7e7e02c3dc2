"""The schedulers of diffusers as samplers, so that few-step solvers need no copies of ours.

They are handed our betas and, whatever the network predicts, the eps of its (clipped) estimate of x_0; they
keep what a multistep solver remembers. diffusers is an optional extra: it is imported when one is built.
"""

import inspect
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch

from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import Refused
from ddpm.sampler import Noise, Sampler, Spacing, Step, estimates
from ddpm.types import Images, times

_NEEDED = {"num_train_timesteps", "trained_betas", "prediction_type"}
_OURS = {"clip_sample": False, "thresholding": False}  # the estimates that they see are clipped already


class Diffusers(Sampler):
    """A scheduler of diffusers by the name of its class, with further `options` of its constructor.

    One of a higher order may call the network more often than num_steps times. Where it draws noise, the
    noise of an image is a function of that image's own.
    """

    has_own_sigma = True

    def __init__(
        self,
        *,
        scheduler: str,
        num_steps: int | None,
        spacing: str,
        clip: bool | float,
        options: Mapping[str, Any],
    ) -> None:
        """Raises Refused for a scheduler or an option that diffusers does not have, or that cannot be adapted."""
        super().__init__(num_steps=num_steps, spacing=spacing, clip=clip)
        if self.spacing is Spacing.QUADRATIC:
            raise Refused("diffusers has no quadratic spacing; take spacing=leading, linspace or trailing.")
        self.kind, self.options = _kind(scheduler), dict(options)
        known = set(inspect.signature(self.kind).parameters)
        if unknown := sorted(set(self.options) - known | set(self.options) & _NEEDED):
            free = ", ".join(sorted(known - _NEEDED))
            raise Refused(f"sampler.options.{unknown[0]} cannot be set; {scheduler} takes {free}.")

    @property
    def name(self) -> str:
        return str(self.kind.__name__).removesuffix("Scheduler").lower()

    def times(self, num_steps: int) -> list[int]:
        super().times(num_steps)  # refuses more steps than there are
        return self._times(self._scheduler([0.01] * num_steps))

    def trajectory(
        self, diffusion: GaussianDiffusion, x_T: Images, noise: Noise, start: int | None = None
    ) -> Iterator[Step]:
        scheduler = self._scheduler(_betas(diffusion))
        visited = self._times(scheduler)
        first = next(k for k, t in enumerate(visited) if start is None or t <= start)
        if first > 0 and len(set(visited)) < len(visited):
            raise Refused(
                f"{self.kind.__name__} calls the network several times a step and cannot begin in the middle; "
                "take DPMSolverMultistepScheduler, or sampler=heun."
            )
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        draws = "generator" in inspect.signature(scheduler.step).parameters
        told = scheduler.timesteps[first:].to(x_T.device)
        x_t, sample = x_T, x_T / scheduler.scale_model_input(torch.ones_like(x_T), told[0])
        for k, (t, s) in enumerate(pairwise(visited[first:])):
            x_0, eps = estimates(diffusion, x_t, times(t, x_t), self.clip)
            randomness = {"generator": _generators(noise(s))} if draws else {}
            sample = scheduler.step(eps, told[k], sample, **randomness).prev_sample
            x_t = sample if s == 0 else scheduler.scale_model_input(sample, told[k + 1])
            yield Step(s, x_t, x_0)

    def _scheduler(self, betas: list[float]) -> Any:
        T = len(betas)
        wanted = {"num_train_timesteps": T, "trained_betas": betas, "prediction_type": "epsilon"}
        wanted |= _OURS | {"timestep_spacing": self.spacing.value} | self.options
        known = inspect.signature(self.kind).parameters
        try:
            scheduler = self.kind(**{name: value for name, value in wanted.items() if name in known})
            scheduler.set_timesteps(T if self.num_steps is None else self.num_steps)
        except (ValueError, NotImplementedError, TypeError, ImportError) as error:
            raise Refused(f"sampler.scheduler={self.kind.__name__}: {' '.join(str(error).split())}") from error
        self._refuse_another_process(scheduler, betas)
        return scheduler

    def _refuse_another_process(self, scheduler: Any, betas: list[float]) -> None:
        """Some schedulers walk upwards, or change the noise that the model was trained with."""
        upwards = scheduler.timesteps[0] < scheduler.timesteps[-1]
        alpha_bar = (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)
        if upwards or not torch.allclose(scheduler.alphas_cumprod.double(), alpha_bar, rtol=1e-3, atol=1e-9):
            raise Refused(
                f"{self.kind.__name__} does not lead from noise to images along the model's own schedule with these "
                "options; take DPMSolverMultistepScheduler, UniPCMultistepScheduler or DEISMultistepScheduler."
            )

    def _times(self, scheduler: Any) -> list[int]:
        asked = [float(t) for t in scheduler.timesteps]
        if any(t != round(t) or t < 0 for t in asked):
            raise Refused(
                f"with these options {self.kind.__name__} asks for times between those of the model; take "
                "sampler.spacing=trailing, no sigma options, and a scheduler such as DPMSolverMultistepScheduler, "
                "UniPCMultistepScheduler, DEISMultistepScheduler, PNDMScheduler or HeunDiscreteScheduler."
            )
        return [*(round(t) + 1 for t in asked), 0]


def _kind(name: str) -> Any:
    try:
        from diffusers import schedulers
    except ImportError as error:
        raise Refused("sampler=diffusers needs a package: pip install diffusers") from error
    kind = getattr(schedulers, name, None) if name.endswith("Scheduler") else None
    if kind is None or not set(inspect.signature(kind).parameters) >= _NEEDED:
        raise Refused(
            f"sampler.scheduler={name} is no scheduler of diffusers for discrete-time diffusions; take "
            "DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler or another one of that kind."
        )
    return kind


def _betas(diffusion: GaussianDiffusion) -> list[float]:
    """beta_1, ..., beta_T, from the table."""
    table = diffusion.schedule.log_alpha_bar.cpu()
    if not table.isfinite().all():
        raise Refused("diffusers' schedulers cannot start from alpha_bar_T = 0; take sampler=ancestral or ddim.")
    betas: list[float] = (-torch.expm1(table.diff())).tolist()
    return betas


def _generators(noise: Images) -> list[torch.Generator]:
    """One for each image, seeded by the 64 bits of the first two numbers of its noise."""
    seeds = noise.float().flatten(1)[:, :2].contiguous().view(torch.int64).flatten().tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]
