"""Bits per dimension: the variational bound on images of the data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm import strangers
from ddpm.data.image_data import ImageData
from ddpm.data.stream import index_batches
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import Refused
from ddpm.likelihood import Terms, at_time, bound, prior
from ddpm.metric.cache import cached
from ddpm.metric.data_metric import DataMetric
from ddpm.metric.sample_metric import over_ranks
from ddpm.metric.source import identity
from ddpm.noise import Stream, generator, normal, uniform
from ddpm.types import Images, times

PER_IMAGE = ("images", "total", "squared_total", "rate", "distortion", "prior")
PER_TIME = ("count", "kl", "x_0_mse", "eps_mse")  # kl holds L_0 too: the files that are there have it under this name
_SEED = 0  # of the choice of images, the times and the noise
Sums = dict[str, Tensor]  # over images: float64, () for PER_IMAGE and (T,) for PER_TIME


class BitsPerDim(DataMetric):
    """The bound on -log2 p(x_0) per dimension, with clipped estimates as in the authors' evaluation.

    split       "train" or "test"; scores of another split than test carry its name: bits_per_dim_train
    num_images  so many images of the split, by a fixed permutation, since files may lie in the order of their classes;
                None for all
    num_times   None: all T terms, exactly. Else L_0 and so many of the other terms for each image, spread
                evenly over {2, ..., T}: unbiased, and cheaper by T/num_times
    batch_size  images a network call
    """

    larger_is_better = False

    def __init__(self, *, split: str, num_images: int | None, num_times: int | None, batch_size: int) -> None:
        if any(count is not None and count < 1 for count in (num_images, num_times, batch_size)):
            raise Refused("the counts of metric.bits_per_dim must be at least 1 (num_images, num_times: or null).")
        self.split, self.num_images, self.num_times = split, num_images, num_times
        self.batch_size = batch_size
        self.keeps = False

    @property
    def name(self) -> str:
        return f"bits_per_dim{self.suffix}"

    @property
    def suffix(self) -> str:
        """What the names of the scores end in."""
        return "" if self.split == "test" else f"_{self.split}"

    def prepare(self, data: ImageData) -> None:
        self.data = data
        available = len(data.load(self.split))
        self.count = min(self.num_images or available, available)
        self.chosen = chosen(self.count, available)

    def keep_at(self, place: Path) -> None:
        """Keep each finished batch of the exact bound there, and take from there what is finished."""
        self.place, self.keeps = place, self.num_times is None

    def reset(self, num_steps: int) -> None:
        self.sums = {name: torch.zeros((), dtype=torch.float64) for name in PER_IMAGE}
        self.sums |= {name: torch.zeros(num_steps, dtype=torch.float64) for name in PER_TIME}

    def batches(self, rank: int, world_size: int) -> list[Tensor]:
        return list(index_batches(self.count, self.batch_size, rank, world_size))

    def update(self, diffusion: GaussianDiffusion, indices: Tensor) -> None:
        """Add the images number `indices` of 0, ..., count - 1."""
        sums = self._kept(diffusion, indices) if self.keeps else self._measured(diffusion, indices)
        self.sums = {name: self.sums[name] + sums[name] for name in self.sums}

    def _kept(self, diffusion: GaussianDiffusion, indices: Tensor) -> Sums:
        path = self.place / f"{int(indices[0]):08d}-{int(indices[-1]):08d}.npz"
        return cached(
            path,
            read=lambda kept: _read(kept, diffusion.num_steps),
            make=lambda: self._measured(diffusion, indices),
            write=_write,
            remedy="set results=FILE to another place",  # beside which evaluate.py has these files kept
        )

    def _measured(self, diffusion: GaussianDiffusion, indices: Tensor) -> Sums:
        device = diffusion.schedule.log_alpha_bar.device
        indices = self.chosen[indices.cpu()]
        x_0 = self.data.batch(self.split, indices).images.to(device)
        indices = indices.to(device)
        if self.num_times is not None:
            return self.subsampled(diffusion, x_0, indices, self.num_times)
        terms = bound(diffusion, x_0, lambda t: normal(_SEED, Stream.BOUND, indices, t, x_0.shape[1:]))
        counts = torch.full((diffusion.num_steps,), len(x_0))
        per_time = {name: getattr(terms, name).sum(1) for name in PER_TIME[1:]}
        return _summed(terms, {"count": counts} | per_time)

    def subsampled(self, diffusion: GaussianDiffusion, x_0: Images, indices: Tensor, k: int) -> Sums:
        """L_0, and k stratified terms of L_1, ..., L_{T-1}, each standing for (T - 1)/k of them."""
        steps = diffusion.num_steps - 1
        u = uniform(_SEED, Stream.BOUND, indices)
        t = torch.stack([torch.ones_like(indices)] + [((u + j) / k * steps).long() + 2 for j in range(k)])
        rows = [at_time(diffusion, x_0, times(at, x_0), self._noise(x_0, indices, at), clip=True) for at in t]
        columns = [torch.stack(column) for column in zip(*rows, strict=True)]
        empty = torch.zeros(diffusion.num_steps, dtype=torch.float64, device=x_0.device)
        seen = [torch.ones_like(columns[0]), *columns]
        per_time = {
            name: empty.index_add(0, t.flatten() - 1, values.flatten())
            for name, values in zip(PER_TIME, seen, strict=True)
        }
        scale = columns[0].new_tensor([1.0] + [steps / k] * k).unsqueeze(1)
        return _summed(Terms(prior(diffusion, x_0), columns[0] * scale, columns[1], columns[2]), per_time)

    def _noise(self, x_0: Images, indices: Tensor, t: Tensor) -> Images:
        return normal(_SEED, Stream.BOUND, indices, t, x_0.shape[1:])

    def compute(self) -> dict[str, float]:
        """The mean over all ranks' images, its parts, and its standard error over images if there are two; bits/dim."""
        self.sums = {name: over_ranks(value) for name, value in self.sums.items()}
        n, total, squares, rate, distortion, prior_ = (float(self.sums[name]) for name in PER_IMAGE)
        scores = {"bits_per_dim": total / n, "rate": rate / n, "distortion": distortion / n, "L_T": prior_ / n}
        if n > 1:  # one image tells nothing of how images differ
            variance = max(squares / n - (total / n) ** 2, 0.0)
            scores["bits_per_dim_std_error"] = (variance / (n - 1)) ** 0.5
        return {name + self.suffix: value for name, value in scores.items()}

    def details(self) -> dict[str, NDArray[np.float64]]:
        """After `compute`: t, L_{t-1} in bits/dim, the errors of x_0 and eps, each the mean over the `count` images
        that were asked for it (nan where none was), and L_T."""
        count = self.sums["count"].numpy()
        with np.errstate(invalid="ignore"):
            means = {name: self.sums[name].numpy() / count for name in PER_TIME[1:]}
        told = {"t": np.arange(1.0, len(count) + 1), "count": count, "bits_per_dim": means.pop("kl")} | means
        return told | {"L_T": (self.sums["prior"] / self.sums["images"]).numpy()}

    def protocol(self) -> dict[str, Any]:
        times_ = self.num_times or "all"
        told = {"split": self.split, "images": self.count, "times": times_, "clip": True}
        if self.count < len(self.data.load(self.split)):
            told["chosen"] = f"at random, seed {_SEED}"
        return told | {"images_key": identity(self.data, self.split)}


def chosen(count: int, available: int) -> Tensor:
    """The indices of so many of the available images: all in their order, or else some by a fixed permutation, of
    which fewer are the beginning of more; int64 (count,)."""
    if count == available:
        return torch.arange(count)
    return torch.randperm(available, generator=generator(_SEED, Stream.BOUND))[:count]


def _summed(terms: Terms, per_time: Mapping[str, Tensor]) -> Sums:
    """The sums of some images, on the CPU."""
    total = terms.total
    per_image = (torch.ones_like(total), total, total**2, terms.rate, terms.distortion, terms.prior)
    sums = {name: values.sum() for name, values in zip(PER_IMAGE, per_image, strict=True)}
    return {name: value.double().cpu() for name, value in (sums | dict(per_time)).items()}


def _write(sums: Sums, path: Path) -> None:
    arrays: dict[str, Any] = {name: value.numpy() for name, value in sums.items()}
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _read(path: Path, num_steps: int) -> Sums:
    shapes = {name: shape for name, (shape, _) in strangers.numbers(path).items()}
    if shapes != dict.fromkeys(PER_IMAGE, ()) | dict.fromkeys(PER_TIME, (num_steps,)):
        raise ValueError(f"not the sums of {num_steps} times")
    with np.load(path, allow_pickle=False) as kept:
        return {name: torch.from_numpy(kept[name]) for name in shapes}
