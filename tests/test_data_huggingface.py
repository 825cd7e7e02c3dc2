"""Data sets that the `datasets` library opens (an optional extra)."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data.decode import Decoder
from ddpm.data.huggingface import HuggingFace, Rows
from ddpm.errors import Refused
from ddpm.metric.source import probe


def arguments(path: Path | str | None, cache: Path, **changes: Any) -> dict[str, Any]:
    return {
        "path": None if path is None else str(path),
        "name": None,
        "train_split": "train",
        "test_split": None,
        "image_column": "image",
        "label_column": None,
        "root": str(cache),
        "download": False,
        "image_size": 4,
        "channels": 1,
        "unreadable_is_fatal": False,
        "batch_size": 4,
        "num_workers": 0,
        "flip": False,
        "seed": 0,
        **changes,
    }


def test_without_the_library_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Refused, match=r"pip install -e '\.\[huggingface\]'"):
        HuggingFace(**arguments(tmp_path, tmp_path))


def test_a_data_set_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"data.path=OWNER/NAME"):
        HuggingFace(**arguments(None, tmp_path))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Six training and two test images of one grey level each, labelled by a class, a word and a number."""
    datasets = pytest.importorskip("datasets")

    def split(levels: range) -> Any:
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "label": datasets.ClassLabel(names=["even", "odd"]),
                "word": datasets.Value("string"),
                "count": datasets.Value("int64"),
            }
        )
        rows = {
            "image": [Image.fromarray(np.full((5, 7), level, np.uint8)) for level in levels],
            "label": [level % 2 for level in levels],
            "word": ["abc"[level % 3] for level in levels],
            "count": [10 * (level // 4) for level in levels],
        }
        return datasets.Dataset.from_dict(rows, features=features)

    folder = tmp_path / "saved"
    datasets.DatasetDict({"train": split(range(6)), "test": split(range(6, 8))}).save_to_disk(folder)
    return folder


def levels(data: HuggingFace, split: str) -> list[int]:
    return data.load(split)[range(len(data.load(split)))][0][:, 0, 0, 0].tolist()


def test_a_saved_data_set_has_its_splits(saved: Path, tmp_path: Path) -> None:
    data = HuggingFace(**arguments(saved, tmp_path, test_split="test"))
    assert (levels(data, "train"), levels(data, "test")) == ([0, 1, 2, 3, 4, 5], [6, 7])
    assert data.facts.note.endswith("train trains and test tests.")
    batch = data.batch("train", [1, 2])
    assert batch.images.shape == (2, *data.facts.shape) == (2, 1, 4, 4)
    assert batch.labels.tolist() == [-1, -1]
    assert (data.facts.name, data.facts.class_names) == ("saved", ())


def test_without_a_test_split_it_is_the_training_images(saved: Path, tmp_path: Path) -> None:
    data = HuggingFace(**arguments(saved, tmp_path))
    assert levels(data, "test") == levels(data, "train")
    assert data.facts.note.endswith("train trains and is the test split.")


@pytest.mark.parametrize(
    ("column", "names", "train", "test"),
    [
        ("label", ("even", "odd"), [0, 1, 0, 1, 0, 1], [0, 1]),
        ("word", ("a", "b", "c"), [0, 1, 2, 0, 1, 2], [0, 1]),
        ("count", ("0", "10"), [0, 0, 0, 0, 1, 1], [1, 1]),
    ],
)
def test_labels_of_every_kind(
    column: str, names: tuple[str, ...], train: list[int], test: list[int], saved: Path, tmp_path: Path
) -> None:
    data = HuggingFace(**arguments(saved, tmp_path, test_split="test", label_column=column))
    assert data.facts.class_names == names
    assert data.batch("train", range(6)).labels.tolist() == train
    assert data.batch("test", range(2)).labels.tolist() == test


def test_a_folder_of_images_can_be_sliced(tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("images")  # the library takes the "test" in other paths for a split
    for i in range(4):
        Image.fromarray(np.full((5, 7), i, np.uint8)).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"broken")
    splits = {"train_split": "train[:3]", "test_split": "train[3:]"}
    data = HuggingFace(**arguments(folder, tmp_path_factory.mktemp("cache"), **splits, num_workers=2))
    data.prepare_data()
    assert len(data.load("train")) == 3
    assert levels(data, "test") == [3]
    with pytest.warns(UserWarning, match=r"image 2 of .*train\[:3\].* cannot be read"):
        assert levels(data, "train") == [0, 1, 0]


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 7 + seed % 2), dtype=np.uint8))


def written(kind: str, folder: Path, seeds: list[int]) -> str:
    """A data set of such noise, as `save_to_disk` leaves it or as files."""
    datasets = pytest.importorskip("datasets")
    images = [noise(seed) for seed in seeds]
    if kind == "saved":
        rows = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
        datasets.DatasetDict({"train": rows}).save_to_disk(folder)
    else:
        folder.mkdir()
        for number, image in enumerate(images):
            image.save(folder / f"{number:03d}.png")
    return str(folder)


def test_sizes_are_those_of_the_encoded_images_wherever_they_lie(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    noise(1).save(tmp_path / "x.png")
    cells = [{"bytes": b"12345", "path": "gone.png"}, None, {"bytes": None, "path": str(tmp_path / "x.png")}]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = datasets.Dataset.from_dict({"image": cells}, features=features)
    options = {"title": "x", "labels": torch.zeros(3), "decoder": Decoder(1, 4, 4), "unreadable_is_fatal": True}
    assert Rows(rows=rows, **options).sizes() == [5, -1, (tmp_path / "x.png").stat().st_size]
    assert Rows(rows=rows.select([2, 0]), **options).sizes() == [(tmp_path / "x.png").stat().st_size, 5]


@pytest.mark.parametrize("kind", ["saved", "files"])
def test_an_image_that_nobody_looks_into_tells_one_revision_from_another(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("revisions")
    before = [*range(100)]
    after = [*before[:2], 103, *before[3:]]  # 64 are looked into: 0, 1, 3, 4, 6, ...
    places = [written(kind, tmp_path / name, seeds) for name, seeds in (("a", before), ("b", after))]
    copy = shutil.copytree(tmp_path / "a", tmp_path / "copy")
    first, other, moved = (HuggingFace(**arguments(place, tmp_path / "cache")) for place in (*places, copy))
    assert probe(first, "train") == probe(other, "train")
    assert first.identity != other.identity
    assert first.identity == moved.identity
    moved.load_state_dict(first.state_dict())
    other.load_state_dict({"identity": "100 images"})  # as runs kept it once
    with pytest.raises(Refused, match="begun with other data"):
        other.load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "no/where"}, "there is no folder no/where: pass data.download=true"),
        ({"train_split": "valid"}, "cannot be opened"),
        ({"image_column": "picture"}, "has no column picture: set data.image_column to one of"),
        ({"label_column": "class"}, "has no column class: set data.label_column to one of"),
        ({"label_column": "image"}, "holds no classes but"),
        ({"image_column": "count"}, "holds no images"),
    ],
)
def test_what_is_not_there_is_refused(changes: dict[str, Any], message: str, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=message):
        HuggingFace(**arguments(saved, tmp_path) | changes).load("train")
