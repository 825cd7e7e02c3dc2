"""Images of the user's own."""

from pathlib import Path

from PIL import ExifTags, Image
from rich import get_console
from torch import Tensor

from ddpm.data.decode import FORMATS, Decoder, UnreadableError
from ddpm.data.facts import Facts
from ddpm.errors import Refused
from ddpm.images import from_levels
from ddpm.types import Images


def read_image(name: str, facts: Facts) -> Images:
    """The image in a file as the model's data are: (1, c, h, w) in [-1, 1], on its grey levels.

    Of one of another size, the centre is taken and resized, as data=image_folder does; a line says so.

    Raises Refused for a file that is missing or no image.
    """
    channels, height, width = facts.shape
    levels, size = decoded(name, Decoder(channels, height, width))
    if size != (width, height):
        note = f"{name} is {size[0]} x {size[1]}: its centre, resized to {width} x {height}, is taken."
        get_console().print(note, soft_wrap=True, highlight=False, markup=False)
    last = facts.num_levels - 1
    return from_levels((levels.float() / 255 * last).round(), last + 1).unsqueeze(0)


def read_mask(name: str, height: int, width: int) -> Tensor:
    """Where a picture of this size is white rather than black: bool (height, width).

    Raises Refused for a file that is missing, no image, or of another size.
    """
    levels, size = decoded(name, Decoder(1, height, width))
    if size != (width, height):
        raise Refused(f"the mask {name} is {size[0]} x {size[1]}, but the model's images are {width} x {height}.")
    return levels[0] > 127


def decoded(name: str, decoder: Decoder) -> tuple[Tensor, tuple[int, int]]:
    """The grey levels of a file, uint8 (c, h, w), and its own size. Raises Refused for what is no image."""
    path = Path(name)
    if not path.is_file():
        raise Refused(f"there is no image at {name}; check its path.")
    try:
        return decoder(path), size_of(path)
    except (UnreadableError, OSError) as fault:
        raise Refused(f"{name} cannot be read as an image ({fault}).") from fault


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of an image file as a viewer shows it."""
    with Image.open(path, formats=FORMATS) as image:
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
        return image.size[::-1] if is_turned else image.size
