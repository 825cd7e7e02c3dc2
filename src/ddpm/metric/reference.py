"""Mean and covariance of features, and those of a data set, which are computed once and kept."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.errors import Refused
from ddpm.images import to_uint8
from ddpm.metric.cache import cached, fingerprint
from ddpm.metric.features import Features
from ddpm.metric.source import Source, identity

_log = logging.getLogger(__name__)
_BATCH = 250


@dataclass(frozen=True)
class Statistics:
    """The mean (d,) and the unbiased covariance (d, d) of the features of n images; float64, on the CPU."""

    mu: Tensor
    sigma: Tensor
    count: int


def moments(features: Tensor) -> dict[str, Tensor]:
    """What float64 features (b, d) add to the sums from which `statistics` come."""
    return {"features": features.sum(0), "squares": features.T @ features}


def statistics(sums: Mapping[str, Tensor], count: int) -> Statistics:
    """Mean and covariance from summed moments of at least two images."""
    mu = sums["features"] / count
    return Statistics(mu, (sums["squares"] - count * torch.outer(mu, mu)) / (count - 1), count)


def reference(features: Features, data: Source, split: str, cache: str) -> Statistics:
    """The statistics of a split, unflipped, from the cache if it has them.

    Its files are .npz with mu and sigma, as others write them, and the count.

    Raises:
        Refused: if the split has fewer than two images, or the cache can not be written.
    """
    if len(data.load(split)) < 2:
        raise Refused(f"{data.facts.name} has fewer than two {split} images, and a covariance needs two")
    key = fingerprint({}, identity(data, split), features.key)
    path = Path(cache) / f"reference-{split}-{features.name}-{key}.npz"
    width = features.num_features
    return cached(
        path,
        read=lambda kept: _read(kept, width),
        make=lambda: _measured(features, data, split),
        write=_write,
    )


def _measured(features: Features, data: Source, split: str) -> Statistics:
    count = len(data.load(split))
    _log.info("%s features of %d %s images, once, for the reference", features.name, count, split)
    sums: dict[str, Tensor] = {}
    for batch in data.batches(split, _BATCH):
        terms = moments(features(to_uint8(batch.images)).features.cpu().double())
        sums = {name: term + sums[name] for name, term in terms.items()} if sums else terms
    return statistics(sums, count)


def _write(made: Statistics, path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, mu=made.mu.numpy(), sigma=made.sigma.numpy(), n=np.int64(made.count))


def _read(path: Path, width: int) -> Statistics:
    with np.load(path, allow_pickle=False) as kept:
        mu, sigma, count = kept["mu"], kept["sigma"], int(kept["n"])
    if mu.shape != (width,) or sigma.shape != (width, width) or count < 2:
        raise ValueError(f"mu {mu.shape} and sigma {sigma.shape} of {count} images, not {width} features")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError("numbers that are not finite")
    return Statistics(torch.from_numpy(mu).double(), torch.from_numpy(sigma).double(), count)
