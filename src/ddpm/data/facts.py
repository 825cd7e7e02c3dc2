"""What is known of a data set without opening it."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Facts:
    """The facts of a data set; a checkpoint embeds them, so that it opens without the data."""

    name: str
    shape: tuple[int, int, int]  # channels, height, width
    num_levels: int | None  # grey levels of the exact data (17, 256); None where they are not discrete
    class_names: tuple[str, ...]  # empty where the images carry no labels
    note: str  # one sentence on the splits: what "train" and "test" are

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, fit for torch.load(weights_only=True)."""
        return asdict(self) | {"shape": list(self.shape), "class_names": list(self.class_names)}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> "Facts":
        return cls(**facts | {"shape": tuple(facts["shape"]), "class_names": tuple(facts["class_names"])})


class Batch(NamedTuple):
    """What a loader hands to the modules."""

    images: Tensor  # (b, c, h, w) float32 in [-1, 1]
    labels: Tensor  # (b,) int64; -1 where the data has none
    number: Tensor  # (b,) int64: in training the count of images seen before this one, else its index
