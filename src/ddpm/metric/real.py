"""The real images that a metric compares samples with: a split of the data, or a folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ddpm.data.image_folder import ImageFolder
from ddpm.drawn import PROTOCOL, numbered, pictures_of
from ddpm.errors import Refused
from ddpm.images import to_uint8
from ddpm.metric.features import Features
from ddpm.metric.source import Source, identity, probe

SPLITS = ("train", "test")
BATCH = 250


@dataclass(frozen=True)
class Real:
    """The images of a split, unflipped; `name` is what a protocol calls them."""

    data: Source
    split: str
    name: str

    def __len__(self) -> int:
        return len(self.data.load(self.split))

    @property
    def identity(self) -> str:
        return identity(self.data, self.split)

    @property
    def probe(self) -> str:
        """Tells the images from others, whatever the split is called."""
        return probe(self.data, self.split)

    def features(self, extractor: Features, chosen: Tensor | None = None) -> Iterator[Tensor]:
        """Batches (b, d) of float32 features, on the CPU, of all images or of those at these indices, in order."""
        for batch in self.data.batches(self.split, BATCH, chosen):
            yield extractor(to_uint8(batch.images)).features.cpu()


def real(data: Source, reference: str) -> Real:
    """What `reference` names: "train" or "test" of the data, or a folder of images (./test, if it is called so).

    Images of a folder that have another size than the data are resized and cropped to it.

    Raises:
        Refused: if it names neither, or fewer than two images.
    """
    found = _found(data, reference)
    if len(found) < 2:
        where = f"{found.data.facts.name} has fewer than two {found.split} images"
        raise Refused(f"{where}, and statistics need two: choose another reference of the metric")
    return found


def unseen(data: Source, reference: str) -> Real | None:
    """Real images that are not in the reference, to compare the samples' score with: the other split. None where
    both splits are the same images."""
    train, test = Real(data, "train", "train"), Real(data, "test", "test")
    if train.probe == test.probe:
        return None
    return train if reference == "test" else test


def spoken(reference: str) -> str:
    """What names of scores end in: nothing where the reference is the training split. What only lies under the name
    of a split is told from it."""
    if reference in SPLITS:
        return "" if reference == "train" else reference
    name = Path(reference).absolute().name.removesuffix(".npz")
    name += "_given" if name in SPLITS else ""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _found(data: Source, reference: str) -> Real:
    if reference in SPLITS:
        return Real(data, reference, reference)
    if not Path(reference).is_dir():
        raise Refused(
            f"there is no reference {reference}: choose train, test or a folder of images "
            "(for fid and fd_dinov2 also an .npz with mu and sigma)"
        )
    folder = folder_of(Path(reference), data.facts.shape)
    name = folder.facts.name  # which lists it, and refuses an empty one
    return Real(folder, "train", f"{name}-{identity(folder, 'train')}")


class _Drawing(ImageFolder):
    """The images of a drawing: those of its overview are none of them."""

    @cached_property
    def files(self) -> list[str]:
        return [numbered(Path(), index).name for index in range(pictures_of(self.folder).count)]


def folder_of(root: Path, shape: tuple[int, int, int]) -> ImageFolder:
    """All images below a folder, of a drawing of sample.py the numbered ones, as its training split, resized and
    cropped to a shape (c, h, w)."""
    kind = _Drawing if (root / PROTOCOL).is_file() else ImageFolder
    return kind(
        root=str(root),
        image_size=shape[1:],
        channels=shape[0],
        held_out=0,
        unreadable_is_fatal=True,
        batch_size=BATCH,
        num_workers=0,
        flip=False,
        seed=0,
    )
