"""Training counted in optimiser steps: one live line in a terminal, a few plain lines in a file or a pipe."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sized
from datetime import timedelta
from time import monotonic
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich import get_console
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text
from torch import Tensor

LIVE_SECONDS = 0.5  # between two looks at the loss in a terminal
PLAIN_SECONDS = 600.0  # a plain line at the latest after this time, or after a tenth of the way


class Display(ABC):
    """Where progress is shown: so many of `total` steps, or images, are done."""

    def __init__(self, console: Console, unit: str, total: int | None, completed: int) -> None:
        self.console, self.unit, self.total = console, unit, total
        self.begun, self.begun_at = monotonic(), completed
        self.shown, self.shown_at = self.begun, completed

    def due(self, completed: int) -> bool:
        """Is it time to show something new?"""
        done = completed == self.total
        return completed > self.shown_at and (done or self.is_time(completed, monotonic() - self.shown))

    def show(self, completed: int, note: str) -> None:
        """Shows it, with a note of the loss."""
        self.draw(completed, note)
        self.shown, self.shown_at = monotonic(), completed

    @abstractmethod
    def is_time(self, completed: int, seconds: float) -> bool:
        """After `seconds` without news?"""

    @abstractmethod
    def draw(self, completed: int, note: str) -> None: ...

    @abstractmethod
    def name(self, activity: str) -> None:
        """What is going on now."""

    @abstractmethod
    def close(self) -> None:
        """The last thing that is called."""


class Live(Display):
    """One line that changes in place."""

    def __init__(self, console: Console, unit: str, total: int | None, completed: int) -> None:
        super().__init__(console, unit, total, completed)
        self.bar = Bar(*_columns(unit), console=console, refresh_per_second=4)
        self.task = self.bar.add_task("", total=total, completed=completed, note="")
        self.bar.start()

    def is_time(self, completed: int, seconds: float) -> bool:
        return seconds > LIVE_SECONDS

    def draw(self, completed: int, note: str) -> None:
        self.bar.update(self.task, completed=completed, note=note)

    def name(self, activity: str) -> None:
        self.bar.update(self.task, description=activity)

    def close(self) -> None:
        self.bar.stop()


class Plain(Display):
    """A line each tenth of the way, or each ten minutes."""

    def is_time(self, completed: int, seconds: float) -> bool:
        if self.total is not None and completed * 10 // self.total > self.shown_at * 10 // self.total:
            return True
        return seconds > PLAIN_SECONDS

    def draw(self, completed: int, note: str) -> None:
        elapsed = monotonic() - self.begun
        speed = (completed - self.begun_at) / elapsed
        parts = [
            f"{self.unit} {completed}",
            _clock(elapsed) + " gone",
            f"{speed:.3g} {_plural(self.unit)}/s",
            note,
        ]
        if self.total is not None:
            parts[0] += f" of {self.total} ({100 * completed // self.total} %)"
            parts.insert(2, _clock((self.total - completed) / speed) + " left")
        self.console.print(", ".join(part for part in parts if part), highlight=False, soft_wrap=True)

    def name(self, activity: str) -> None:
        """Says nothing: a log of validations is the run's log."""

    def close(self) -> None:
        """Nothing is left open."""


class Progress(ProgressBar):
    """Steps of `trainer.max_steps`, time gone and left, speed and loss; images where a trainer predicts, of all
    ranks, which are taken to be as far as this one.

    The loss shown is the mean since it was shown last. It is summed on the device and read only then: a bar
    must not make the host wait for the device in every step, as `self.log(..., prog_bar=True)` does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._display: Display | None = None
        self._loss: Tensor | float = 0.0  # summed over
        self._count = 0  # so many batches
        self._seen = self._share = self._total = 0  # images that this rank has done, has to do, and all have to do

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Above the live line."""
        if self._enabled:
            get_console().print(*args, **kwargs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._open("training", "step", total, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._display is None:
            return
        self._loss = self._loss + outputs["loss"].detach() * trainer.accumulate_grad_batches
        self._count += 1
        if self._display.due(trainer.global_step):
            self._display.show(trainer.global_step, f"loss {float(self._loss) / self._count:.4g}")
            self._loss, self._count = 0.0, 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._display is not None:
            self._display.name("validating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._display is not None:
            self._display.name("training")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen, self._share = 0, sum(len(batch) for batch in every_batch(trainer))
        share = torch.tensor(self._share, device=trainer.strategy.root_device)
        self._total = int(trainer.strategy.reduce(share, reduce_op="sum"))
        self._open("images", "image", self._total, 0)
        if self._total and not self._share:
            self.print(f"{self._total} images are left to other ranks than this one, which waits for them.")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._seen += len(batch)
        done = self._total * self._seen // max(1, self._share)
        if self._display is not None and self._display.due(done):
            self._display.show(done, "")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _open(self, activity: str, unit: str, total: int | None, completed: int) -> None:
        if self._enabled:
            console = get_console()
            self._display = (Live if console.is_terminal else Plain)(console, unit, total, completed)
            self._display.name(activity)

    def _close(self) -> None:
        if self._display is not None:
            self._display.close()
            self._display = None


class _Speed(ProgressColumn):
    """Steps a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g} {_plural(self.unit)}/s", style="cyan")


def _columns(unit: str) -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        TextColumn(unit),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        _Speed(unit),
        TextColumn("{task.fields[note]}"),
    )


def every_batch(trainer: Trainer) -> Iterator[Sized]:
    """The batches of indices that this rank will walk over, of samples and of images of the data."""
    for loader in trainer.predict_dataloaders or ():
        yield from loader.dataset


def _plural(unit: str) -> str:
    return f"{unit}s"


def _clock(seconds: float) -> str:
    """0:01:05"""
    return str(timedelta(seconds=round(seconds)))
