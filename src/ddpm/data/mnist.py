"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017)."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import download_url

from ddpm.data.downloaded import Downloaded
from ddpm.data.facts import Facts
from ddpm.data.image_data import ImageSet, TensorSet

_PREFIX = {"train": "train", "test": "t10k"}


def idx(path: Path) -> Tensor:
    """The uint8 array of a gzipped IDX file: magic number (0, 0, 8, d), d big-endian sizes, bytes."""
    content = gzip.decompress(path.read_bytes())
    sizes = np.frombuffer(content, ">i4", count=content[3], offset=4).tolist()
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).copy()).reshape(sizes)


class MNIST(Downloaded):
    """70,000 handwritten digits, 28 x 28, in `root`/MNIST/raw. Arguments: see Downloaded.

    Only the .gz files count: theirs are the official checksums, and they are read as they are.
    """

    source: type[datasets.MNIST] = datasets.MNIST
    name = "mnist"
    class_names = tuple(str(digit) for digit in range(10))

    @property
    def facts(self) -> Facts:
        return Facts(
            name=self.name,
            shape=(1, 28, 28),
            num_levels=256,
            class_names=self.class_names,
            note="All 60,000 official training images train; the 10,000 official test images are monitored.",
        )

    @property
    def _raw(self) -> Path:
        return self.folder / self.source.__name__ / "raw"

    def checksums(self) -> dict[Path, str]:
        return {self._raw / name: md5 for name, md5 in self.source.resources}

    def fetch(self) -> None:
        for path, md5 in self.checksums().items():
            self._fetch_file(path, md5)

    def _fetch_file(self, path: Path, md5: str) -> None:
        failures = []
        for mirror in self.source.mirrors:
            try:
                download_url(mirror + path.name, str(path.parent), path.name, md5)
                return
            except (OSError, RuntimeError) as error:
                failures.append(f"{mirror}: {error}")
        raise RuntimeError("; ".join(failures))

    def read(self, split: str) -> ImageSet:
        self.prepare_data()
        prefix = _PREFIX[split]
        levels = idx(self._raw / f"{prefix}-images-idx3-ubyte.gz")
        labels = idx(self._raw / f"{prefix}-labels-idx1-ubyte.gz")
        return TensorSet(levels.unsqueeze(1), labels.long())


class FashionMNIST(MNIST):
    """70,000 pictures of clothes, 28 x 28, in `root`/FashionMNIST/raw. Arguments: see Downloaded."""

    source = datasets.FashionMNIST
    name = "fashion_mnist"
    class_names = tuple(datasets.FashionMNIST.classes)
