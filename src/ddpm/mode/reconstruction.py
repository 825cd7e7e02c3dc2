"""Real images, encoded and decoded."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from ddpm.mode.base import Figured, at_least_one
from ddpm.mode.scene import Scene
from ddpm.pictures import Figure


class Reconstruction(Figured):
    """x_0 to x_t by q and back by p, for several t: what x_t keeps of an image (the ends of Ho et al. 2020,
    Figure 9).

    columns       images at most
    t, num_times  the times of the rows, or T/n, 2T/n, ..., T
    """

    uses: ClassVar = frozenset({"label", "images"})

    def __init__(self, *, columns: int, t: Sequence[int] | int | None, num_times: int) -> None:
        at_least_one(columns=columns, num_times=num_times)
        self.columns, self.t, self.num_times = columns, t, num_times

    def figure(self, scene: Scene) -> Figure:
        shown, x_0 = scene.starts(self.t, self.num_times), scene.images(self.columns)
        indices = scene.indices(len(x_0))
        back = scene.decoded([scene.encoded(x_0, t, indices) for t in shown])
        images = torch.stack([x_0, *back])
        return Figure("reconstruction", images, ["$x_0$", *(f"$t = {t}$" for t in shown)], [""] * len(x_0))
