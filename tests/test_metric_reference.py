"""What samples are compared with: a split, a folder or a file; and what real images would score."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from metric_data import Few, digits
from test_metric import kid, random_features, seen
from test_metric_dinov2 import Shallow, weights

from ddpm.data.image_data import TensorSet
from ddpm.drawn import Pictures, open_drawing
from ddpm.errors import Refused
from ddpm.images import write_png
from ddpm.metric import FID, FrechetDistance, reference
from ddpm.metric.real import real, spoken
from ddpm.pictures import write_grid


def fid(cache: Path, reference: str) -> FID:
    return FID(features=random_features(), reference=reference, cache=str(cache))


def sigma(metric: FID) -> torch.Tensor:
    assert metric.statistics is not None
    return metric.statistics.sigma


def test_a_folder_of_images_is_a_reference(tmp_path: Path) -> None:
    """The same images give the same statistics, wherever they come from; other images give another key."""
    data = digits(train=60, test=30)
    folder, cache = tmp_path / "some photos", tmp_path / "cache"
    (folder / "deeper").mkdir(parents=True)
    for i, image in enumerate(data.pixels("train")):
        write_png(image, folder / ("deeper" if i % 2 else "") / f"{i:03d}.png")
    of_folder, of_split = fid(cache, str(folder)), fid(cache, "train")
    for metric in (of_folder, of_split):
        metric.prepare(data)
    assert torch.allclose(sigma(of_folder), sigma(of_split), rtol=1e-9, atol=1e-12)
    assert of_folder.name == "fid_random_some_photos"
    named = of_folder.protocol()["reference"]
    assert named.startswith("some photos-")
    assert str(tmp_path) not in named
    (folder / "000.png").unlink()
    of_folder.prepare(data)
    assert of_folder.protocol()["reference"] != named
    assert of_folder.protocol()["reference_images"] == 59
    of_kid = kid(cache, reference=str(folder))
    of_kid.prepare(data)
    assert of_kid.of_real.shape == (59, 16)


def test_only_the_splits_themselves_have_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [spoken(split) for split in ("train", "test")] == ["", "test"]
    for path in ("/data/train", "./train", "train/", "train.npz"):
        assert spoken(path) == "train_given"
    assert spoken("./test") == spoken("/some/where/test.npz") == "test_given"
    assert spoken("/data/some photos") == "some_photos"
    monkeypatch.chdir(tmp_path)
    assert spoken(".") == spoken(str(tmp_path)) != ""


def test_a_changed_file_of_a_folder_is_another_reference_also_where_nobody_looks_into_it(tmp_path: Path) -> None:
    data, noise = digits(train=2), torch.randint(256, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    for i in range(100):
        write_png(torch.full((1, 8, 8), i, dtype=torch.uint8), tmp_path / f"{i:02d}.png")
    before = real(data, str(tmp_path))
    write_png(noise.to(torch.uint8), tmp_path / "02.png")  # 64 are looked into: 0, 1, 3, 4, 6, ...
    after = real(data, str(tmp_path))
    assert after.probe == before.probe
    assert after.identity != before.identity
    assert after.identity == real(data, str(tmp_path)).identity


def test_of_a_drawing_the_numbered_images_are_the_reference(tmp_path: Path) -> None:
    """Not its overview, nor a grid beside them as there once was."""
    data, drawn = digits(train=12), Pictures(tmp_path, 12)
    pixels = data.pixels("train")
    open_drawing(drawn, {"seed": 0}, write=True)
    drawn.write(torch.arange(12), pixels)
    for path in (tmp_path / "overview/grid.png", tmp_path / "grid.png"):
        write_grid(pixels, path)
    images = real(data, str(tmp_path))
    assert len(images) == 12
    assert torch.equal(images.data.load("train")[range(12)][0], pixels)
    (tmp_path / "000003.png").write_bytes(b"")
    with pytest.raises(Refused, match="is not finished"):
        real(data, str(tmp_path))


def test_statistics_of_another_code_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits(train=60, test=30)
    assert mean(fid(tmp_path, "train"), data) != 7
    plant(tmp_path, 16)
    assert mean(fid(tmp_path, "train"), data) == 7
    monkeypatch.setattr(reference, "_CODE", reference._CODE + 1)
    assert mean(fid(tmp_path, "train"), data) != 7


def mean(metric: FrechetDistance, data: Few) -> float:
    """The first number of its reference's mean."""
    metric.prepare(data)
    assert metric.statistics is not None
    return float(metric.statistics.mu[0])


def plant(cache: Path, width: int) -> None:
    """Other statistics, of mean 7, in the one file of a cache."""
    [path] = cache.glob("*.npz")
    np.savez(path, mu=np.full(width, 7.0), sigma=np.eye(width), n=60)


def resized(data: Few, change: Callable[[torch.Tensor], torch.Tensor]) -> Few:
    """The data with other images, of all that is in a batch of them."""
    splits = {name: TensorSet(change(images.levels), images.labels) for name, images in data.splits.items()}
    return replace(data, facts=replace(data.facts, shape=tuple(splits["train"].levels.shape[1:])), splits=splits)


def test_a_reference_is_that_of_the_images_at_their_resolution(tmp_path: Path) -> None:
    """Also where all bytes are the same in other rows, and where a folder is shrunk to the data's size."""
    data, cache = digits(train=60, test=30), tmp_path / "of_split"
    assert mean(fid(cache, "train"), data) != 7
    plant(cache, 16)
    assert mean(fid(cache, "train"), data) == 7
    assert mean(fid(cache, "train"), resized(data, lambda levels: levels.reshape(-1, 1, 4, 16))) != 7
    halved = resized(data, lambda levels: levels[..., ::2, ::2])
    assert mean(fid(cache, "train"), halved) != 7
    for i, image in enumerate(data.pixels("train")):
        (tmp_path / "photos").mkdir(exist_ok=True)
        write_png(image, tmp_path / "photos" / f"{i:02d}.png")
    cache = tmp_path / "of_folder"
    assert mean(fid(cache, str(tmp_path / "photos")), data) != 7
    plant(cache, 16)
    assert mean(fid(cache, str(tmp_path / "photos")), data) == 7
    assert mean(fid(cache, str(tmp_path / "photos")), halved) != 7


def test_a_reference_is_that_of_the_weights_whatever_their_file_is_called(tmp_path: Path) -> None:
    data, state, cache = digits(train=4, test=2), weights(depth=1, width=64), tmp_path / "cache"

    def mean_by(name: str) -> float:
        torch.save(state, tmp_path / name)
        features = Shallow(weights=str(tmp_path / name))
        return mean(FrechetDistance(features=features, reference="train", cache=str(cache)), data)

    assert mean_by("one.pth") != 7
    plant(cache, 64)
    assert mean_by("copy.pth") == 7
    state["blocks.0.mlp.fc1.weight"][5, 7] += 1e-3
    assert mean_by("one.pth") != 7


def test_images_of_a_folder_come_at_the_datas_size(tmp_path: Path) -> None:
    for i in range(3):
        write_png(torch.full((3, 20, 16), 100 + i, dtype=torch.uint8), tmp_path / f"{i}.png")
    images = real(digits(train=2), str(tmp_path))
    levels, _ = images.data.load("train")[[0, 2]]
    assert levels.shape == (2, 1, 8, 8)
    assert levels[:, 0, 0, 0].tolist() == [100, 102]


def test_folders_and_files_without_what_is_needed_are_refused(tmp_path: Path) -> None:
    data = digits(train=9)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match="no images in"):
        fid(tmp_path, str(tmp_path / "empty")).prepare(data)
    write_png(data.pixels("train")[0], tmp_path / "empty" / "0.png")
    with pytest.raises(Refused, match="empty has fewer than two train images"):
        fid(tmp_path, str(tmp_path / "empty")).prepare(data)
    with pytest.raises(Refused, match=r"no reference val: choose train, test or a folder.*\.npz"):
        fid(tmp_path, "val").prepare(data)


def test_an_existing_npz_is_a_reference(tmp_path: Path) -> None:
    """With mu and sigma alone, as pytorch-fid writes it; or one of ours."""
    data = digits(train=60, test=30)
    of_split = fid(tmp_path, "train")
    of_split.prepare(data)
    [ours] = tmp_path.glob("*.npz")
    features = of_split.features(data.pixels("train")).features.double().numpy()
    np.savez_compressed(tmp_path / "theirs.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    pixels, order = data.pixels("test"), [torch.arange(30)]
    want = seen(of_split, pixels, order)["fid_random"]
    for path, count in ((ours, 60), (tmp_path / "theirs.npz", None)):
        given = fid(tmp_path, str(path))
        given.prepare(data)
        assert seen(given, pixels, order)[given.name] == pytest.approx(want, rel=1e-9)
        assert given.protocol()["reference_images"] == count
        assert given.protocol()["reference"].startswith(path.name)
    assert given.name == "fid_random_theirs"


FILES: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: None, "FileNotFoundError"),
    (lambda path: path.write_bytes(b"no zip"), "ValueError|UnpicklingError"),
    (lambda path: np.savez(path, mu=np.zeros(16)), "sigma"),
    (lambda path: np.savez(path, mu=np.zeros(9), sigma=np.eye(9)), r"\(9,\) .* not 16 features"),
    (lambda path: np.savez(path, mu=np.zeros(16), sigma=np.full((16, 16), np.inf)), "not finite"),
    (lambda path: np.savez(path, mu=np.array([print] * 16), sigma=np.eye(16)), "allow_pickle=False"),
]


@pytest.mark.parametrize(("make", "words"), FILES)
def test_another_npz_is_refused_and_nothing_of_it_is_executed(
    make: Callable[[Path], Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "statistics.npz"
    make(path)
    with pytest.raises(Refused, match=rf"statistics.npz holds no mu and sigma of 16 random features .*({words})"):
        fid(tmp_path, str(path)).prepare(digits(train=9))


@pytest.mark.parametrize(("reference", "other"), [("train", "test"), ("test", "train")])
def test_few_images_give_a_warning_with_what_real_ones_get(
    reference: str, other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those are not of the reference; it is said once, and computed once."""
    data = digits(train=60, test=40)
    metric = fid(tmp_path, reference)
    metric.prepare(data)
    shown = data.pixels(other)[torch.arange(30) * len(data.load(other)) // 30]
    want = seen(metric, shown, [torch.arange(30)])[metric.name]
    metric.reset(30)
    assert [f"{want:.4g}" in record.getMessage() for record in caplog.records] == [True]
    assert metric.of_unseen(30) == pytest.approx(want, rel=1e-9)
    [kept] = tmp_path.glob("unseen-*.json")
    kept.write_text('{"distance": 7.5}')
    caplog.clear()
    again = fid(tmp_path, reference)
    again.prepare(data)
    again.reset(30)
    assert "get 7.5" in caplog.text
    kept.write_text("{")
    assert again.of_unseen(30) == pytest.approx(want, rel=1e-9)
    assert "is corrupt" in caplog.text


def test_a_slow_reference_tells_how_far_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    for silence, told in ((30, []), (-1, ["250 of 600", "500 of 600", "600 of 600"])):
        monkeypatch.setattr(reference, "SILENCE", silence)
        caplog.clear()
        fid(tmp_path / str(silence), "train").prepare(digits(train=600))
        lines = [record.getMessage() for record in caplog.records if "left" in record.getMessage()]
        assert [line.split(" images, ")[0] for line in lines] == [f"features of {done}" for done in told]
    assert lines[-1].endswith("600 images, 0:00:00 left")


def test_without_so_many_real_images_the_warning_names_no_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metric = fid(tmp_path, "train")
    metric.prepare(digits(train=60, test=29))
    metric.reset(30)
    assert "fid_random of 30 images is not comparable" in caplog.text
    assert "get" not in caplog.text
    caplog.clear()
    metric.reset(50_000)
    assert not caplog.records


def test_a_test_split_that_is_the_training_split_is_not_held_out(tmp_path: Path) -> None:
    data = digits(train=60)
    same = replace(data, splits={"train": data.load("train"), "test": data.load("train")})
    metric = fid(tmp_path, "train")
    metric.prepare(same)
    assert metric.of_unseen(30) is None
