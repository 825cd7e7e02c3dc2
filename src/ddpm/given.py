"""Samples that are there already, drawn by sample.py or by anybody, to be scored without drawing them again."""

import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm import strangers, texts
from ddpm.drawn import PROTOCOL, pictures_of
from ddpm.errors import Refused
from ddpm.images import from_levels
from ddpm.metric.cache import fingerprint
from ddpm.metric.real import folder_of
from ddpm.metric.source import evenly
from ddpm.sampling import SamplingModule
from ddpm.types import Images
from ddpm.whole import is_there

NPZ = "samples.npz"
PROBED = 64


@dataclass(frozen=True)
class Given:
    """Images 0, ..., count - 1: what is read at indices (b,) is uint8 (b, c, h, w)."""

    count: int
    read: Callable[[Tensor], Tensor]
    origin: Mapping[str, Any]  # what drawing.json tells of them; nothing without one

    def protocol(self) -> dict[str, Any]:
        """What tells them from others, in plain values."""
        return dict(self.origin) | {"images_key": fingerprint({"": self.read(evenly(self.count, PROBED))}, self.count)}


class Replay(SamplingModule):
    """Gives images that are there in the place of those that a model would draw."""

    def __init__(self, model: SamplingModule, images: Given) -> None:
        super().__init__(model.diffusion, model.sampler, shape=model.shape, seed=model.seed, label=None, guidance=1.0)
        self.images = images

    def predict_step(self, indices: Tensor, batch_idx: int = 0) -> Images:
        return from_levels(self.images.read(indices.cpu()), 256).to(self.device)


def given(name: str, shape: tuple[int, int, int], count: int, model: str) -> Given:
    """`count` images of a shape (c, h, w): those of a folder of sample.py; of an .npz with arr_0, uint8 (n, h, w, c);
    or of any other folder of images, in the order of their names, resized and cropped.

    Raises Refused if there are no such images, too few of them, or they were drawn from another model than that one.
    """
    found = _found(Path(name), shape)
    if found.count < count:
        raise Refused(f"{name} holds {found.count} images, not num_images={count}; ask for no more than there are.")
    if (there := tuple(found.read(torch.arange(1)).shape[1:])) != shape:
        raise Refused(f"the images of {name} have the shape {there}, but those of the model's data {shape}.")
    if found.origin.get("checkpoint", model) != model:
        raise Refused(f"{name} was drawn from another model; name its checkpoint (or weights=raw, if it was drawn so).")
    return found


def _found(path: Path, shape: tuple[int, int, int]) -> Given:
    if path.suffix == ".npz":
        array, origin = mapped(path), _origin(path.parent) if path.name == NPZ else {}
        return Given(len(array), lambda at: torch.from_numpy(array[at.numpy()]).permute(0, 3, 1, 2), origin)
    if not path.is_dir():
        raise Refused(f"images={path} is neither a folder of images nor an .npz; check its path.")
    if not (path / PROTOCOL).is_file():
        images = folder_of(path, shape).load("train")
        return Given(len(images), lambda at: images[at][0], {})
    if is_there(path / NPZ):
        return _found(path / NPZ, shape)
    origin, drawn = _origin(path), pictures_of(path)
    return Given(drawn.count, drawn.read, origin)


def _origin(folder: Path) -> dict[str, Any]:
    """What a drawing.json tells, if there is one."""
    file = folder / PROTOCOL
    if not file.is_file():
        return {}
    try:
        return dict(texts.told(file))
    except (TypeError, ValueError) as fault:
        raise Refused(
            f"{file} tells nothing of a drawing ({fault}); delete it, if these are images of others."
        ) from fault


def mapped(path: Path) -> NDArray[np.uint8]:
    """The arr_0 of an .npz, of which no more is in memory than is looked at."""
    try:
        shape, kind = strangers.numbers(path)["arr_0"]
        if len(shape) != 4 or kind != np.uint8:
            raise ValueError(f"its arr_0 is {kind} of shape {shape}, not uint8 of (n, h, w, c)")
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo("arr_0.npy")
            _, _, is_fortran, begin = strangers.header(archive, entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("it is compressed, which numpy.savez would not have done")
        return np.memmap(path, kind, "r", _start(path, entry) + begin, shape, order="F" if is_fortran else "C")
    except (KeyError, OSError, ValueError) as fault:
        raise Refused(f"{path} gives no images: {fault}.") from fault


def _start(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where in an archive the content of an entry begins: behind its own header, name and extra field."""
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
        return int(file.tell() + name + extra)
