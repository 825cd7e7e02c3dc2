"""Scores of samples: what FID and inception score compute, all of them over ranks, and what they refuse."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_data import Few, digits
from scipy.linalg import sqrtm
from torch import Tensor, distributed
from torch.multiprocessing.spawn import start_processes

from ddpm.errors import Refused
from ddpm.images import from_levels, to_uint8
from ddpm.metric import (
    FID,
    KID,
    Classifier,
    DINOv2,
    FeatureBatch,
    FrechetDistance,
    Inception,
    InceptionScore,
    Nearest,
    Pixels,
    PrecisionRecall,
    RandomConv,
    SampleMetric,
    Scores,
)
from ddpm.metric.fid import frechet_distance
from ddpm.metric.inception_score import split_of_image
from ddpm.metric.reference import Statistics, statistics_of


def random_features() -> RandomConv:
    return RandomConv(channels=[8, 4], resolution=32, seed=0)


def classifier(cache: Path, images_seen: int = 640) -> Classifier:
    return Classifier(
        cache=str(cache),
        channels=[8, 16, 16],
        resolution=32,
        images_seen=images_seen,
        enough=0.99,
        batch_size=64,
        learning_rate=1e-2,
        weight_decay=1e-2,
        seed=0,
    )


def kid(cache: Path, subset_size: int = 50, at_most: int = 1000, reference: str = "train") -> KID:
    return KID(
        features=random_features(),
        reference=reference,
        subsets=20,
        subset_size=subset_size,
        at_most=at_most,
        cache=str(cache),
    )


def precision_recall(cache: Path, at_most: int = 1000) -> PrecisionRecall:
    return PrecisionRecall(
        features=random_features(), reference="train", neighbours=3, at_most=at_most, cache=str(cache)
    )


def seen(metric: SampleMetric, images: Tensor, order: list[Tensor]) -> dict[str, float]:
    """The scores of uint8 images that come in these batches of indices."""
    metric.reset(len(images))
    for number in order:
        metric.update(metric.features(images[number]), number)
    return metric.compute()


@pytest.mark.parametrize(("count", "tolerance"), [(400, 1e-9), (9, 1e-6)])
def test_frechet_distance_is_scipys(count: int, tolerance: float) -> None:
    """Also with fewer images than features, where the covariances are singular."""
    source = torch.Generator().manual_seed(0)
    mix = torch.randn(16, 16, generator=source, dtype=torch.float64)
    a, b = (torch.randn(count, 16, generator=source, dtype=torch.float64) @ mix + shift for shift in (0, 0.5))
    one, other = statistics_of(a.split(7)), statistics_of([b @ mix.T])
    root = sqrtm(one.sigma.numpy() @ other.sigma.numpy()).real
    np.testing.assert_allclose(one.sigma, np.cov(a.numpy(), rowvar=False), rtol=1e-9, atol=1e-12)
    want = float((one.mu - other.mu).square().sum()) + np.trace(one.sigma + other.sigma - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(want, rel=tolerance)


def test_frechet_distance_of_diagonal_gaussians() -> None:
    one = Statistics(torch.zeros(2).double(), torch.diag(torch.tensor([1.0, 4.0])).double(), 2)
    other = Statistics(torch.tensor([3.0, 4.0]).double(), torch.diag(torch.tensor([9.0, 0.0])).double(), 2)
    assert frechet_distance(one, other) == pytest.approx(25 + (1 - 3) ** 2 + (2 - 0) ** 2, rel=1e-12)


def test_fid_of_the_reference_itself_is_zero_and_of_another_class_is_not(tmp_path: Path) -> None:
    data = digits()
    fid = FID(features=random_features(), reference="train", cache=str(tmp_path))
    fid.prepare(data)
    pixels = data.pixels("train")
    same = seen(fid, pixels, list(torch.arange(1500).split(400)))["fid_random"]
    flipped = seen(fid, pixels.flip(-1), list(torch.arange(1500).split(400)))["fid_random"]
    assert abs(same) < 1e-6 < 1e-3 < flipped


def test_an_image_falls_into_one_split_by_its_index() -> None:
    split = split_of_image(103, 10)
    assert split.bincount().tolist() == [10, 10, 10, 11, 10, 10, 11, 10, 10, 11]
    assert not torch.equal(split, split.sort().values)


def test_inception_score_of_certain_and_uncertain_classes(tmp_path: Path) -> None:
    """As many as there are classes, each of them certain; and 1 where nothing is known of any image."""
    score = InceptionScore(features=classifier(tmp_path), splits=1)
    score.features.num_logits = 5
    for sharpness, want in ((1e3, 5.0), (0.0, 1.0)):
        score.reset(20)
        for number in torch.arange(20).split(7):
            logits = sharpness * torch.nn.functional.one_hot(number % 5, 5).float()
            score.update(FeatureBatch(torch.zeros(len(number), 1), logits), number)
        assert score.compute() == pytest.approx(
            {"inception_score_classifier_1": want, "inception_score_classifier_1_std": 0.0}, abs=1e-12
        )


def test_scores_depend_neither_on_order_nor_on_batches_and_share_a_pass(tmp_path: Path) -> None:
    data = digits(train=400, test=103)
    metrics: list[SampleMetric] = [
        FID(features=classifier(tmp_path), reference="train", cache=str(tmp_path)),
        InceptionScore(features=classifier(tmp_path), splits=10),
        InceptionScore(features=classifier(tmp_path), splits=1),
        FID(features=random_features(), reference="train", cache=str(tmp_path)),
    ]
    scores = Scores(metrics)
    scores.prepare(data)
    assert metrics[0].features is metrics[1].features is metrics[2].features
    scores.reset(103)
    shuffled = torch.randperm(103, generator=torch.Generator().manual_seed(1))
    levels = data.load("test").levels
    for number in shuffled.split(10):
        scores.update(from_levels(levels[number], 17), number)
    together = scores.compute()
    alone: dict[str, float] = {}
    for metric in metrics:
        alone |= seen(metric, data.pixels("test"), list(torch.arange(103).split(40)))
    assert together == pytest.approx(alone, rel=1e-4)
    assert set(together) == {
        "fid_classifier",
        "inception_score_classifier",
        "inception_score_classifier_std",
        "inception_score_classifier_1",
        "inception_score_classifier_1_std",
        "fid_random",
    }


def over_two_ranks(rank: int, folder: str, data: Few) -> None:
    """One of two processes, which sees every second batch."""
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    metrics = scored(Path(folder), data)
    for metric in metrics:
        metric.prepare(data)
    scores = halves(metrics, data, list(torch.arange(301).split(50))[rank::2])
    Path(folder, f"{rank}.json").write_text(json.dumps(scores))
    distributed.destroy_process_group()


def scored(folder: Path, data: Few) -> list[SampleMetric]:
    return [
        FID(features=random_features(), reference="train", cache=str(folder)),
        InceptionScore(features=classifier(folder), splits=3),
        kid(folder),
        precision_recall(folder),
        Nearest(
            features=Pixels(resolution=32),
            held_out="test",
            quantile=0.1,
            at_most=350,
            neighbours=2,
            shown=60,
            cache=str(folder),
        ),
    ]


def halves(metrics: list[SampleMetric], data: Few, order: list[Tensor]) -> dict[str, float]:
    pixels = data.pixels("test")
    scores: dict[str, float] = {}
    for metric in metrics:
        metric.reset(301)
        for number in order:
            metric.update(metric.features(pixels[number]), number)
        scores |= metric.compute()
        if isinstance(metric, Nearest):
            shown = [*metric.first, metric.closest.number, metric.closest.images, metric.closest.indices]
            numbers = torch.cat([column.flatten().double() for column in shown]).tolist()
            scores |= {f"shown {i}": value for i, value in enumerate(numbers)}
    return scores


def test_two_processes_give_the_scores_of_one(tmp_path: Path) -> None:
    """They prepare at once, too: one trains, the other waits and reads what it wrote."""
    import_module("torch_fidelity.metrics")  # once, not in each of them
    data = digits(train=400, test=301)
    args = (str(tmp_path), data)
    start_processes(over_two_ranks, args, nprocs=2, start_method="fork")  # which spares them the imports
    metrics = scored(tmp_path, data)
    for metric in metrics:
        metric.prepare(data)
    want = halves(metrics, data, list(torch.arange(301).split(50)))
    assert set(want) > {"kid_random", "kid_random_std", "precision_recall_random", "precision_random", "recall_random"}
    assert set(want) > {"share_nearer_pixels", "nearest_pixels", "nearest_held_out_pixels", "shown 0"}
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1] == pytest.approx(want, rel=1e-10)


def test_names_and_protocols_tell_scores_apart(tmp_path: Path) -> None:
    data, inception = digits(train=50, test=20), Inception(weights=None)
    fid = FID(features=random_features(), reference="test", cache=str(tmp_path))
    assert (fid.name, fid.larger_is_better) == ("fid_random_test", False)
    names = {
        "fid": FID(features=inception, reference="train", cache=".cache"),
        "fid_test": FID(features=inception, reference="test", cache=".cache"),
        "fid_cifar_10": FID(features=inception, reference="/some/where/cifar-10.npz", cache=".cache"),
        "fd_dinov2": FrechetDistance(features=DINOv2(weights=None), reference="train", cache=".cache"),
        "inception_score": InceptionScore(features=inception, splits=10),
        "inception_score_1": InceptionScore(features=inception, splits=1),
        "inception_score_classifier_3": InceptionScore(features=classifier(tmp_path), splits=3),
    }
    assert list(names) == [metric.name for metric in names.values()]
    assert names["inception_score"].larger_is_better
    fid.prepare(data)
    assert json.loads(json.dumps(fid.protocol())) == {
        "features": "random",
        "features_key": fid.features.key,
        "reference": "test",
        "reference_images": 20,
    }


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    fid = FID(features=random_features(), reference="train", cache=str(tmp_path))
    fid.prepare(digits(train=20, test=20))
    with pytest.raises(Refused, match="at least two images"):
        fid.refuse_few(1)
    with pytest.raises(Refused, match="fewer than two train images"):
        fid.prepare(digits(train=1))
    with pytest.raises(Refused, match=r"9 images out among 10 splits.*splits=9"):
        InceptionScore(features=classifier(tmp_path), splits=10).refuse_few(9)
    with pytest.raises(Refused, match="0 splits"):
        InceptionScore(features=classifier(tmp_path), splits=0)


def test_features_without_classes_have_no_inception_score() -> None:
    with pytest.raises(Refused, match="inception_score_classifier"):
        InceptionScore(features=random_features(), splits=10).prepare(digits(train=20))


def test_an_image_that_was_not_scored_or_scored_twice_is_noticed(tmp_path: Path) -> None:
    fid = FID(features=random_features(), reference="train", cache=str(tmp_path))
    fid.prepare(digits(train=20))
    fid.reset(5)
    images = to_uint8(torch.zeros(4, 1, 8, 8))
    fid.update(fid.features(images), torch.arange(4))
    with pytest.raises(RuntimeError, match="expected 5 images and was given 4"):
        fid.compute()
