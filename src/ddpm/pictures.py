"""What drawing leaves on the disk: single images, grids, and figures whose rows and columns say what they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from ddpm.drawn import Drawn, numbered
from ddpm.images import enlarged, grid, to_pil, to_uint8, write_png
from ddpm.types import Images
from ddpm.whole import whole, write_csv

DOTS = 100  # a figure's pixels an inch
CELL = 84  # pixels that an image of a figure has at least, so that its label fits


@dataclass(frozen=True)
class Table:
    """Numbers beside a figure."""

    columns: Sequence[str]
    rows: Sequence[Sequence[int | float]]


@dataclass(frozen=True)
class Figure:
    """Images in rows and columns, with what each row and column is (`$...$` is set as a formula)."""

    name: str  # of its file, without the suffix
    images: Tensor  # (rows, columns, c, h, w) in [-1, 1]
    rows: Sequence[str]
    columns: Sequence[str]
    singles: Images | None = None  # (n, c, h, w): images that are also wanted one by one
    table: Table | None = None


class WriteImages(BasePredictionWriter):
    """Writes a batch as soon as it is done, on every rank."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__(write_interval="batch")
        self.drawn = drawn

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: Any, prediction: Images, batch_indices: Any, batch: Tensor, *_: Any
    ) -> None:
        if len(batch):
            self.drawn.write(batch.cpu(), to_uint8(prediction).cpu())


def write_grid(images: Tensor, path: Path) -> Path:
    """uint8 images as one picture, large enough to look at."""
    path.parent.mkdir(exist_ok=True)
    write_png(enlarged(grid(images), 512), path)
    return path


def write_figure(figure: Figure, out: Path) -> list[Path]:
    """The figure as a PNG, its table as a CSV, its single images in a folder, all of its name; where they are."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [plot(figure, out / f"{figure.name}.png")]
    if figure.table is not None:
        paths.append(write_table(figure.table, out / f"{figure.name}.csv"))
    if figure.singles is not None:
        paths.append(write_singles(figure.singles, out / figure.name))
    return paths


def write_singles(images: Images, folder: Path) -> Path:
    """Images one by one, as `NNNNNN.png`."""
    folder.mkdir(exist_ok=True)
    for index, picture in enumerate(to_uint8(images).cpu()):
        write_png(picture, numbered(folder, index))
    return folder


def write_table(table: Table, path: Path) -> Path:
    """As a CSV with a header."""
    return write_csv([table.columns, *table.rows], path)


def plot(figure: Figure, path: Path) -> Path:
    """The images, each pixel a square of whole pixels, between the labels of their columns and rows."""
    from matplotlib.figure import Figure as Sheet

    images = to_uint8(figure.images.flatten(0, 1)).cpu()
    cells = enlarged(images, CELL, size=images.shape[-1])
    height, width, gap = *cells.shape[-2:], max(2, cells.shape[-1] // 24)
    page = np.asarray(to_pil(grid(cells, len(figure.columns), gap)).convert("RGB"))
    sheet = Sheet(figsize=(page.shape[1] / DOTS, page.shape[0] / DOTS), dpi=DOTS)
    axes = sheet.add_axes((0, 0, 1, 1))
    axes.imshow(page, interpolation="none")
    text = 72 / DOTS * max(13.0, 0.13 * width)  # points; large images get large letters
    axes.set_xticks(centres(len(figure.columns), width, gap), figure.columns, fontsize=text)
    axes.set_yticks(centres(len(figure.rows), height, gap), figure.rows, fontsize=text)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False, pad=text / 2)
    axes.spines[:].set_visible(False)
    with whole(path) as part:
        sheet.savefig(part, format="png", bbox_inches="tight", pad_inches=0.1)
    return path


def centres(count: int, size: int, gap: int) -> list[float]:
    """The middles of so many cells of a grid, in pixels."""
    return [gap + k * (size + gap) + (size - 1) / 2 for k in range(count)]
