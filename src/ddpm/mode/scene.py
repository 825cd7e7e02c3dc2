"""What a figure is made from: a model and its sampler, real images, and their noise, all on one device.

Image i walks down with normal(seed, SAMPLE, i, s), as in ordinary sampling, and is noised to x_t with
normal(seed, FORWARD, i, t): what a figure shows depends neither on its batches nor on what else it shows.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import Refused
from ddpm.noise import Stream, normal
from ddpm.sampler import Noise, Step
from ddpm.sampling import SamplingModule, noise_of
from ddpm.types import Images, times

Tick = Callable[[], None]  # to be called after every step


class Latent(NamedTuple):
    """Images on their way down."""

    t: int
    x_t: Images  # (b, *shape)
    indices: Tensor  # (b,): whose noise they walk down with


class Walked(NamedTuple):
    """A step, and the time that it started from."""

    t: int
    step: Step


def joined(walk: Iterable[Walked], seen: Callable[[Walked], Mapping[int, Images]]) -> dict[int, Images]:
    """What is `seen` of the steps, by the times that it belongs to, with all batches in one: (b, *shape) each."""
    batch: dict[int, Images] = {}
    parts = defaultdict(list)
    for walked in walk:
        batch |= seen(walked)
        if walked.step.s == 0:  # the batch has arrived
            for t, images in batch.items():
                parts[t].append(images)
            batch = {}
    return {t: torch.cat(images) for t, images in parts.items()}


@dataclass(frozen=True)
class Scene:
    """What a figure is made from.

    module      the model with its label, its sampler and its seed
    real        so many real images, or as many as the user gave: (n, *shape) in [-1, 1], on the CPU
    num_images  how many images the user wants, unless they gave their own
    batch_size  images a network call
    progress    shows that so many steps are being walked
    """

    module: SamplingModule
    real: Callable[[int], Images]
    num_images: int
    batch_size: int
    progress: Callable[[int], AbstractContextManager[Tick]]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.module.diffusion.num_steps

    @property
    def visited(self) -> list[int]:
        """The times of the sampler, descending, and the 0 at the end."""
        return self.module.sampler.times(self.num_steps)

    def indices(self, count: int) -> Tensor:
        """The numbers 0, ..., count - 1."""
        return torch.arange(count, device=self.module.device)

    def images(self, most: int) -> Images:
        """The user's images, or at most so many of the data's."""
        return self.real(min(most, self.num_images)).to(self.module.device)

    def model(self, indices: Tensor) -> GaussianDiffusion:
        """The model of images of these numbers, bound to the label."""
        return self.module.given(indices)

    def noise(self, indices: Tensor) -> Noise:
        """What p adds to the images of these numbers; x_T itself at T."""
        return noise_of(self.module.seed, indices, self.module.shape)

    def eps(self, indices: Tensor) -> Noise:
        """What q adds to the images of these numbers."""
        return lambda t: normal(self.module.seed, Stream.FORWARD, indices, t, self.module.shape)

    def latent(self, indices: Tensor) -> Latent:
        """x_T of the images of these numbers."""
        return Latent(self.num_steps, self.noise(indices)(self.num_steps), indices)

    def encoded(self, x_0: Images, t: int, indices: Tensor) -> Latent:
        """x_t ~ q(x_t | x_0), Ho et al. (2020), Eq. 4."""
        q = self.module.diffusion.q(x_0, times(t, x_0), times(0, x_0))
        return Latent(t, q.sample(self.eps(indices)(t)), indices)

    def starts(self, t: Sequence[int] | int | None, num_times: int) -> list[int]:
        """The times of `chosen`, each moved to the nearest one that the sampler visits."""
        visited = self.visited[:-1]
        return sorted({min(visited, key=lambda v: abs(v - one)) for one in self.chosen(t, num_times)})

    def chosen(self, t: Sequence[int] | int | None, num_times: int) -> list[int]:
        """The times asked for, ascending; where none are, T/n, 2T/n, ..., T.

        Raises Refused for times outside {1, ..., T}.
        """
        spread = [max(1, round(k * self.num_steps / num_times)) for k in range(1, num_times + 1)]
        asked = spread if t is None else [t] if isinstance(t, int) else list(t)
        if not asked or not all(1 <= one <= self.num_steps for one in asked):
            raise Refused(f"mode.t={t} is not possible: the times of this model are 1, ..., {self.num_steps}.")
        return sorted(set(asked))

    def batches(self, latent: Latent) -> list[Latent]:
        """The same in parts that the network takes at once."""
        parts = zip(torch.split(latent.x_t, self.batch_size), torch.split(latent.indices, self.batch_size), strict=True)
        return [Latent(latent.t, x_t, indices) for x_t, indices in parts]

    def walk(self, latents: Sequence[Latent]) -> Iterator[Walked]:
        """All steps down to x_0, of one batch after another, from times that the sampler visits."""
        batches = list(chain.from_iterable(map(self.batches, latents)))
        with self.progress(sum(len(self._below(batch.t)) for batch in batches)) as tick:
            for batch in batches:
                for walked in self._walk(batch):
                    tick()
                    yield walked

    def decoded(self, latents: Sequence[Latent]) -> list[Images]:
        """x_0 ~ p_theta(x_0 | x_t) of each."""
        ends = [walked.step.x_s for walked in self.walk(latents) if walked.step.s == 0]
        return list(torch.split(torch.cat(ends), [len(latent.x_t) for latent in latents]))

    def _below(self, t: int) -> list[int]:
        return [time for time in self.visited if 0 < time <= t]

    def _walk(self, batch: Latent) -> Iterator[Walked]:
        steps = self.module.sampler.trajectory(self.model(batch.indices), batch.x_t, self.noise(batch.indices), batch.t)
        return map(Walked, self._below(batch.t), steps)
