"""Features for data that Inception does not suit: a small classifier of the data's own labels."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm import strangers
from ddpm.errors import Refused
from ddpm.images import to_uint8
from ddpm.metric.cache import cached, fingerprint
from ddpm.metric.features import FeatureBatch, Features, small
from ddpm.metric.source import Source, evenly, identity

_log = logging.getLogger(__name__)
_CODE = 1  # to be raised when a change below would give other weights
_READ = 500  # images a batch where nothing is learned
_MEMORY = 0.02  # share of the latest batch in the running accuracy


@dataclass(frozen=True)
class _Recipe:
    channels: tuple[int, ...]
    resolution: int
    images_seen: int
    enough: float
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int

    def __post_init__(self) -> None:
        least = min((*self.channels, self.resolution, self.images_seen, self.batch_size - 1))
        if len(self.channels) < 2 or least < 1 or self.learning_rate <= 0:
            raise Refused(
                "a classifier for metric features needs two channels or more, two images a batch or more "
                f"and positive numbers, not {asdict(self)}"
            )


class _Network(nn.Module):
    def __init__(self, inputs: int, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        halving = [_block(before, after, stride=2) for before, after in pairwise((inputs, *channels[:-1]))]
        last = _block(channels[-2], channels[-1], stride=1)
        self.body = nn.Sequential(*halving, last, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor) -> FeatureBatch:
        features = self.body(x.contiguous(memory_format=torch.channels_last))
        return FeatureBatch(features, self.head(features))


def _block(inputs: int, outputs: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Classifier(Features):
    """A convolutional network trained on the labels of the training split, once, and kept.

    Its features are the averages of its last activations, its logits the data's classes. It is trained on
    the CPU, so that it does not depend on which device happens to measure, and touches no global generator.

    Args:
        cache: the folder where the trained network is kept.
        channels: of each 3 x 3 convolution, two at least; all but the last halve the image. The last number
            is that of the features.
        resolution: larger images are shrunk to it.
        images_seen: in training, each as often as this number allows.
        enough: training ends sooner once so large a share of the latest few thousand was named rightly.
        batch_size: images an optimiser step.
        learning_rate: the peak of a one-cycle schedule (Smith and Topin 2017) for AdamW.
        weight_decay: of AdamW.
        seed: of the initial weights and the order of the images.

    Raises:
        Refused: if one of these is impossible.
    """

    name = "classifier"

    def __init__(
        self,
        *,
        cache: str,
        channels: Sequence[int],
        resolution: int,
        images_seen: int,
        enough: float,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.cache = Path(cache)
        self.recipe = _Recipe(
            tuple(channels), resolution, images_seen, enough, batch_size, learning_rate, weight_decay, seed
        )
        self.num_features = channels[-1]
        self.network = nn.Module()
        self.accuracy: float | None = None  # share of the labelled test images that it names rightly

    def prepare(self, data: Source) -> None:
        """Read the trained network, or train it: seconds to two minutes, by the size of the images.

        Raises:
            Refused: if the data has no labels or one class, or the cache cannot be written.
        """
        self.num_logits = data.facts.num_classes
        if self.num_logits < 2:
            raise _unlabelled(data)
        network, self.accuracy = cached(
            self._path(data), read=self._reader(data), make=lambda: self._make(data), write=_write
        )
        self.key = f"{self.name}-{fingerprint(network.state_dict(), self.recipe.resolution)}"
        self.network = network.requires_grad_(False).eval().to(self.device)

    def extract(self, images: Tensor) -> FeatureBatch:
        said = self.network(small(images, self.recipe.resolution))
        assert isinstance(said, FeatureBatch)
        return said

    def protocol(self) -> dict[str, Any]:
        return super().protocol() | {"features_accuracy": self.accuracy}

    def _path(self, data: Source) -> Path:
        facts = data.facts
        parts = (_CODE, asdict(self.recipe), facts.shape, facts.class_names, identity(data, "train"))
        name = "".join(letter if letter.isalnum() else "_" for letter in facts.name)
        return self.cache / f"{self.name}-{name}-{fingerprint({}, *parts)}.pt"

    def _blank(self, data: Source) -> _Network:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.recipe.seed)
            network = _Network(data.facts.shape[0], self.recipe.channels, data.facts.num_classes)
        return network.to(memory_format=torch.channels_last)

    def _reader(self, data: Source) -> Any:
        def read(path: Path) -> tuple[_Network, float | None]:
            kept = strangers.content(path)
            network = self._blank(data)
            network.load_state_dict(kept["network"])
            return network, kept["accuracy"]

        return read

    def _make(self, data: Source) -> tuple[_Network, float | None]:
        _log.info("training a classifier of %s, once, for the metrics that use it", data.facts.name)
        start = time.perf_counter()
        network = self._trained(data)
        accuracy = self._accuracy(network, data)
        said = "without test labels" if accuracy is None else f"{accuracy:.1%} of the test images right"
        _log.info("classifier of %s: %s, %.0f s", data.facts.name, said, time.perf_counter() - start)
        return network, accuracy

    @torch.enable_grad()
    def _trained(self, data: Source) -> _Network:
        recipe, network = self.recipe, self._blank(data).train()
        images, labels = self._labelled(data, "train")
        if not len(images):
            raise _unlabelled(data)
        steps = max(1, recipe.images_seen // recipe.batch_size)
        rate, decay = recipe.learning_rate, recipe.weight_decay
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        right = 0.0
        for index in _batches(len(images), recipe.batch_size, steps, recipe.seed):
            logits = network(small(images[index], recipe.resolution)).logits
            loss: Tensor = nn.functional.cross_entropy(logits, labels[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            right += _MEMORY * (float((logits.argmax(1) == labels[index]).double().mean()) - right)
            if right >= recipe.enough:
                break
        return network.eval()

    def _labelled(self, data: Source, split: str) -> tuple[Tensor, Tensor]:
        """uint8 images, at the network's resolution, and labels; never more than training would see."""
        chosen = evenly(len(data.load(split)), self.recipe.images_seen)
        images, labels = [], []
        for batch in data.batches(split, _READ, chosen):
            known = batch.labels >= 0
            shrunk = small(to_uint8(batch.images[known]), self.recipe.resolution)
            images.append(to_uint8(shrunk))
            labels.append(batch.labels[known])
        return torch.cat(images), torch.cat(labels)

    @torch.no_grad()
    def _accuracy(self, network: _Network, data: Source) -> float | None:
        images, labels = self._labelled(data, "test")
        if not len(images):
            return None
        parts = (network(small(part, self.recipe.resolution)).logits for part in torch.split(images, _READ))
        return float((torch.cat([logits.argmax(1) for logits in parts]) == labels).double().mean())


def _batches(count: int, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """So many batches of indices, from one permutation after the other."""
    generator = torch.Generator().manual_seed(seed)
    stream = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(stream) < batch_size:
            stream = torch.cat((stream, torch.randperm(count, generator=generator)))
        yield stream[:batch_size]
        stream = stream[batch_size:]


def _unlabelled(data: Source) -> Refused:
    return Refused(
        f"{data.facts.name} has no labels for a classifier to learn: "
        "choose metric=[fid_random] optimized_metric=fid_random, "
        "or Inception's metric=[fid,inception_score] optimized_metric=fid"
    )


def _write(made: tuple[_Network, float | None], path: Path) -> None:
    network, accuracy = made
    torch.save({"network": network.state_dict(), "accuracy": accuracy}, path)
