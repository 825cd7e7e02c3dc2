"""Between the network's [-1, 1] and the pixels that people and files know."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ddpm.whole import whole


def from_levels(levels: Tensor, num_levels: int) -> Tensor:
    """Grey levels {0, ..., num_levels - 1} to [-1, 1], as Ho et al. (2020), Sec. 3.3; float32."""
    return levels.float() * (2 / (num_levels - 1)) - 1


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to {0, ..., 255}, clipped and rounded to nearest."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid(images: Tensor, columns: int | None = None, padding: int = 2) -> Tensor:
    """uint8 images (b, c, h, w) as one picture (c, H, W), in rows, on white."""
    b, c, h, w = images.shape
    columns = columns or math.ceil(math.sqrt(b))
    rows = math.ceil(b / columns)
    page = images.new_full((c, rows * (h + padding) + padding, columns * (w + padding) + padding), 255)
    for i, image in enumerate(images):
        top, left = (padding + (i // columns) * (h + padding), padding + (i % columns) * (w + padding))
        page[:, top : top + h, left : left + w] = image
    return page


def enlarged(picture: Tensor, least: int = 256, size: int | None = None) -> Tensor:
    """Pictures (..., h, w) with each pixel repeated until their `size`, the longer side if left out, is at least so
    many."""
    factor = max(1, math.ceil(least / (size or max(picture.shape[-2:]))))
    return picture.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def to_pil(picture: Tensor) -> Image.Image:
    """uint8 (c, h, w) with 1, 2 (grey, alpha), 3 or 4 channels as a PIL image."""
    array = picture.cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def write_png(picture: Tensor, path: Path) -> None:
    """Write uint8 (c, h, w) as a PNG, atomically: a killed job leaves no half file."""
    with whole(path) as part:
        to_pil(picture).save(part, format="PNG")


def write_webp(pictures: list[Tensor], path: Path, milliseconds: int = 60) -> None:
    """Write uint8 pictures (c, h, w), atomically, as an animation that stays on its last picture for two seconds."""
    frames = [to_pil(picture).convert("RGB") for picture in pictures]
    durations = [milliseconds] * (len(frames) - 1) + [2000]
    with whole(path) as part:
        frames[0].save(
            part,
            format="WEBP",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
            lossless=True,
        )
