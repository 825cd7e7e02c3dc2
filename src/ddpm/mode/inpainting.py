"""Inpainting without training for it: RePaint (Lugmayr et al. 2022)."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import Refused
from ddpm.mode.base import Figured, at_least_one
from ddpm.mode.files import read_mask
from ddpm.mode.scene import Latent, Scene, Tick
from ddpm.pictures import Figure
from ddpm.sampler import Noise, Sampler, Stepwise
from ddpm.types import Images, times


class Inpainting(Figured):
    """Paints a part of real images anew: at every step the known pixels come from q(x_s | x_0) and the others from
    p, and stretches of the way are walked again so that the two come to fit (Lugmayr et al. 2022, Algorithm 1
    and Sec. 4.2).

    box          what is painted anew: top, left, bottom, right, as shares of the height and the width
    mask         instead of the box: an image file of the model's size, white where it is painted anew
    jump_length  steps of a stretch
    resamplings  how often each stretch is walked
    rows         images at most
    columns      ways to fill each
    """

    uses: ClassVar = frozenset({"label", "images"})

    def __init__(
        self, *, box: Sequence[float], mask: str | None, jump_length: int, resamplings: int, rows: int, columns: int
    ) -> None:
        at_least_one(jump_length=jump_length, resamplings=resamplings, rows=rows, columns=columns)
        self.box, self.mask, self.rows, self.columns = box, mask, rows, columns
        self.jump_length, self.resamplings = jump_length, resamplings

    def figure(self, scene: Scene) -> Figure:
        sampler = stepwise(scene.module.sampler)
        height, width = scene.module.shape[-2:]
        hole = boxed(self.box, height, width) if self.mask is None else read_mask(self.mask, height, width)
        hole, x_0 = hole.to(scene.module.device), scene.images(self.rows)
        filled = self.filled(scene, sampler, x_0.repeat_interleave(self.columns, 0), ~hole)
        shown = (x_0.unsqueeze(1), (x_0 * ~hole).unsqueeze(1), filled.reshape(len(x_0), -1, *x_0.shape[1:]))
        columns = ["$x_0$", "known", *(f"filled ({k + 1})" for k in range(self.columns))]
        return Figure("inpainting", torch.cat(shown, dim=1), [""] * len(x_0), columns, singles=filled)

    def filled(self, scene: Scene, sampler: Stepwise, x_0: Images, known: Tensor) -> Images:
        """Image i (of which there may be copies) with its unknown part by the noise of image i."""
        way = moves(scene.visited, self.jump_length, self.resamplings)
        batches = scene.batches(Latent(0, x_0, scene.indices(len(x_0))))
        with scene.progress(len(way) * len(batches)) as tick:
            parts = [
                inpainted(scene.model(i), sampler, x, known, way, scene.noise(i), scene.eps(i), tick)
                for _, x, i in batches
            ]
        return torch.cat(parts)


def stepwise(sampler: Sampler) -> Stepwise:
    """Raises Refused for a sampler that remembers earlier steps, which going back up would belie."""
    if not isinstance(sampler, Stepwise):
        raise Refused("mode=inpainting goes up and down again, step by step; take sampler=ancestral, ddim or heun.")
    return sampler


def inpainted(
    diffusion: GaussianDiffusion,
    sampler: Stepwise,
    x_0: Images,
    known: Tensor,
    way: Sequence[tuple[int, int]],
    down: Noise,
    up: Noise,
    tick: Tick,
) -> Images:
    """Images that are x_0 where `known`, and by p elsewhere.

    A time may be entered several times, each time with another noise: at visit v (0, 1, ...) of time s it is
    noise(s + v (T + 1)), so without stretches walked again it is that of ordinary sampling.
    """
    T = diffusion.num_steps
    visits = Counter({T: 1})
    x = down(T)
    for t, s in way:
        address = s + visits[s] * (T + 1)
        visits[s] += 1
        if s > t:
            x = diffusion.q(x, times(s, x), times(t, x)).sample(down(address))
        else:
            new, _ = sampler.step(diffusion, x, times(t, x), times(s, x), down(address))
            x = torch.where(known, diffusion.q(x_0, times(s, x), times(0, x)).sample(up(address)), new)
        tick()
    return x


def moves(visited: Sequence[int], jump_length: int, resamplings: int) -> list[tuple[int, int]]:
    """From which time to which: down the visited times (descending, with the 0 at the end) in stretches, back up
    by one jump before a stretch is walked again. The step to x_0 is taken once, as in Algorithm 1."""
    *noisy, _ = visited
    way = []
    for top in range(0, len(noisy) - 1, jump_length):
        stretch = noisy[top : top + jump_length + 1]
        again = (stretch[-1], stretch[0])
        way += [*pairwise(stretch), again] * (resamplings - 1) + [*pairwise(stretch)]
    return [*way, (noisy[-1], 0)]


def boxed(box: Sequence[float], height: int, width: int) -> Tensor:
    """Where the box is: bool (height, width).

    Raises Refused for a box that is none, or without a pixel.
    """
    top, left, bottom, right = box if len(box) == 4 else (1.0, 1.0, 0.0, 0.0)
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise Refused(f"mode.box={list(box)} is not possible: top < bottom and left < right, all between 0 and 1.")
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    if not inside.any():
        raise Refused(f"mode.box={list(box)} holds no pixel of {height} x {width}; make it larger.")
    return inside
