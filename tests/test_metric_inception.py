"""Inception: its weights opened safely, its scores those of torch-fidelity on the same images and file."""

import http.server
import io
import os
import pickle
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from metric_data import Few, classes_apart, digits
from scipy.linalg import sqrtm
from test_metric_features import noise
from torch import Tensor
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric

from ddpm.drawn import Pictures
from ddpm.errors import Refused
from ddpm.images import from_levels
from ddpm.metric import FID, KID, FeatureBatch, Inception, InceptionScore, PrecisionRecall, Scores
from ddpm.metric.fid import frechet_distance
from ddpm.metric.inception_network import URL
from ddpm.metric.reference import statistics_of
from ddpm.mode.reverse import OVERVIEW
from ddpm.pictures import write_grid

State = dict[str, Tensor]


class Blank(FeatureExtractorInceptionV3):
    """The layout of torch-fidelity's network, with whatever weights."""

    def __init__(self) -> None:
        buffer = io.BytesIO()
        torch.save({}, buffer)
        buffer.seek(0)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            super().__init__("blank", ["2048"], feature_extractor_weights_path=buffer)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Keep what the constructor has drawn."""


@pytest.fixture(scope="session")
def layout() -> State:
    """A file of the right layout in a few kilobytes: every tensor is one number, repeated."""
    return {name: torch.zeros((), dtype=t.dtype).expand(t.shape) for name, t in Blank().state_dict().items()}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the real format, whose scores can differ: on digits, features are spread so that
    classes lie apart, and logits have no common direction and are sure of themselves."""
    network, source = Blank(), torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(parameter, generator=source)
    with torch.no_grad():
        (features,) = network(digits(train=8).pixels("train").expand(-1, 3, -1, -1))
        spread = 0.1 / features.std(0).mean()
        for name, parameter in network.named_parameters():
            if re.match(r"Mixed_7c\.branch(1x1|.*_[23][ab]|_pool)\.bn\.weight", name):
                parameter *= spread  # the last norms; they do not shift, so that features grow by the factor
        direction = torch.nn.functional.normalize(features.mean(0), dim=0)
        network.fc.weight -= torch.outer(network.fc.weight @ direction, direction)
        network.fc.weight *= 5 / (spread * features @ network.fc.weight.T).std()
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


class Executed:
    """A pickle that would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def refusal(path: Path) -> str:
    with pytest.raises(Refused) as refused:
        Inception(weights=str(path)).prepare(digits(train=2))
    return str(refused.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_runs_none(zipped: bool, layout: State, tmp_path: Path) -> None:
    path, made = tmp_path / "hostile.pth", tmp_path / "executed"
    state = layout | {"fc.bias": Executed(made)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert "holds more than tensors and was not opened" in refusal(path)
    path.write_bytes(pickle.dumps(Executed(made)))
    assert "was not opened" in refusal(path)
    assert not made.exists()


def without(state: State, name: str) -> State:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda state: without(state, "fc.weight"), "lacks fc.weight"),
        (lambda state: state | {"fc.weight": torch.zeros(1000, 2048)}, r"fc.weight of shape \(1000, 2048\)"),
        (lambda state: state | {"fc.bias": torch.full((1008,), torch.nan)}, "fc.bias that are not finite"),
        (lambda state: list(state.values())[:3], "no tensors by name"),
        (lambda state: state | {"fc.bias": 3}, "no tensors by name"),
    ],
)
def test_another_networks_file_is_refused(
    spoil: Callable[[State], object], complaint: str, layout: State, tmp_path: Path
) -> None:
    torch.save(spoil(layout), tmp_path / "other.pth")
    with pytest.raises(Refused, match=f"other.pth .*{complaint}.*weights=PATH"):
        Inception(weights=str(tmp_path / "other.pth")).prepare(digits(train=2))


def test_a_truncated_or_missing_file_is_refused(layout: State, tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    assert "half.pth is not there" in refusal(path)
    torch.save(layout, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "half.pth is damaged" in refusal(path)
    path.write_bytes(b"")
    assert "half.pth is damaged" in refusal(path)


def test_images_that_are_neither_grey_nor_rgb_are_refused() -> None:
    with pytest.raises(Refused, match=r"2 channels of noise.*fid_classifier"):
        Inception(weights=None).prepare(noise((2, 8, 8)))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Put torch hub's empty cache behind a proxy that is not there; gives the place of the weights in it."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints" / Path(URL).name


def test_without_network_and_weights_it_says_what_to_do(no_network: Path) -> None:
    with pytest.raises(Refused, match=rf"{Path(URL).name} cannot be downloaded.*weights=PATH.*fid_class"):
        Inception(weights=None).prepare(digits(train=2))
    assert [path.name for path in no_network.parent.iterdir() if path.suffix != ".lock"] == []


def test_the_file_in_torch_hubs_cache_is_used(no_network: Path, layout: State) -> None:
    no_network.parent.mkdir(parents=True)
    torch.save(layout, no_network)
    features = Inception(weights=None)
    features.prepare(digits(train=2))
    assert features.key.startswith("inception-")


def test_a_missing_file_is_downloaded(monkeypatch: pytest.MonkeyPatch, layout: State, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    torch.save(layout, tmp_path / "served" / "weights.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("ddpm.metric.inception_network.URL", f"http://127.0.0.1:{server.server_port}/weights.pth")
        Inception(weights=None).prepare(digits(train=2))
        server.shutdown()
    assert (tmp_path / "home" / "hub" / "checkpoints" / "weights.pth").stat().st_size > 0


def colourful(data: Few) -> Few:
    """The same digits, each in red, with others in green and blue."""
    splits = {
        name: replace(images, levels=torch.cat([images.levels.roll(k, 0) >> k for k in range(3)], 1))
        for name, images in data.splits.items()
    }
    return replace(data, facts=replace(data.facts, shape=(3, 8, 8)), splits=splits)


def test_features_are_torch_fidelitys_of_the_same_file(weights: Path) -> None:
    """Grey repeated to three channels, colours in their order; a file without counts of batches will do, as the true
    one."""
    state = torch.load(weights, weights_only=True)
    theirs = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], str(weights))
    bare = {name: value for name, value in state.items() if "num_batches" not in name}
    torch.save(bare, weights.with_name("bare.pth"))
    ours, before = Inception(weights=str(weights.with_name("bare.pth"))), torch.get_rng_state()
    ours.prepare(digits(train=2))
    assert torch.equal(before, torch.get_rng_state())
    for channels in (1, 3):
        pixels = torch.randint(256, (2, channels, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        said = ours(pixels)
        want = theirs(pixels.expand(-1, 3, -1, -1).contiguous())
        assert torch.equal(said.features, want[0])
        assert said.logits is not None
        assert torch.equal(said.logits, want[1])


@pytest.mark.parametrize(("count", "splits"), [(101, 1), (101, 10), (40, 3), (10, 10)])
def test_the_inception_score_is_torch_fidelitys(count: int, splits: int, tmp_path: Path) -> None:
    """On the same logits, whatever the order in which the images come."""
    source = torch.Generator().manual_seed(count)
    logits = 4 * torch.randn(count, 1008, generator=source)
    want = isc_features_to_metric(logits, splits)
    metric = InceptionScore(features=Inception(weights=None), splits=splits)
    metric.reset(count)
    for number in torch.randperm(count, generator=source).split(7):
        metric.update(FeatureBatch(torch.zeros(len(number), 1), logits[number]), number)
    scores = metric.compute()
    assert want["inception_score_mean"] > 2 or count == splits
    assert scores[metric.name] == pytest.approx(want["inception_score_mean"], rel=1e-9)
    assert scores[f"{metric.name}_std"] == pytest.approx(want["inception_score_std"], rel=1e-6, abs=1e-9)


def test_the_frechet_distance_is_torch_fidelitys() -> None:
    source = torch.Generator().manual_seed(0)
    a, b = (scale * torch.randn(90, 24, generator=source) for scale in (1.0, 1.5))
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(x) for x in (a, b)), verbose=False)
    ours = frechet_distance(*(statistics_of(x.split(40)) for x in (a, b)))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)


class Pixels(torch.utils.data.Dataset[Tensor]):
    """uint8 RGB images, as torch-fidelity wants them."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]


@pytest.mark.slow
def test_scores_are_those_of_torch_fidelitys_own_command(weights: Path, tmp_path: Path) -> None:
    """Ours of digits of all classes against zeros, all in colours, in other batches than theirs; the samples lie in a
    folder as sample.py leaves it."""
    data, samples = colourful(classes_apart(8)), colourful(digits(train=13))
    Pictures(tmp_path, 13).write(torch.arange(13), samples.pixels("train"))
    write_grid(samples.pixels("train"), tmp_path / OVERVIEW / "grid.png")
    options: dict[str, Any] = {
        "features": Inception(weights=str(weights)),
        "cache": str(tmp_path),
        "reference": "train",
    }
    fid = FID(**options)
    scores = Scores(
        [
            fid,
            InceptionScore(features=Inception(weights=str(weights)), splits=3),
            KID(subsets=100, subset_size=1000, at_most=50_000, **options),
            PrecisionRecall(neighbours=3, at_most=50_000, **options),
        ]
    )
    scores.prepare(data)
    scores.reset(13)
    for number in torch.arange(13).split(5):
        scores.update(from_levels(samples.load("train").levels[number], 17), number)
    ours = scores.compute()
    theirs = theirs_of(weights, tmp_path, data.pixels("train"))
    distance_of_classes = fid.of_unseen(8)
    assert distance_of_classes is not None
    assert distance_of_classes > 1
    assert ours["inception_score_3"] > 2
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["fid"] == pytest.approx(by_scipy(weights, samples.pixels("train"), data.pixels("train")), rel=1e-3)
    assert ours["inception_score_3"] == pytest.approx(theirs["inception_score_mean"], rel=1e-3)
    assert ours["inception_score_3_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-3)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)
    assert ours["kid"] > 1e-3
    assert (ours["precision"], ours["recall"]) == (theirs["precision"], theirs["recall"])
    assert ours["precision_recall"] == theirs["f_score"]


def theirs_of(weights: Path, samples: Path, real: Tensor) -> dict[str, float]:
    """All scores of a folder by torch-fidelity, on Inception's features."""
    return calculate_metrics(
        input1=str(samples),
        input2=Pixels(real),
        isc=True,
        isc_splits=3,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=len(real),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        cuda=False,
        cache=False,
        verbose=False,
        batch_size=8,
    )


def by_scipy(weights: Path, *images: Tensor) -> float:
    """FID by the matrix square root of float64 covariances, on torch-fidelity's features."""
    network = FeatureExtractorInceptionV3("x", ["2048"], str(weights))
    with torch.no_grad():
        features = [network(pixels)[0].double().numpy() for pixels in images]
    mu, other_mu = (x.mean(0) for x in features)
    sigma, other = (np.cov(x, rowvar=False) for x in features)
    root = sqrtm(sigma @ other).real
    return float(np.square(mu - other_mu).sum() + np.trace(sigma + other - 2 * root))
