"""Noise in the shape of CIFAR-10: as many bytes through the same data path, without a download."""

import torch

from benchmarks.speed.levels import SHAPE, levels
from ddpm.data.facts import Facts
from ddpm.data.image_data import ImageData, ImageSet, TensorSet


class Synthetic(ImageData):
    """10,000 images of noise to train on and 1,000 to test on, of 10 classes. Arguments: see ImageData."""

    @property
    def facts(self) -> Facts:
        classes = tuple(str(k) for k in range(10))
        return Facts("synthetic", SHAPE, 256, classes, "Noise of the size of CIFAR-10.")

    def read(self, split: str) -> ImageSet:
        images = levels(split)
        return TensorSet(images, torch.randint(10, (len(images),), generator=torch.Generator().manual_seed(0)))
