"""KID, precision and recall: torch-fidelity's on the same features, which lie on disk for a while and then no more."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import pytest
import torch
from metric_data import Few, digits
from test_metric import kid, precision_recall, random_features, seen
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from ddpm.errors import Refused
from ddpm.metric import FID, KID, FeatureBatch, PrecisionRecall, RandomConv, SampleMetric, Scores

Metric = TypeVar("Metric", bound=SampleMetric)


def features_of(metric: SampleMetric, pixels: Tensor) -> Tensor:
    return metric.features(pixels).features


def prepared(metric: Metric, data: Few) -> Metric:
    metric.prepare(data)
    return metric


@pytest.fixture(scope="module")
def data() -> Few:
    """Low digits to train on, all digits to test."""
    low, every = digits(train=300, classes=(0, 1, 2, 3, 4)), digits(train=100, test=250)
    return Few(low.facts, {"train": low.load("train"), "test": every.load("test")})


@pytest.mark.parametrize("at_most", [1000, 120])
def test_they_are_torch_fidelitys_whatever_the_order(
    at_most: int, data: Few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer kept: on the first samples, and on real images that are evenly spaced. In several blocks."""
    monkeypatch.setattr("ddpm.metric.kept._BLOCK", 70)
    of_kid, of_prc = kid(tmp_path, at_most=at_most), precision_recall(tmp_path, at_most=at_most)
    order = list(torch.randperm(250, generator=torch.Generator().manual_seed(0)).split(60))
    samples = features_of(prepared(of_kid, data), data.pixels("test"))
    kept, real = samples[:at_most], features_of(of_kid, data.pixels("train"))
    real = real if at_most > 300 else real[torch.arange(120) * 300 // 120]
    of_prc.prepare(data)
    scores: dict[str, float] = {}
    for metric in (of_kid, of_prc):
        metric.reset(250)
        for number in order:
            metric.update(FeatureBatch(samples[number], None), number)
        scores |= metric.compute()
    theirs = kid_features_to_metric(kept, real, kid_subsets=20, kid_subset_size=50, verbose=False)
    assert scores["kid_random"] == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)
    assert scores["kid_random_std"] == pytest.approx(theirs["kernel_inception_distance_std"], abs=1e-6)
    assert scores["kid_random"] > 1e-3
    for saving in (False, True):
        theirs = prc_features_to_metric(kept, real, prc_neighborhood=3, save_cpu_ram=saving, verbose=False)
        assert scores["precision_random"] == theirs["precision"]
        assert scores["recall_random"] == theirs["recall"]
        assert scores["precision_recall_random"] == theirs["f_score"]
    assert 0 < scores["precision_random"] < scores["recall_random"] < 1


def test_all_of_one_mode_is_precise_and_recalls_little(tmp_path: Path) -> None:
    """On the real images themselves both are 1; far away both are 0; on some of the classes only one is."""
    metric = prepared(precision_recall(tmp_path), digits(train=400))
    pixels = digits(train=400).pixels("train")
    names = ("precision_random", "recall_random", "precision_recall_random")
    order = list(torch.arange(400).split(400))
    white = 250 + torch.randint(0, 6, pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    same, far = seen(metric, pixels, order), seen(metric, white, order)
    assert [same[name] for name in names] == [1, 1, 1]
    assert [far[name] for name in names] == [0, 0, 0]
    some = pixels[digits(train=400).load("train").labels < 2]
    of_some = seen(metric, some, [torch.arange(len(some))])
    assert of_some["precision_random"] == 1
    assert 0 < of_some["recall_random"] < 0.7


def test_nothing_but_the_real_images_features_stays_on_disk(data: Few, tmp_path: Path) -> None:
    for metric, kept in ((kid(tmp_path / "all"), 250), (precision_recall(tmp_path / "some", at_most=120), 120)):
        metric.prepare(data)
        before = sorted(metric.cache.iterdir())
        assert [path.suffix for path in before if path.suffix != ".lock"] == [".npy"]
        for _ in range(2):  # one that is abandoned, and one that is finished
            metric.reset(250)
            metric.update(metric.features(data.pixels("test")), torch.arange(250))
            written = metric._shard._file
            assert written is not None
            assert written.seek(0, 2) == kept * 16 * 4
        metric.compute()
        assert written.closed
        assert sorted(metric.cache.iterdir()) == before


def test_subsets_shrink_with_a_warning_and_the_protocol_says_so(
    data: Few, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metric = kid(tmp_path, subset_size=100)
    metric.prepare(data)
    told = {}
    for count in (250, 40, 40, 100):
        metric.reset(count)
        told[count] = metric.protocol()["subset_size"], caplog.text.count("subsets of 40 instead of 100")
    assert told == {250: (100, 0), 40: (40, 1), 100: (100, 1)}
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    few = kid(tmp_path, subset_size=100)
    few.prepare(digits(train=30))
    few.reset(250)
    assert few.protocol() | {"subset_size": 30, "reference_images": 30} == few.protocol()


def test_too_few_images_or_impossible_numbers_are_refused(data: Few, tmp_path: Path) -> None:
    metric = prepared(precision_recall(tmp_path), data)
    with pytest.raises(Refused, match="precision_recall_random needs at least 4 images, and num_images is 3"):
        metric.refuse_few(3)
    with pytest.raises(Refused, match="at least 4 images, and the number of train images is 3"):
        metric.prepare(digits(train=3))
    with pytest.raises(Refused, match="at least 2 images, and at_most is 1"):
        kid(tmp_path, at_most=1)
    with pytest.raises(Refused, match="subset of two images"):
        kid(tmp_path, subset_size=1)
    with pytest.raises(Refused, match="at least one neighbour"):
        PrecisionRecall(features=random_features(), reference="train", neighbours=0, at_most=9, cache=str(tmp_path))
    with pytest.raises(Refused, match=r"no reference stats.npz: choose train, test or a folder"):
        kid(tmp_path, reference="stats.npz").prepare(data)


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3], [0, 1, 2, 3, 3], [0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 7]])
def test_an_image_that_was_not_seen_or_seen_twice_is_noticed(numbers: list[int], data: Few, tmp_path: Path) -> None:
    metric = prepared(kid(tmp_path, at_most=5), data)
    metric.reset(5)
    metric.update(metric.features(data.pixels("test")[: len(numbers)]), torch.tensor(numbers))
    with pytest.raises(RuntimeError, match="expected 5 images, each once"):
        metric.compute()


class Counting(RandomConv):
    """Random features that count the images they see."""

    seen: ClassVar[list[int]] = []

    def extract(self, images: Tensor) -> FeatureBatch:
        self.seen.append(len(images))
        return super().extract(images)


@pytest.mark.parametrize(("at_most", "passes"), [(300, 300), (299, 300 + 299)])
def test_statistics_are_made_of_kept_features_where_they_are_all(
    at_most: int, passes: int, data: Few, tmp_path: Path
) -> None:
    alone = FID(features=random_features(), reference="train", cache=str(tmp_path / "alone"))
    alone.prepare(data)
    features = Counting(channels=[8, 4], resolution=32, seed=0)
    fid = FID(features=features, reference="train", cache=str(tmp_path))
    keeping = KID(features=features, reference="train", subsets=2, subset_size=9, at_most=at_most, cache=str(tmp_path))
    Counting.seen.clear()
    Scores([fid, keeping]).prepare(data)
    assert sum(Counting.seen) == passes
    assert fid.statistics is not None
    assert alone.statistics is not None
    assert torch.equal(fid.statistics.sigma, alone.statistics.sigma)
    assert torch.equal(fid.statistics.mu, alone.statistics.mu)


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: np.save(path.open("wb"), np.zeros((300, 15), dtype=np.float32)),
        lambda path: np.save(path.open("wb"), np.zeros((300, 16))),
        lambda path: np.save(path.open("wb"), np.full((300, 16), np.nan, dtype=np.float32)),
        lambda path: np.save(path.open("wb"), np.array([print], dtype=object)),
    ],
)
def test_corrupt_features_are_made_again_with_a_warning(
    corrupt: Callable[[Path], object], data: Few, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metric = kid(tmp_path)
    metric.prepare(data)
    [path] = tmp_path.glob("*.npy")
    want = np.array(metric.of_real)
    corrupt(path)
    metric.prepare(data)
    assert caplog.text.count("is corrupt") == 1
    assert np.array_equal(metric.of_real, want)
    assert np.array_equal(np.load(path), want)
