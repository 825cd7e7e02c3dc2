"""What is kept of real images' features: mean and covariance, or the features themselves. Computed once."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm import strangers
from ddpm.errors import Refused
from ddpm.metric.cache import cached, fingerprint
from ddpm.metric.features import Features
from ddpm.metric.real import BATCH, Real
from ddpm.metric.source import evenly

SILENCE = 30.0  # seconds between two words on how far the features of real images are

_CODE = 1  # to be raised when a change to how images are read, to an extractor or to what follows gives other numbers
_log = logging.getLogger(__name__)
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Statistics:
    """The mean (d,) and the unbiased covariance (d, d) of the features of n images; float64, on the CPU."""

    mu: Tensor
    sigma: Tensor
    count: int | None  # None where a file does not say


def moments(features: Tensor) -> dict[str, Tensor]:
    """What float64 features (b, d) add to the sums from which `statistics` come."""
    return {"features": features.sum(0), "squares": features.T @ features}


def statistics(sums: Mapping[str, Tensor], count: int) -> Statistics:
    """Mean and covariance from summed moments of at least two images."""
    mu = sums["features"] / count
    return Statistics(mu, (sums["squares"] - count * torch.outer(mu, mu)) / (count - 1), count)


def statistics_of(batches: Iterable[Tensor]) -> Statistics:
    """Mean and covariance of float32 features (b, d) that come in batches, of two images in all or more."""
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        terms = moments(batch.double())
        sums = {name: term + sums[name] for name, term in terms.items()} if sums else terms
        count += len(batch)
    return statistics(sums, count)


def reference_statistics(features: Features, images: Real, cache: str) -> Statistics:
    """The statistics of real images, from the cache if it has them.

    Its files are .npz with mu and sigma, as others write them, and the count.

    Raises:
        Refused: if the cache cannot be written.
    """
    return cached(
        _path(features, images, cache, "reference", ".npz"),
        read=lambda kept: _read(kept, features.num_features),
        make=lambda: statistics_of(_all_features(features, images, cache)),
        write=_write,
    )


def given(path: Path, features: Features) -> Statistics:
    """The statistics in an .npz with mu and sigma, as pytorch-fid writes it (and we); nothing is unpickled.

    Raises:
        Refused: if it is not there, is something else, or is not of features of this width.
    """
    try:
        return _read(path, features.num_features)
    except Exception as fault:  # whatever a file that anybody may have written makes the reader raise
        raise Refused(
            f"{path} holds no mu and sigma of {features.num_features} {features.name} features "
            f"({type(fault).__name__}: {fault}): choose another reference of the metric"
        ) from fault


def reference_features(features: Features, images: Real, at_most: int, cache: str) -> Rows:
    """The features (n, d) of real images, at most so many and then evenly spaced: a float32 file, mapped.

    Raises:
        Refused: if the cache cannot be written.
    """
    chosen = evenly(len(images), at_most)
    path = _path(features, images, cache, "features", ".npy", len(chosen))
    shape = (len(chosen), features.num_features)
    cached(path, read=lambda kept: rows(kept, shape), make=lambda: _extracted(features, images, chosen), write=save)
    return np.load(path, mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]


def _path(features: Features, images: Real, cache: str, what: str, suffix: str, *options: int) -> Path:
    key = fingerprint({}, _CODE, images.identity, features.key, *options)
    return Path(cache) / f"{what}-{images.split}-{features.name}-{key}{suffix}"


def _all_features(features: Features, images: Real, cache: str) -> Iterator[Tensor]:
    """From the file of another metric that has kept all of them; else from the images."""
    if _path(features, images, cache, "features", ".npy", len(images)).is_file():
        kept = torch.from_numpy(reference_features(features, images, len(images), cache))
        return iter(torch.split(kept, BATCH))
    return _told(features, images, torch.arange(len(images)))


def _told(features: Features, images: Real, chosen: Tensor) -> Iterator[Tensor]:
    _log.info("%s features of %d %s images, once, for the reference", features.name, len(chosen), images.split)
    return _heard(images.features(features, chosen), len(chosen))


def _heard(batches: Iterable[Tensor], total: int) -> Iterator[Tensor]:
    """The batches, with a line now and then on how many of so many images are done: it may take hours on a CPU."""
    begun = told = monotonic()
    done = 0
    for batch in batches:
        yield batch
        done, now = done + len(batch), monotonic()
        if now - told > SILENCE:
            left = timedelta(seconds=round((now - begun) / done * (total - done)))
            _log.info("features of %d of %d images, %s left", done, total, left)
            told = now


def _extracted(features: Features, images: Real, chosen: Tensor) -> Rows:
    made = torch.empty(len(chosen), features.num_features)
    done = 0
    for batch in _told(features, images, chosen):
        made[done : done + len(batch)] = batch
        done += len(batch)
    return made.numpy()


def rows(path: Path, shape: tuple[int, ...]) -> Rows:
    """The finite float32 numbers of this shape in a file, mapped. Raises ValueError if it holds anything else."""
    kept: Rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if kept.shape != shape or kept.dtype != np.float32:
        raise ValueError(f"{kept.dtype} of shape {kept.shape}, not float32 of shape {shape}")
    if not np.isfinite(kept).all():
        raise ValueError("numbers that are not finite")
    return kept


def save(made: Rows, path: Path) -> None:
    """Write what `rows` reads."""
    with path.open("wb") as file:
        np.save(file, made)


def _write(made: Statistics, path: Path) -> None:
    assert made.count is not None  # it was counted
    with path.open("wb") as file:
        np.savez(file, mu=made.mu.numpy(), sigma=made.sigma.numpy(), n=np.int64(made.count))


def _read(path: Path, width: int) -> Statistics:
    shapes = {name: shape for name, (shape, _) in strangers.numbers(path).items()}
    if (shapes.get("mu"), shapes.get("sigma"), shapes.get("n", ())) != ((width,), (width, width), ()):
        raise ValueError(f"mu {shapes.get('mu')} and sigma {shapes.get('sigma')}, not {width} features")
    with np.load(path, allow_pickle=False) as kept:
        mu, sigma = kept["mu"], kept["sigma"]
        count = int(kept["n"]) if "n" in kept else None
    if count is not None and count < 2:
        raise ValueError(f"statistics of {count} images")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError("numbers that are not finite")
    return Statistics(torch.from_numpy(mu).double(), torch.from_numpy(sigma).double(), count)
