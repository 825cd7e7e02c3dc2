"""scikit-learn's handwritten digits: real images without a download."""

import torch
from sklearn.datasets import load_digits

from ddpm.data.facts import Facts
from ddpm.data.image_data import ImageData, ImageSet, TensorSet
from ddpm.data.stream import split_indices

_HELD_OUT = 297  # of 1,797


class Digits(ImageData):
    """1,797 grey digits of 8 x 8 pixels with 17 levels (Alpaydin and Kaynak 1998), 1,500 of them to train on.

    They are part of scikit-learn: `root` is not used. Arguments: see ImageData.
    """

    @property
    def facts(self) -> Facts:
        return Facts(
            name="digits",
            shape=(1, 8, 8),
            num_levels=17,
            class_names=tuple(str(digit) for digit in range(10)),
            note="1,500 of scikit-learn's 1,797 digits train and 297 test, by a fixed permutation.",
        )

    def read(self, split: str) -> ImageSet:
        pixels, classes = load_digits(return_X_y=True)
        train, test = split_indices(len(pixels), _HELD_OUT)
        chosen = train if split == "train" else test
        levels = torch.from_numpy(pixels).to(torch.uint8).reshape(-1, 1, 8, 8)
        return TensorSet(levels[chosen], torch.from_numpy(classes).long()[chosen])
