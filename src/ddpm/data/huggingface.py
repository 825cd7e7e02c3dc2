"""Data sets of the Hugging Face hub, or in the formats of its `datasets` library (an optional extra)."""

import hashlib
import importlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ddpm.data.decode import Decoder
from ddpm.data.decoded import DecodedData, DecodedSet
from ddpm.data.facts import Facts
from ddpm.data.image_data import ImageSet
from ddpm.data.image_folder import file_size
from ddpm.errors import Refused


def library() -> ModuleType:
    """The `datasets` library.

    Raises:
        Refused: if it is not installed.
    """
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise Refused("data=huggingface needs an extra: pip install -e '.[huggingface]'") from error


class Rows(DecodedSet):
    """The images of a column, read when they are asked for."""

    def __init__(self, *, rows: Any, title: str, labels: Tensor, decoder: Decoder, unreadable_is_fatal: bool):
        super().__init__(labels=labels, decoder=decoder, unreadable_is_fatal=unreadable_is_fatal)
        self._rows, self._title = rows, title  # one column, the images, still encoded

    def name(self, index: int) -> str:
        return f"image {index} of {self._title}"

    def source(self, index: int) -> Path | bytes:
        (image,) = self._rows[index].values()
        if image is None:
            return b""  # an empty cell is an unreadable image
        return image["bytes"] if image["bytes"] is not None else Path(image["path"])

    def sizes(self) -> list[int]:
        """Bytes of each image, in their order, of which none is read; -1 where there is none."""
        arrow = importlib.import_module("pyarrow.compute")  # on which `datasets` stands
        [images] = self._rows.with_format("arrow")[:].columns
        inside, paths = (arrow.struct_field(images, name) for name in ("bytes", "path"))
        told = zip(arrow.binary_length(inside).to_pylist(), paths.to_pylist(), strict=True)
        return [_size(length, path) for length, path in told]


def _size(length: int | None, path: str | None) -> int:
    """Of an image in a row of that length, or else in a file."""
    if length is not None:
        return length
    return -1 if path is None else file_size(Path(path))


class HuggingFace(DecodedData):
    """The images in one column of a data set that the `datasets` library can open.

    Args:
        path: a repository (owner/name), or a folder that holds one or was written by `save_to_disk`.
        name: the configuration of the repository, or None for its only one.
        train_split, test_split: what the library calls them (a slice such as train[:90%] is one);
            without a test_split, it is the training images.
        image_column: of encoded images.
        label_column: of classes, or None; rows without one, or with one that training lacks, get -1.
        download: fetch the repository, or open what was fetched before; without it, path must be a folder.

    The other arguments are DecodedData's; `root` keeps downloads, None is the library's own cache.

    Raises:
        Refused: if path is not given, a value is impossible, or the library is not installed.
    """

    def __init__(
        self,
        *,
        path: str | None,
        name: str | None,
        train_split: str,
        test_split: str | None,
        image_column: str,
        label_column: str | None,
        root: str | None,
        download: bool,
        image_size: int | Sequence[int],
        channels: int,
        unreadable_is_fatal: bool,
        batch_size: int,
        num_workers: int,
        flip: bool,
        seed: int,
    ) -> None:
        super().__init__(
            root=root,
            image_size=image_size,
            channels=channels,
            unreadable_is_fatal=unreadable_is_fatal,
            batch_size=batch_size,
            num_workers=num_workers,
            flip=flip,
            seed=seed,
        )
        if path is None:
            raise Refused("data=huggingface needs a data set: pass data.path=OWNER/NAME or data.path=FOLDER")
        self.datasets = library()
        self.path, self.name, self.download = path, name, download
        self.splits = {"train": train_split, "test": test_split or train_split}
        self.image_column, self.label_column = image_column, label_column

    @property
    def facts(self) -> Facts:
        train, test = self.splits["train"], self.splits["test"]
        split = f"{train} trains and {test} tests" if test != train else f"{train} trains and is the test split"
        return Facts(
            name=Path(self.path).name,
            shape=self.decoder.shape,
            num_levels=256,
            class_names=tuple(str(value) for value in self._classes),
            note=f"Resized and cropped, 8 bits a channel; {split}.",
        )

    @cached_property
    def identity(self) -> str:
        """Of the images' sizes in bytes, as a folder's. The library's own fingerprint of a data set would not do: of
        one that it reads from a folder it is another after each copy, with which a run could then not go on."""
        told = hashlib.sha256()
        for split in ("train", "test"):
            images = self.load(split)
            assert isinstance(images, Rows)
            told.update(repr(images.sizes()).encode())
        return f"{super().identity}, of sizes {told.hexdigest()[:16]}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["identity"] != super().identity:  # of an older run, which knows only how many there are
            super().load_state_dict(state_dict)

    def prepare_data(self) -> None:
        """Download, if that was asked for, before all ranks open the data (Lightning's hook)."""
        self.load("train")

    def read(self, split: str) -> ImageSet:
        rows = self._train_rows if self.splits[split] == self.splits["train"] else self._rows(split)
        return Rows(
            rows=self._images(rows),
            title=f"{self.path} ({self.splits[split]})",
            labels=self._labels(rows),
            decoder=self.decoder,
            unreadable_is_fatal=self.unreadable_is_fatal,
        )

    @cached_property
    def _train_rows(self) -> Any:
        return self._rows("train")

    def _rows(self, split: str) -> Any:
        if not (self.download or Path(self.path).is_dir()):
            raise Refused(f"there is no folder {self.path}: pass data.download=true to have it from the hub")
        try:
            return self._open(self.splits[split])
        except (OSError, ValueError, KeyError, RuntimeError, self.datasets.exceptions.DatasetsError) as error:
            raise Refused(f"{self.path} ({self.splits[split]}) cannot be opened: {error}") from error

    def _open(self, split: str) -> Any:
        folder = Path(self.path)
        if (folder / "dataset_dict.json").is_file():
            return self.datasets.load_from_disk(self.path)[split]
        if (folder / "state.json").is_file():
            return self.datasets.load_from_disk(self.path)
        return self.datasets.load_dataset(self.path, self.name, split=split, cache_dir=self.root)

    def _images(self, rows: Any) -> Any:
        self._check_column(rows, self.image_column, "image_column")
        try:
            images = rows.select_columns([self.image_column])
            return images.cast_column(self.image_column, self.datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:  # what Arrow's own derive from
            raise Refused(f"data.image_column={self.image_column} holds no images: {error}") from error

    @cached_property
    def _classes(self) -> list[Any]:
        """What the classes of the training rows are called, in the order of their labels."""
        if self.label_column is None:
            return []
        self._check_column(self._train_rows, self.label_column, "label_column")
        feature = self._train_rows.features[self.label_column]
        if isinstance(feature, self.datasets.ClassLabel):
            return list(feature.names)
        if not isinstance(feature, self.datasets.Value):
            raise Refused(f"data.label_column={self.label_column} holds no classes but {feature}")
        return sorted(value for value in self._train_rows.unique(self.label_column) if value is not None)

    def _labels(self, rows: Any) -> Tensor:
        if self.label_column is None:
            return torch.full((len(rows),), -1)
        self._check_column(rows, self.label_column, "label_column")
        named = isinstance(rows.features[self.label_column], self.datasets.ClassLabel)
        values = range(len(self._classes)) if named else self._classes
        label = {value: i for i, value in enumerate(values)}
        return torch.tensor([label.get(value, -1) for value in rows[self.label_column][:]])

    def _check_column(self, rows: Any, column: str, key: str) -> None:
        if column not in rows.column_names:
            raise Refused(f"{self.path} has no column {column}: set data.{key} to one of {rows.column_names}")
