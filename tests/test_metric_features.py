"""Extractors that need no download, and the files they and the references are kept in."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_data import Few, digits
from test_metric import classifier, random_features
from torch.multiprocessing.spawn import start_processes

from ddpm.data.facts import Facts
from ddpm.data.image_data import TensorSet
from ddpm.errors import Refused
from ddpm.metric import FID, Pixels, RandomConv
from ddpm.metric.cache import cached
from ddpm.metric.source import evenly, identity


def noise(shape: tuple[int, int, int], count: int = 6) -> Few:
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *shape), generator=source, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    splits = {"train": TensorSet(images, labels), "test": TensorSet(images, labels)}
    return Few(Facts("noise", shape, 256, ("even", "odd"), "the same"), splits)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 20), (4, 5, 7), (2, 1, 1), (3, 70, 50)])
def test_every_shape_has_features(shape: tuple[int, int, int], tmp_path: Path) -> None:
    data = noise(shape)
    random, pixels = RandomConv(channels=[32, 64, 32], resolution=32, seed=0), Pixels(resolution=32)
    for features in (random, pixels, classifier(tmp_path)):
        features.prepare(data)
        said = features(data.pixels("train"))
        assert said.features.shape == (6, features.num_features)
        assert said.features.dtype == torch.float32
        assert said.features.isfinite().all()
        assert features.num_logits == (0 if said.logits is None else said.logits.shape[1])
        assert not said.features.requires_grad
        assert said.images is not None
        assert torch.equal(said.images, data.pixels("train"))


def test_random_features_are_a_function_of_their_options() -> None:
    data = digits(train=20)
    state = torch.get_rng_state()
    keys = []
    for seed, resolution in ((0, 32), (0, 32), (1, 32), (0, 8)):
        features = RandomConv(channels=[8, 4], resolution=resolution, seed=seed)
        features.prepare(data)
        keys.append(features.key)
    assert torch.equal(state, torch.get_rng_state())
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    with pytest.raises(Refused, match="positive"):
        RandomConv(channels=[], resolution=8, seed=0)


def test_features_are_float32_and_in_eval_mode_whatever_the_run_has_chosen(tmp_path: Path) -> None:
    data = digits(train=100)
    features = classifier(tmp_path)
    features.prepare(data)
    pixels = data.pixels("train")
    want = features(pixels).features
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(features.train()(pixels).features, want)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.allclose(features(pixels[:3]).features, want[:3], atol=1e-5)
    assert not any(module.training for module in features.modules())
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_a_classifier_of_digits_is_right_kept_and_draws_nothing(tmp_path: Path) -> None:
    data, state = digits(), torch.get_rng_state()
    features = classifier(tmp_path / "new" / "cache", images_seen=6_400)
    with torch.no_grad():
        features.prepare(data)
    assert features.accuracy is not None
    assert features.accuracy >= 0.97
    assert torch.equal(state, torch.get_rng_state())
    assert features.protocol()["features_accuracy"] == features.accuracy
    [kept] = (tmp_path / "new" / "cache").glob("*.pt")
    torch.save(torch.load(kept, weights_only=True) | {"accuracy": 0.5}, kept)
    again = classifier(tmp_path / "new" / "cache", images_seen=6_400)
    again.prepare(data)
    assert (again.key, again.accuracy) == (features.key, 0.5)  # it was read, not trained


def test_a_classifier_is_a_function_of_data_and_options(tmp_path: Path) -> None:
    keys = []
    for folder, train, images_seen in (("a", 100, 640), ("b", 100, 640), ("a", 90, 640), ("a", 100, 320)):
        features = classifier(tmp_path / folder, images_seen)
        features.prepare(digits(train=train))
        keys.append(features.key)
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    with pytest.raises(Refused, match="two channels or more"):
        classifier(tmp_path, images_seen=0)


def test_a_classifier_needs_labels(tmp_path: Path) -> None:
    data = digits(train=100, test=50)
    with pytest.raises(Refused, match=r"no labels.*metric=\[fid_random\] optimized_metric=fid_random"):
        classifier(tmp_path).prepare(data.without_labels())
    blank = Few(data.facts, data.without_labels().splits)
    with pytest.raises(Refused, match=r"no labels.*fid_random"):
        classifier(tmp_path).prepare(blank)
    features = classifier(tmp_path)
    features.prepare(Few(data.facts, data.splits | {"test": blank.load("test")}))
    assert features.accuracy is None


CORRUPT: list[Callable[[Path], object]] = [
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    lambda path: path.write_bytes(b"not what it was"),
    lambda path: np.save(path.open("wb"), np.array([print], dtype=object)),
    lambda path: np.savez(path.open("wb"), mu=np.zeros(3), sigma=np.zeros((3, 3)), n=9),
    lambda path: np.savez(path.open("wb"), mu=np.full(16, np.nan), sigma=np.zeros((16, 16)), n=9),
]


@pytest.mark.parametrize("corrupt", CORRUPT)
def test_a_corrupt_file_is_made_again_with_a_warning(
    corrupt: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = digits(train=60, test=10)

    def prepared() -> tuple[str, torch.Tensor]:
        features = classifier(tmp_path)
        features.prepare(data)
        fid = FID(features=features, reference="train", cache=str(tmp_path))
        fid.prepare(data)
        assert fid.statistics is not None
        return features.key, fid.statistics.sigma

    key, sigma = prepared()
    files = [*tmp_path.glob("*.pt"), *tmp_path.glob("*.npz")]
    assert len(files) == 2
    for path in files:
        corrupt(path)
    with caplog.at_level(logging.WARNING):
        again, sigma_again = prepared()
    assert (again, caplog.text.count("is corrupt")) == (key, 2)
    assert torch.equal(sigma_again, sigma)
    assert not list(tmp_path.glob("*.part"))


def one_of_several_jobs(rank: int, folder: str) -> None:
    """Reads what the first of them makes, slowly, after it has said that it does."""

    def make() -> str:
        with Path(folder, "made").open("a") as file:
            file.write(f"{rank}\n")
        time.sleep(0.3)
        return "whole"

    def write(text: str, path: Path) -> None:
        path.write_text(text[:2])
        time.sleep(0.2)
        path.write_text(text)

    told = cached(Path(folder, "new", "kept"), read=Path.read_text, make=make, write=write)
    Path(folder, f"{rank}.told").write_text(told)


def test_of_several_jobs_one_makes_a_file_and_all_read_it_whole(tmp_path: Path) -> None:
    start_processes(one_of_several_jobs, (str(tmp_path),), nprocs=4, start_method="fork")
    assert [path.read_text() for path in sorted(tmp_path.glob("*.told"))] == ["whole"] * 4
    assert len((tmp_path / "made").read_text().splitlines()) == 1
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) in (["kept"], ["kept", "kept.lock"])


def test_a_reference_is_read_where_it_is_kept(tmp_path: Path) -> None:
    """Under a key of data, split and features: the planted mean comes back for these alone."""
    data = digits(train=60, test=60)
    FID(features=random_features(), reference="train", cache=str(tmp_path)).prepare(data)
    [path] = tmp_path.glob("*.npz")
    np.savez(path, mu=np.full(16, 7.0), sigma=np.eye(16), n=60)

    def mean(data: Few, split: str, seed: int) -> float:
        fid = FID(features=RandomConv(channels=[8, 4], resolution=32, seed=seed), reference=split, cache=str(tmp_path))
        fid.prepare(data)
        assert fid.statistics is not None
        return float(fid.statistics.mu[0])

    assert mean(data, "train", 0) == 7.0
    others = [mean(data, "test", 0), mean(data, "train", 1), mean(digits(train=59), "train", 0)]
    darker = TensorSet(data.load("train").levels // 2, data.load("train").labels)
    edited = Few(data.facts, data.splits | {"train": darker})
    others += [mean(edited, "train", 0), mean(Few(replace(data.facts, name="x"), data.splits), "train", 0)]
    assert 7.0 not in others


def test_a_cache_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Refused, match=r"file cannot be written.*cache=FOLDER"):
        FID(features=random_features(), reference="train", cache=str(tmp_path / "file")).prepare(digits(train=9))


def test_identity_looks_at_few_images_evenly() -> None:
    assert evenly(10, 4).tolist() == [0, 2, 5, 7]
    assert evenly(3, 4).tolist() == [0, 1, 2]
    assert evenly(0, 4).tolist() == []
    assert identity(digits(train=60), "train") == identity(digits(train=60), "train")
