"""Nearest neighbours: the search, and the few samples whose neighbours are to be seen."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.metric.features import exact
from ddpm.metric.reference import Rows
from ddpm.metric.sample_metric import over_ranks

_BLOCK = 4096  # rows to be searched that are in memory at once


class Neighbours(NamedTuple):
    """Samples and their k nearest training images, the nearest first; on the CPU."""

    number: Tensor  # int64 (n,): of the samples
    images: Tensor  # uint8 (n, c, h, w): the samples
    distance: Tensor  # float32 (n, k)
    indices: Tensor  # int64 (n, k): of the training images, in their split

    def at(self, where: Tensor) -> "Neighbours":
        """Those at these positions, or under this mask."""
        return Neighbours(*(column[where] for column in self))


def none(shape: tuple[int, int, int], k: int) -> Neighbours:
    """No samples of this shape (c, h, w), with k neighbours each."""
    indices = torch.empty(0, k, dtype=torch.int64)
    return Neighbours(indices[:, 0], torch.empty(0, *shape, dtype=torch.uint8), torch.empty(0, k), indices)


def few(one: Neighbours, other: Neighbours, count: int) -> Neighbours:
    """Of two sets of samples those that may be shown: numbers below `count`, and the `count` nearest."""
    both = Neighbours(*(torch.cat(pair) for pair in zip(one, other, strict=True)))
    kept = both.number < count
    kept[np.lexsort((both.number.numpy(), both.distance[:, 0].numpy()))[:count]] = True
    return both.at(kept)


def together(mine: Neighbours, number: Tensor) -> Neighbours:
    """The samples with these numbers (m,), each of which one rank has."""
    is_it = mine.number == number.unsqueeze(1)
    here = is_it.any(1)
    columns = [torch.zeros(len(number), *column.shape[1:], dtype=column.dtype) for column in mine]
    for whole, part in zip(columns, mine.at(is_it[here].nonzero()[:, 1]), strict=True):
        whole[here] = part
    return Neighbours(*map(over_ranks, columns))


def nearest(features: Tensor, among: Rows, k: int) -> tuple[Tensor, Tensor]:
    """Of features (n, d) the distances (n, k), float32, to the k nearest rows of (m, d), ascending, and which rows
    these are (n, k); on the CPU.

    The rows are found by |y|^2 - 2 x.y, block by block; the distances are those of differences in float64, so that
    the distance of a copy is 0.
    """
    best = features.new_full((len(features), k), torch.inf)
    rows = torch.zeros(len(features), k, dtype=torch.int64, device=features.device)
    with exact(features.device):
        for start in range(0, len(among), _BLOCK):
            block = torch.from_numpy(among[start : start + _BLOCK]).to(features.device)
            apart = torch.addmm(block.square().sum(1), features, block.T, alpha=-2)
            at = torch.arange(start, start + len(block), device=features.device).expand_as(apart)
            best, which = torch.cat((best, apart), 1).topk(k, largest=False)
            rows = torch.cat((rows, at), 1).gather(1, which)
    rows = rows.cpu()
    found = torch.from_numpy(among[rows.numpy()]).double()
    distance, order = (found - features.cpu().double().unsqueeze(1)).norm(dim=2).sort(stable=True)
    return distance.float(), rows.gather(1, order)
