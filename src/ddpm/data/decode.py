"""From an image file of any kind to the 8-bit levels of one shape."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ddpm.errors import Refused

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA")  # none that starts a program (EPS)
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
)
_MODES = {1: "L", 3: "RGB"}


class UnreadableError(Exception):
    """A file that is no image of a kind we read; its message is the reason."""


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """An image size as users write it, 64 or [48, 64], as (height, width).

    Raises:
        Refused: if it is neither one positive number nor two.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise Refused(f"data.image_size={image_size} must be one positive number, or [height, width]")
    return sides


def shown(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it: upright, opaque (on white) and with 8 bits a channel.

    CMYK and other colour spaces go to RGB by Pillow's arithmetic, without colour profiles.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UnreadableError("it holds floating-point numbers, whose black and white are unknown")
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA"))
    return image


def _from_16_bit(image: Image.Image) -> Image.Image:
    """{0, ..., 65535} rounded to {0, ..., 255}; Pillow's own conversion clips at 255."""
    levels = np.asarray(image).astype(np.int64).clip(0, 65535)
    if isinstance(transparent := image.info.get("transparency"), int):
        levels[levels == transparent] = 65535
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))


def fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """The centre of the image, as large as fits, at this size.

    The shorter side (of the two, in proportion) is resized to its length and the longer one cropped, in
    one pass of Pillow's Lanczos filter, which is antialiased; an image that has the size is left alone.
    """
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (left, top, image.width - left, image.height - top)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


@dataclass(frozen=True)
class Decoder:
    """Reads images as levels (channels, height, width)."""

    channels: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.channels not in _MODES:
            raise Refused(f"data.channels={self.channels} must be 1 (grey) or 3 (colour)")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, self.height, self.width)

    def __call__(self, source: Path | bytes) -> Tensor:
        """The image in a file, or in the bytes of one: uint8 (channels, height, width) in {0, ..., 255}.

        Images beyond Pillow's first bound on decompression bombs (89 million pixels) are unreadable.

        Raises:
            UnreadableError: with the reason.
        """
        try:
            # Not by its name: Pillow would map a plain TIFF into memory, and gets rotated ones wrong there.
            with (
                BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file,
                warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            ):
                return self._levels(shown(Image.open(file, formats=FORMATS)))
        except UnreadableError:
            raise
        except Exception as error:  # decoders raise whatever a broken file leads them to
            raise UnreadableError(f"{type(error).__name__}: {error}") from error

    def _levels(self, image: Image.Image) -> Tensor:
        picture = fitted(image.convert(_MODES[self.channels]), self.height, self.width)
        array = np.array(picture).reshape(self.height, self.width, self.channels)
        return torch.from_numpy(array).permute(2, 0, 1).contiguous()
