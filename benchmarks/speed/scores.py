"""The networks that metrics are made of, with weights that are worth nothing: they are as fast as others."""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from benchmarks.speed.pace import Pace
from benchmarks.speed.worker import Spec, Task
from ddpm.data.digits import Digits
from ddpm.instantiate import make
from ddpm.metric import Inception
from ddpm.metric.features import Features

Kind = Callable[[Path], Features]  # of a folder for what it keeps
CLASSIFIER = Path(__file__).parents[2] / "conf" / "metric" / "fid_classifier.yaml"


class Contender:
    """Features a second, of bytes that are on the device."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def tasks(self) -> Mapping[str, Task]:
        return {kind.__name__: partial(self.extract, kind) for kind in (classifier, inception)}

    def facts(self) -> dict[str, Any]:
        return {}

    def extract(self, kind: Kind, pace: Pace) -> None:
        with ready(self.spec, kind, self.spec.problem.images(kind.__name__)) as step:
            pace.begin()
            while True:
                step()
                pace.tick()


@contextmanager
def ready(spec: Spec, kind: Kind, count: int) -> Iterator[Callable[[], Any]]:
    """Something that extracts the features of so many images."""
    data = Digits(root=None, batch_size=1, num_workers=0, flip=False, seed=0)
    with TemporaryDirectory() as folder:
        features = kind(Path(folder)).to(spec.device)
        features.prepare(data)
    images = torch.randint(256, (count, *data.facts.shape), dtype=torch.uint8, device=spec.device)
    yield lambda: features(images)


def classifier(folder: Path) -> Features:
    """That of conf/metric/fid_classifier.yaml, hardly trained."""
    node = yaml.safe_load(CLASSIFIER.read_text())["features"]
    features: Features = make(node | {"cache": str(folder), "images_seen": 1_000}, "features")
    return features


def inception(folder: Path) -> Features:
    """Inception, from a file in torch-fidelity's format."""
    torch.save(Blank().state_dict(), folder / "weights.pth")
    return Inception(weights=str(folder / "weights.pth"))


class Blank(FeatureExtractorInceptionV3):
    """torch-fidelity's network with the weights that its constructor draws."""

    def __init__(self) -> None:
        empty = io.BytesIO()
        torch.save({}, empty)
        empty.seek(0)
        super().__init__("blank", ["2048"], feature_extractor_weights_path=empty)

    def load_state_dict(self, *_: Any, **__: Any) -> None:
        """There are none to load."""
