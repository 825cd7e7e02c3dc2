"""Interpolation of two real images in the space of x_t."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ddpm.errors import Refused
from ddpm.mode.base import Figured, at_least_one
from ddpm.mode.scene import Latent, Scene
from ddpm.pictures import Figure
from ddpm.types import Images


class Interpolation(Figured):
    """x_t and x_t' of two images by q with one noise for both, and x_0 ~ p((1 - lambda) x_t + lambda x_t') with
    one noise for all lambda: Ho et al. (2020), Figures 8 and 9. Its ends are reconstructions.

    t, num_times  the times of the rows, or T/n, 2T/n, ..., T
    num_lambdas   lambdas from 0 to 1
    """

    uses: ClassVar = frozenset({"label", "images"})

    def __init__(self, *, t: Sequence[int] | int | None, num_times: int, num_lambdas: int) -> None:
        at_least_one(num_times=num_times)
        if num_lambdas < 2:
            raise Refused(f"mode.num_lambdas is {num_lambdas}; it must be at least 2, for the two ends.")
        self.t, self.num_times, self.num_lambdas = t, num_times, num_lambdas

    def figure(self, scene: Scene) -> Figure:
        shown, ends = scene.starts(self.t, self.num_times), scene.real(2).to(scene.module.device)
        if len(ends) != 2:
            raise Refused(f"an interpolation is between two images, not {len(ends)}; give images=[A,B].")
        blend = torch.linspace(0, 1, self.num_lambdas, device=ends.device)
        images = interpolated(scene, ends, shown, blend)
        columns = ["$x_0$", *(rf"$\lambda = {one:.3g}$" for one in blend.tolist()), "$x_0'$"]
        return Figure("interpolation", images, [f"$t = {t}$" for t in shown], columns)


def interpolated(scene: Scene, ends: Images, shown: Sequence[int], blend: Tensor) -> Tensor:
    """Rows of the first image, its way to the second by these lambdas (n,), and the second:
    (len(shown), n + 2, *shape)."""
    one_noise = torch.zeros_like(blend, dtype=torch.long)
    weight = blend.reshape(-1, *(1,) * (ends.dim() - 1)).to(ends)

    def between(t: int) -> Latent:
        x_t = scene.encoded(ends, t, one_noise[:2]).x_t
        return Latent(t, (1 - weight) * x_t[:1] + weight * x_t[1:], one_noise)

    ways = scene.decoded([between(t) for t in shown])
    return torch.stack([torch.cat((ends[:1], way, ends[1:])) for way in ways])
