"""Progressive generation."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ddpm.mode.base import Figured, at_least_one
from ddpm.mode.scene import Scene, Walked, joined
from ddpm.pictures import Figure
from ddpm.types import Images


class Progressive(Figured):
    """The estimate of x_0 on the way from noise, Ho et al. (2020), Figure 6: what x_t already says of x_0.

    rows          images at most
    t, num_times  the times of the estimates, or T/n, 2T/n, ..., T
    """

    uses: ClassVar = frozenset({"label"})

    def __init__(self, *, rows: int, t: Sequence[int] | int | None, num_times: int) -> None:
        at_least_one(rows=rows, num_times=num_times)
        self.rows, self.t, self.num_times = rows, t, num_times

    def figure(self, scene: Scene) -> Figure:
        shown = scene.starts(self.t, self.num_times)[::-1]
        images = estimates(scene, min(self.rows, scene.num_images), shown)
        return Figure("progressive", images, [""] * len(images), [*(f"$t = {t}$" for t in shown), "sample"])


def estimates(scene: Scene, count: int, shown: Sequence[int]) -> Tensor:
    """The estimates of x_0 at these times for so many images, and the images: (count, len(shown) + 1, *shape)."""

    def seen(walked: Walked) -> dict[int, Images]:
        estimate = {walked.t: walked.step.x_0} if walked.t in shown else {}
        return estimate | ({0: walked.step.x_s} if walked.step.s == 0 else {})

    indices = scene.indices(count)
    found = joined(scene.walk([scene.latent(indices)]), seen)
    return torch.stack([found[t] for t in [*shown, 0]], dim=1)
