"""Images that share a latent."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from ddpm.mode.base import Figured, at_least_one
from ddpm.mode.scene import Latent, Scene
from ddpm.pictures import Figure


class SharedLatent(Figured):
    """One x_t on the way from noise, and several x_0 ~ p(x_0 | x_t) of it, for several t: Ho et al. (2020),
    Figure 7. The first of them goes on with the noise that led to x_t, so it is the same image in each row.

    columns       images of a latent
    t, num_times  the times of the rows, or T/n, 2T/n, ..., T
    """

    uses: ClassVar = frozenset({"label"})

    def __init__(self, *, columns: int, t: Sequence[int] | int | None, num_times: int) -> None:
        at_least_one(columns=columns, num_times=num_times)
        self.columns, self.t, self.num_times = columns, t, num_times

    def figure(self, scene: Scene) -> Figure:
        shown = scene.starts(self.t, self.num_times)[::-1]
        latents = frozen(scene, shown, self.columns)
        images = torch.stack(
            [torch.cat((x.x_t[:1], x_0)) for x, x_0 in zip(latents, scene.decoded(latents), strict=True)]
        )
        columns = ["$x_t$", *(f"$x_0$ ({k + 1})" for k in range(self.columns))]
        return Figure("shared_latent", images, [f"$t = {t}$" for t in shown], columns)


def frozen(scene: Scene, shown: Sequence[int], count: int) -> list[Latent]:
    """The x_t at these times on the way of image 0, each `count` times with another noise below it."""
    start = scene.latent(scene.indices(1))
    found = {scene.visited[0]: start.x_t} | {step.s: step.x_s for _, step in scene.walk([start])}
    return [Latent(t, found[t].expand(count, *found[t].shape[1:]), scene.indices(count)) for t in shown]
