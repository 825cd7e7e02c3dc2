"""CIFAR-10 (Krizhevsky 2009)."""

from pathlib import Path

import torch
from torchvision import datasets

from ddpm.data.downloaded import Downloaded
from ddpm.data.facts import Facts
from ddpm.data.image_data import ImageSet, TensorSet

_SOURCE = datasets.CIFAR10
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR10(Downloaded):
    """60,000 photographs, 32 x 32, in `root`/cifar-10-batches-py. Arguments: see Downloaded.

    The files are pickles: they are opened only after their md5 was found to be the official one.
    """

    @property
    def facts(self) -> Facts:
        return Facts(
            name="cifar10",
            shape=(3, 32, 32),
            num_levels=256,
            class_names=_CLASSES,
            note="All 50,000 official training images train; the 10,000 official test images are monitored.",
        )

    def checksums(self) -> dict[Path, str]:
        meta = [_SOURCE.meta["filename"], _SOURCE.meta["md5"]]
        files = [*_SOURCE.train_list, *_SOURCE.test_list, meta]
        return {self.folder / _SOURCE.base_folder / name: md5 for name, md5 in files}

    def fetch(self) -> None:
        _SOURCE(self.folder, download=True)

    def read(self, split: str) -> ImageSet:
        self.prepare_data()
        stored = _SOURCE(self.folder, train=split == "train")
        levels = torch.from_numpy(stored.data).permute(0, 3, 1, 2).contiguous()
        return TensorSet(levels, torch.tensor(stored.targets))
