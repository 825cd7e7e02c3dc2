"""Ordinary sampling."""

import shutil
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import ClassVar

import torch
from lightning.pytorch import Trainer

from ddpm.callbacks.progress import Progress
from ddpm.data.stream import as_loader, index_batches
from ddpm.drawn import Drawn, Pictures, Shards, alone, finished, open_drawing, stream, write_npz
from ddpm.images import enlarged, grid, to_uint8, write_webp
from ddpm.meeting import meet
from ddpm.mode.base import Mode, Studio, at_least_one
from ddpm.mode.scene import Scene, joined
from ddpm.pictures import Figure, WriteImages, write_figure, write_grid
from ddpm.types import Images
from ddpm.whole import is_there

NPZ = "samples.npz"
OVERVIEW = "overview"  # a folder of its own: the evaluators of others take every picture beside the images for one


class Reverse(Mode):
    """Noise to images, on whatever the Trainer runs on; a grid of the first; with `trajectory` the x_t of the
    first few as a picture and an animation. Started again, it makes what is missing.

    grid     images in the grid at most
    rows     images of the trajectory at most
    columns  its stages
    frames   of its animation at most
    """

    uses: ClassVar = frozenset({"label", "png", "npz", "trajectory"})

    def __init__(self, *, grid: int, rows: int, columns: int, frames: int) -> None:
        at_least_one(grid=grid, rows=rows, columns=columns, frames=frames)
        self.grid, self.rows, self.columns, self.frames = grid, rows, columns, frames

    def draw(self, studio: Studio) -> list[Path]:
        drawn = (Pictures if studio.png else Shards)(studio.out, studio.num_images)
        trainer = studio.trainer([WriteImages(drawn), Progress()])
        with alone(studio.out, trainer.is_global_zero):
            self.fill(studio, drawn, trainer)
            return self.results(studio, drawn, trainer) if trainer.is_global_zero else []

    def fill(self, studio: Studio, drawn: Drawn, trainer: Trainer) -> None:
        """Make the images that are missing, on all ranks together."""
        open_drawing(drawn, studio.protocol | {"batch_size": studio.batch_size}, write=trainer.is_global_zero)
        if not finished(studio.out / NPZ, studio.num_images) or studio.png:
            mine = index_batches(studio.num_images, studio.batch_size, trainer.global_rank, trainer.world_size)
            meet()
            trainer.predict(studio.module, [as_loader(drawn.missing(mine))], return_predictions=False)

    def results(self, studio: Studio, drawn: Drawn, trainer: Trainer) -> list[Path]:
        """What rank 0 makes once all images are there."""
        paths = [studio.out, *self.gathered(studio, drawn)]
        if studio.trajectory:
            with studio.scene(trainer) as scene:
                paths += self.trajectory(scene, studio.out / OVERVIEW)
        return paths

    def gathered(self, studio: Studio, drawn: Drawn) -> list[Path]:
        """What is made of the single images once all are there, batch by batch."""
        npz, picture = studio.out / NPZ, studio.out / OVERVIEW / "grid.png"
        batches = index_batches(studio.num_images, studio.batch_size, 0, 1)
        if studio.png or not is_there(npz):
            few = chain.from_iterable(stream(drawn, batches))
            write_grid(torch.stack(list(islice(few, self.grid))), picture)
        if studio.npz:
            if not is_there(npz):
                write_npz(npz, (studio.num_images, *studio.module.shape), stream(drawn, batches))
            shutil.rmtree(studio.out / "shards", ignore_errors=True)
        return [picture] * is_there(picture) + [npz] * studio.npz

    def trajectory(self, scene: Scene, out: Path) -> list[Path]:
        """The x_t of the first few images, as a picture and as an animation."""
        visited = list(dict.fromkeys(scene.visited))  # a scheduler of diffusers may stay where it is
        stages, frames = spread(visited, self.columns), spread(visited, self.frames)
        found = way(scene, min(self.rows, scene.num_images), {*stages, *frames})
        images = torch.stack([found[t] for t in stages], dim=1)
        figure = Figure("trajectory", images, [""] * len(images), [f"$t = {t}$" for t in stages])
        pages = [enlarged(grid(to_uint8(found[t]), min(len(images), 4)), 256) for t in frames]
        paths = write_figure(figure, out)
        write_webp(pages, out / "trajectory.webp")
        return [*paths, out / "trajectory.webp"]


def way(scene: Scene, count: int, kept: set[int]) -> dict[int, Images]:
    """The x_t of the first so many images at these times, on the CPU."""
    start = scene.latent(scene.indices(count))
    found = joined(scene.walk([start]), lambda w: {w.step.s: w.step.x_s.cpu()} if w.step.s in kept else {})
    return {scene.visited[0]: start.x_t.cpu()} | found


def spread(visited: Sequence[int], most: int) -> list[int]:
    """At most so many of these times, evenly spread, with the first and the last."""
    return [visited[k] for k in torch.linspace(0, len(visited) - 1, min(most, len(visited))).round().long().tolist()]
