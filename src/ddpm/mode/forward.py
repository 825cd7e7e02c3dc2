"""The noising of real images."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from ddpm.mode.base import Figured, at_least_one
from ddpm.mode.scene import Scene
from ddpm.pictures import Figure
from ddpm.types import times


class Forward(Figured):
    """x_t ~ q(x_t | x_0), Ho et al. (2020), Eq. 4: real images, one a row, each with one noise for all t.

    rows          images at most
    t, num_times  the times, or T/n, 2T/n, ..., T
    """

    uses: ClassVar = frozenset({"images"})

    def __init__(self, *, rows: int, t: Sequence[int] | int | None, num_times: int) -> None:
        at_least_one(rows=rows, num_times=num_times)
        self.rows, self.t, self.num_times = rows, t, num_times

    def figure(self, scene: Scene) -> Figure:
        shown = [0, *scene.chosen(self.t, self.num_times)]
        x_0 = scene.images(self.rows)
        eps = scene.eps(scene.indices(len(x_0)))(0)
        q = [scene.module.diffusion.q(x_0, times(t, x_0), times(0, x_0)) for t in shown]
        noised = torch.stack([one.sample(eps) for one in q], dim=1)
        return Figure("forward", noised, [""] * len(x_0), [f"$t = {t}$" for t in shown])
