"""Nearest neighbours: brute force's, whatever the order, the batches and the blocks; copies are noticed."""

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from metric_data import Few, digits
from PIL import Image
from test_metric import random_features, seen
from test_metric_features import CORRUPT
from torch import Tensor

from ddpm.data.facts import Facts
from ddpm.data.image_data import TensorSet
from ddpm.errors import Refused
from ddpm.images import write_png
from ddpm.metric import FID, Nearest, Pixels, Scores
from ddpm.metric.neighbours import Neighbours, nearest, none, together
from ddpm.nearest import Layout, write


def metric_at(cache: Path, **changes: Any) -> Nearest:
    usual = {"features": Pixels(resolution=32), "held_out": "test", "quantile": 0.025, "at_most": 1000}
    return Nearest(**(usual | {"neighbours": 3, "shown": 4, "cache": str(cache)} | changes))


def prepared(data: Few, cache: Path, **changes: Any) -> Nearest:
    metric = metric_at(cache, **changes)
    metric.prepare(data)
    return metric


@pytest.fixture(scope="module")
def data() -> Few:
    return digits(train=300, test=120)


def apart(one: Tensor, other: Tensor) -> Tensor:
    """Root mean squared difference of each image of one set to each of the other, in grey levels."""
    levels = (one.double().flatten(1)[:, None] - other.double().flatten(1)) ** 2
    return levels.mean(2).sqrt()


@pytest.mark.parametrize("at_most", [1000, 200])
def test_scores_and_neighbours_are_those_of_brute_force(
    at_most: int, data: Few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddpm.metric.neighbours._BLOCK", 70)
    chosen = torch.arange(min(at_most, 300)) * 300 // min(at_most, 300)
    train, test = data.pixels("train"), data.pixels("test")
    samples = torch.cat((test[:50].flip(-1), train[chosen[7:9]], test[50:60].flip(-2)))
    samples[53:, :, :2] ^= 9
    metric = prepared(data, tmp_path, at_most=at_most)
    scores = seen(metric, samples, list(torch.randperm(62, generator=torch.Generator().manual_seed(0)).split(9)))
    near, held_out = apart(samples, train[chosen]), apart(test, train[chosen]).min(1).values
    distance = near.min(1).values
    share = (distance < np.quantile(held_out, 0.025)).double().mean()
    medians = np.median(distance), np.median(held_out)
    names = ("share_nearer_pixels", "nearest_pixels", "nearest_held_out_pixels")
    assert 0 < share < 1
    assert scores == pytest.approx(dict(zip(names, (float(share), *medians), strict=True)), rel=1e-5)
    for shown, numbers in ((metric.first, torch.arange(4)), (metric.closest, distance.argsort(stable=True)[:4])):
        assert torch.equal(shown.number, numbers)
        assert torch.equal(shown.images, samples[numbers])
        assert torch.allclose(shown.distance.double(), near[numbers].sort(1).values[:, :3], rtol=1e-5)
        assert torch.allclose(
            apart(samples[numbers], train).gather(1, shown.indices), shown.distance.double(), rtol=1e-5
        )
        assert torch.equal(metric.training_images(shown.indices.flatten()), train[shown.indices.flatten()])
    assert {50, 51} == set(metric.closest.number[:2].tolist())
    assert metric.closest.distance[:2, 0].tolist() == [0, 0]


def test_copies_score_1_held_out_images_the_quantile_and_noise_0(data: Few, tmp_path: Path) -> None:
    metric = prepared(data, tmp_path, quantile=0.1)
    noise = torch.randint(0, 256, (50, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for samples, share in ((data.pixels("train"), 1), (data.pixels("test"), 0.1), (noise, 0)):
        scores = seen(metric, samples, list(torch.arange(len(samples)).split(100)))
        assert scores["share_nearer_pixels"] == pytest.approx(share, abs=1e-9)


def test_far_from_0_the_neighbours_are_right_too() -> None:
    """Where squared distances are small beside the squares of the features."""
    source = torch.Generator().manual_seed(0)
    among = 100 + torch.randn(500, 8, generator=source)
    copies = among[torch.tensor([3, 77, 499])]
    distance, rows = nearest(copies, among.numpy(), 2)
    assert (distance[:, 0].tolist(), rows[:, 0].tolist()) == ([0, 0, 0], [3, 77, 499])
    assert (distance[:, 1] > 0.1).all()


def test_a_rank_that_has_drawn_nothing_adds_nothing() -> None:
    empty, number = none((1, 8, 8), 3), torch.tensor([0, 5])
    mine = Neighbours(number, torch.full((2, 1, 8, 8), 7, dtype=torch.uint8), torch.ones(2, 3), torch.ones(2, 3).long())
    assert all(not column.any() for column in together(empty, number))
    assert all(torch.equal(*pair) for pair in zip(together(mine, number), mine, strict=True))


def test_without_held_out_images_it_is_refused_and_a_folder_of_some_will_do(data: Few, tmp_path: Path) -> None:
    same = Few(data.facts, {"train": data.load("train"), "test": data.load("train")})
    with pytest.raises(Refused, match=r"digits holds none out: .*metric\.share_nearer_pixels\.held_out=FOLDER"):
        prepared(same, tmp_path)
    (tmp_path / "unseen").mkdir()
    for i, image in enumerate(data.pixels("test")):
        write_png(image, tmp_path / "unseen" / f"{i:03d}.png")
    metric = prepared(same, tmp_path, held_out=str(tmp_path / "unseen"))
    assert metric.name == "share_nearer_pixels_unseen"
    assert np.array_equal(metric.of_held_out, prepared(data, tmp_path).of_held_out)
    assert str(tmp_path) not in metric.protocol()["held_out"]


def test_training_images_that_are_not_looked_at_give_a_warning(
    data: Few, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared(data, tmp_path)
    assert not caplog.records
    metric = prepared(data, tmp_path, at_most=100)
    assert "share_nearer_pixels looks at 100 of 300 training images" in caplog.text
    assert metric.protocol() == {
        "features": "pixels",
        "features_key": "pixels-1x8x8",
        "quantile": 0.025,
        "held_out": "test",
        "training_images": 100,
        "held_out_images": 100,
    }


def test_impossible_numbers_are_refused(data: Few, tmp_path: Path) -> None:
    for changes, words in (
        ({"quantile": 0.0}, "quantile"),
        ({"neighbours": 0}, "neighbours=0"),
        ({"shown": 0}, "shown=0"),
        ({"at_most": 2}, "at_most=2"),
    ):
        with pytest.raises(Refused, match=words):
            metric_at(tmp_path, **changes)
    with pytest.raises(Refused, match="cannot show 3 of 2 training images"):
        prepared(digits(train=2), tmp_path)
    with pytest.raises(Refused, match="positive resolution"):
        Pixels(resolution=0)


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3], [0, 1, 2, 3, 3], [0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 7]])
def test_an_image_that_was_not_seen_or_seen_twice_is_noticed(numbers: list[int], data: Few, tmp_path: Path) -> None:
    metric = prepared(data, tmp_path)
    metric.reset(5)
    metric.update(metric.features(data.pixels("test")[: len(numbers)]), torch.tensor(numbers))
    with pytest.raises(RuntimeError, match="expected 5 images, each once"):
        metric.compute()


def test_held_out_distances_are_measured_once(data: Few, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And again for other images, or where the file is corrupt."""
    want = prepared(data, tmp_path).of_held_out
    [path] = tmp_path.glob("nearest-test-pixels-*.npy")
    np.save(path, np.full_like(want, 7))
    assert (prepared(data, tmp_path).of_held_out == 7).all()
    darker = Few(data.facts, data.splits | {"test": TensorSet(data.load("test").levels // 2, data.load("test").labels)})
    for changed in (darker, digits(train=299, test=120)):
        assert not (prepared(changed, tmp_path).of_held_out == 7).any()
    for corrupt in CORRUPT[:4]:
        corrupt(path)
        with caplog.at_level(logging.WARNING):
            assert np.array_equal(prepared(data, tmp_path).of_held_out, want)
        assert "is corrupt" in caplog.text
        caplog.clear()


def test_on_other_features_it_shares_their_pass_and_their_file(data: Few, tmp_path: Path) -> None:
    by_features = metric_at(tmp_path, features=random_features())
    fid = FID(features=random_features(), reference="train", cache=str(tmp_path))
    scores = Scores([fid, by_features])
    scores.prepare(data)
    assert by_features.features is fid.features
    [kept] = tmp_path.glob("features-train-random-*.npy")
    assert fid.statistics is not None
    assert np.allclose(np.load(kept).mean(0), fid.statistics.mu, rtol=1e-5)
    assert by_features.name == "share_nearer_random"


@pytest.mark.parametrize(("shape", "changes"), [((1, 8, 8), {}), ((3, 40, 24), {"neighbours": 1, "shown": 9})])
def test_the_picture_shows_each_sample_beside_its_neighbours(
    shape: tuple[int, int, int], changes: dict[str, int], tmp_path: Path
) -> None:
    source = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 17, (40, *shape), generator=source, dtype=torch.uint8)
    halves = {"train": TensorSet(levels[:30], torch.zeros(30)), "test": TensorSet(levels[30:], torch.zeros(10))}
    data = Few(Facts("noise", shape, 17, (), ""), halves)
    metric = prepared(data, tmp_path, **changes)
    samples = data.pixels("test")[:6]
    samples[4] = data.pixels("train")[11]
    seen(metric, samples, [torch.arange(6)])
    png, table = write(metric, tmp_path / "deeper" / "bits.and-pieces")
    assert (png.name, table.name) == ("bits.and-pieces.png", "bits.and-pieces.csv")
    page = np.asarray(Image.open(png).convert("RGB"))
    rows, factor = len(metric.first.number), -(-84 // shape[2])
    layout = Layout(rows, metric.neighbours, shape[1] * factor, shape[2] * factor)
    assert page.shape == (*layout.size[::-1], 3)
    train = data.pixels("train")
    for panel, shown in enumerate((metric.first, metric.closest)):
        for row in range(rows):
            for column, picture in enumerate((shown.images[row], *train[shown.indices[row]])):
                top, left = layout.top(row), layout.left(panel, column)
                part = page[top : top + layout.height : factor, left : left + layout.width : factor]
                assert np.abs(part.astype(int) - picture.expand(3, -1, -1).permute(1, 2, 0).numpy()).max() <= 1
    red = (page == (0xC0, 0x20, 0x20)).all(2)
    assert red.any()  # the copy
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    copy = [line for line in lines if line["sample"] == "4" and line["rank"] == "1"]
    assert [(line["training image"], float(line["distance"])) for line in copy] == [("11", 0)]
    assert len(lines) == len({*metric.first.number.tolist(), *metric.closest.number.tolist()}) * metric.neighbours
