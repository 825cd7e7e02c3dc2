"""Samples beside their nearest training images, for eyes to judge which are copies.

Which are nearest, and how near, `metric.Nearest` has found out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm.images import enlarged, to_pil
from ddpm.metric import Nearest
from ddpm.metric.neighbours import Neighbours
from ddpm.pictures import CELL, DOTS, Table, write_table
from ddpm.whole import whole

COLUMNS = ("sample", "rank", "training image", "distance")
NEARER = "#c02020"


@dataclass(frozen=True)
class Layout:
    """Where things are on the page, in pixels: two panels, in each a sample a row and k neighbours to its right."""

    rows: int
    neighbours: int
    height: int  # of an image
    width: int

    @property
    def text(self) -> float:
        """The size of letters: larger for large images."""
        return max(13.0, 0.13 * self.width)

    @property
    def gap(self) -> int:
        return max(4, self.width // 20)

    @property
    def panel(self) -> int:
        """The width of a panel with the space to the next one; its titles must fit too."""
        return max((self.neighbours + 1) * (self.width + self.gap), round(30 * self.text)) + 8 * self.gap

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the page."""
        return 2 * self.panel - 3 * self.gap, self.top(self.rows) + round(3 * self.text)

    def left(self, panel: int, column: int) -> int:
        """Of an image; column 0 is the sample, a little apart."""
        return self.gap + panel * self.panel + column * (self.width + self.gap) + (3 * self.gap if column else 0)

    def top(self, row: int) -> int:
        """Of the images of a row, below the titles; under each row is a line of numbers."""
        return round(4 * self.text) + row * (self.height + round(2 * self.text))

    def page(self, panels: list[Tensor]) -> Any:
        """The images, uint8 (rows, 1 + k, c, height, width) a panel, on white: (height, width, 3)."""
        page = np.full((*self.size[::-1], 3), 255, dtype=np.uint8)
        for p, row, column in np.ndindex(len(panels), self.rows, self.neighbours + 1):
            top, left = self.top(row), self.left(p, column)
            picture = np.asarray(to_pil(panels[p][row, column]).convert("RGB"))
            page[top : top + self.height, left : left + self.width] = picture
        return page


def write(metric: Nearest, stem: Path) -> list[Path]:
    """The picture as `stem`.png and all its numbers as `stem`.csv, after `metric.compute`."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    rows = list(dict.fromkeys(chain(numbers(metric.first), numbers(metric.closest))))
    picture = plot(metric, stem.with_name(f"{stem.name}.png"))
    return [picture, write_table(Table(COLUMNS, rows), stem.with_name(f"{stem.name}.csv"))]


def numbers(shown: Neighbours) -> Iterator[tuple[int, int, int, float]]:
    """A line for each sample and each of its neighbours."""
    for number, distances, indices in zip(shown.number.tolist(), shown.distance, shown.indices, strict=True):
        for rank, (distance, index) in enumerate(zip(distances.tolist(), indices.tolist(), strict=True), 1):
            yield number, rank, index, distance


def plot(metric: Nearest, path: Path) -> Path:
    """The first samples, and those of all samples that are nearest to training images."""
    from matplotlib.figure import Figure

    panels = {"the first samples": metric.first, "the nearest of all samples": metric.closest}
    images = [beside(metric, shown) for shown in panels.values()]
    layout = Layout(len(images[0]), metric.neighbours, *images[0].shape[-2:])
    width, height = layout.size
    sheet = Figure(figsize=(width / DOTS, height / DOTS), dpi=DOTS)
    axes = sheet.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(layout.page(images), interpolation="none", aspect="auto")
    write_text = partial(axes.text, fontsize=layout.text * 72 / DOTS, va="top")
    for panel, (title, shown) in enumerate(panels.items()):
        label(write_text, layout, panel, title, shown, metric.threshold)
    write_text(layout.gap, layout.top(layout.rows), legend(metric))
    with whole(path) as part:
        sheet.savefig(part, format="png")
    return path


def beside(metric: Nearest, shown: Neighbours) -> Tensor:
    """Each sample and its neighbours, large enough to see: uint8 (n, 1 + k, c, h, w)."""
    training = metric.training_images(shown.indices.flatten())
    cells = torch.cat((shown.images.unsqueeze(1), training.reshape(*shown.indices.shape, *training.shape[1:])), 1)
    large = enlarged(cells.flatten(0, 1), CELL, size=cells.shape[-1])
    return large.reshape(*cells.shape[:2], *large.shape[1:])


def label(
    write_text: Callable[..., Any], layout: Layout, panel: int, title: str, shown: Neighbours, threshold: float
) -> None:
    """The title of a panel, the number of each sample, and the distance of each neighbour."""
    write_text(layout.left(panel, 0), layout.top(0) - 3.3 * layout.text, title, weight="bold")
    for column, head in enumerate(("sample", "nearest training images, at their distances")):
        write_text(layout.left(panel, column), layout.top(0) - 1.7 * layout.text, head)
    for row, (number, distances) in enumerate(zip(shown.number.tolist(), shown.distance.tolist(), strict=True)):
        below = layout.top(row) + layout.height + 0.2 * layout.text
        for column, text in enumerate((f"{number}", *(f"{distance:#.3g}".rstrip(".") for distance in distances))):
            is_nearer = column > 0 and distances[column - 1] < threshold
            colour = {"color": NEARER, "weight": "bold"} if is_nearer else {}
            write_text(layout.left(panel, column) + layout.width / 2, below, text, ha="center", **colour)


def legend(metric: Nearest) -> str:
    """What the distances are to be compared with."""
    told = metric.features.name, 100 * metric.quantile, metric.threshold, np.median(metric.of_held_out)
    return (
        "Distances: {}. Of real images that were not trained on, {:.3g} % are\n"
        "nearer to a training image than {:.3g} (red), and half are nearer than {:.3g}."
    ).format(*told)
