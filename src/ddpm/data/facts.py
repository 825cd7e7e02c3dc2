"""What is known of a data set without opening it."""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from torch import Tensor

from ddpm.errors import Refused

_MOST = 2**25  # numbers of an image: 3 x 3344 x 3344


@dataclass(frozen=True)
class Facts:
    """The facts of a data set; a checkpoint embeds them, so that it opens without the data."""

    name: str
    shape: tuple[int, int, int]  # channels, height, width
    num_levels: int  # grey levels of the exact data (17, 256)
    class_names: tuple[str, ...]  # empty where the images carry no labels
    note: str  # one sentence on the splits: what "train" and "test" are

    def __post_init__(self) -> None:
        """Raises Refused for images of no size or of one beyond all use, and for no grey levels."""
        if min(self.shape) < 1 or math.prod(self.shape) > _MOST:
            raise Refused(f"images of shape {self.shape} are not possible: at most {_MOST:,} numbers, and at least 1.")
        if not 2 <= self.num_levels <= 2**16:
            raise Refused(f"images of {self.num_levels} grey levels are not possible: from 2 to {2**16}.")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, fit for torch.load(weights_only=True)."""
        return asdict(self) | {"shape": list(self.shape), "class_names": list(self.class_names)}

    @classmethod
    def from_dict(cls, facts: Any) -> "Facts":
        """What `as_dict` gave. Raises ValueError for anything else, and for values that are impossible."""
        return TypeAdapter(cls).validate_python(facts)


class Batch(NamedTuple):
    """What a loader hands to the modules."""

    images: Tensor  # (b, c, h, w) float32 in [-1, 1]
    labels: Tensor  # (b,) int64; -1 where the data has none
    number: Tensor  # (b,) int64: in training the count of images seen before this one, else its index
