"""What every mode is: something that `sample.py` draws from a model, and leaves on the disk."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, Trainer
from rich import get_console

from ddpm.callbacks.progress import Live, Plain
from ddpm.errors import Refused
from ddpm.mode.scene import Scene, Tick
from ddpm.pictures import Figure, write_figure
from ddpm.sampling import SamplingModule
from ddpm.types import Images


@dataclass(frozen=True)
class Studio:
    """Where a mode draws: Scene's things, and

    trainer            makes the Trainer that says which device, which precision and which ranks
    out                the folder for the pictures; there is none before something is drawn
    png, npz           the files that are wanted
    trajectory         is it wanted too?
    protocol           what the images are a function of, beside their number
    """

    module: SamplingModule
    real: Callable[[int], Images]
    num_images: int
    batch_size: int
    trainer: Callable[[list[Callback]], Trainer]
    out: Path
    png: bool
    npz: bool
    trajectory: bool
    protocol: dict[str, Any]

    @contextmanager
    def scene(self, trainer: Trainer) -> Iterator[Scene]:
        """What figures are made from, on the Trainer's device and in its precision, without gradients."""
        self.module.to(trainer.strategy.root_device)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            yield Scene(self.module, self.real, self.num_images, self.batch_size, progress)


@contextmanager
def progress(total: int) -> Iterator[Tick]:
    """Shows how many of so many steps are done, each time the function it gives is called."""
    console, done = get_console(), 0
    display = (Live if console.is_terminal else Plain)(console, "step", total, 0)
    display.name("sampling")

    def tick() -> None:
        nonlocal done
        done += 1
        if display.due(done):
            display.show(done, "")

    try:
        yield tick
    finally:
        display.close()


class Mode(ABC):
    """A way of drawing. `uses` are the options of sample.py that not every mode has a use for."""

    uses: ClassVar[frozenset[str]]

    @abstractmethod
    def draw(self, studio: Studio) -> list[Path]:
        """Draw everything; where it is, on rank 0. What cannot be is refused before any network call."""


class Figured(Mode):
    """A mode that is one figure, made by rank 0 alone."""

    def draw(self, studio: Studio) -> list[Path]:
        trainer = studio.trainer([])
        if not trainer.is_global_zero:
            return []
        with studio.scene(trainer) as scene:
            figure = self.figure(scene)
        return write_figure(figure, studio.out)

    @abstractmethod
    def figure(self, scene: Scene) -> Figure:
        """The images and what they are: a function of the scene alone."""


def at_least_one(**counts: int) -> None:
    """Raises Refused for the first of these numbers of a mode that is not positive."""
    for name, count in counts.items():
        if count < 1:
            raise Refused(f"mode.{name} is {count}; it must be at least 1.")
