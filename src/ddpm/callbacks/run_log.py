"""The run's own log: metrics.csv in its folder, one number a line, and the picture of its losses.

    step,time,name,value
    99,2026-01-31T12:00:00.000+00:00,train/loss,0.03125

A line a number, so that a metric which turns up late needs no new column and nothing is rewritten while a
run goes on; `pandas.read_csv(path).pivot_table(index="step", columns="name", values="value")` makes a wide
table of it. Values are written in full precision: two equal runs differ in their times alone.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from ddpm.checkpoint_io import synchronise
from ddpm.whole import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADER = ("step", "time", "name", "value")
FILE = "metrics.csv"
History = dict[str, dict[int, float]]  # name -> step -> value


class RunLog(Logger):
    """Appends to `folder`/metrics.csv, on rank 0.

    Each line is handed to the operating system when it is logged, so it outlives the process however that
    ends; with each checkpoint and at the end the file is synchronised with the disk. An existing file is
    continued, never deleted. Lightning's `epoch` is left out: training has one, endless.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._mended = False

    @property
    def path(self) -> Path:
        return self.folder / FILE

    @property
    def name(self) -> str:
        return "run_log"

    @property
    def version(self) -> None:
        return None

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One line a metric. Numbers without a step belong to no place in the run: step -1."""
        self._mend()
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        at = -1 if step is None else step
        lines = [(at, now, name, repr(float(value))) for name, value in metrics.items() if name != "epoch"]
        with self.path.open("a", newline="") as file:
            file.write(_text(lines))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved config lies beside the log."""

    @rank_zero_only
    def cut(self, size: int) -> None:
        """Drops what was logged after the file had so many bytes, when a run is resumed from there."""
        if self.path.exists():
            with self.path.open("ab") as file:
                file.truncate(min(size, self.path.stat().st_size))

    @rank_zero_only
    def save(self) -> None:
        if self.path.exists():
            synchronise(self.path)

    def finalize(self, status: str) -> None:
        self.save()

    def _mend(self) -> None:
        """Before the first line: the header of a new file, or the end of one whose last line was torn off."""
        if self._mended:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            file.seek(0)
            text = file.read()
            file.truncate(text.rfind(b"\n") + 1)
            if b"\n" not in text:
                file.write(_text([HEADER]).encode())
        self._mended = True


def read(path: Path) -> History:
    """The numbers of a log: name -> step -> value. Of two at one step the later one counts."""
    history: History = {}
    for step, _, name, value in _rows(path):
        history.setdefault(name, {})[int(step)] = float(value)
    return history


def _text(rows: Iterable[Iterable[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _rows(path: Path) -> list[list[str]]:
    """The rows below the header; a last line that was torn off is none."""
    lines = path.read_text().splitlines(keepends=True)
    return list(csv.reader(line for line in lines if line.endswith("\n")))[1:]


def plot_loss(history: History, path: Path) -> None:
    """A PNG of `train/loss`, `val/loss` and `train/loss_quarter_1` to `_4`, as far as they are there."""
    from matplotlib.figure import Figure

    quarters = [f"train/loss_quarter_{k}" for k in range(1, 5) if f"train/loss_quarter_{k}" in history]
    figure = Figure(figsize=(11 if quarters else 6.5, 4.6), layout="constrained")
    axes = figure.subplots(1, 2 if quarters else 1, squeeze=False)[0]
    draw_losses(axes[0], history)
    if quarters:
        draw_quarters(axes[1], history, quarters)
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=150)


def draw_losses(axes: "Axes", history: History) -> None:
    """Training (raw and smoothed) and validation loss."""
    if train := history.get("train/loss"):
        curve(axes, train, "training", "#1f6fb4")
    if val := history.get("val/loss"):
        axes.plot(*series(val), color="#d1495b", lw=1.8, marker="o", ms=3, label="validation")
    finish(axes, "Loss")


def draw_quarters(axes: "Axes", history: History, quarters: list[str]) -> None:
    """Smoothed training loss of each quarter of {1, ..., T}."""
    labels = ("t in (0, T/4]", "t in (T/4, T/2]", "t in (T/2, 3T/4]", "t in (3T/4, T]")
    colours = ("#440154", "#31688e", "#35b779", "#d9a400")
    for name in quarters:
        k = int(name[-1]) - 1
        curve(axes, history[name], labels[k], colours[k])
    finish(axes, "Training loss by quarter of t")


def curve(axes: "Axes", values: dict[int, float], label: str, colour: str) -> None:
    """A faint raw line under its moving average."""
    steps, raw = series(values)
    axes.plot(steps, raw, color=colour, lw=0.7, alpha=0.25)
    axes.plot(steps, smooth(raw), color=colour, lw=1.8, label=label)


def series(values: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Steps in order, and the finite values there (a quarter of t that no image met has none)."""
    steps = np.array(sorted(s for s, v in values.items() if np.isfinite(v)), dtype=np.int64)
    return steps, np.array([values[int(s)] for s in steps], dtype=np.float64)


def smooth(raw: np.ndarray) -> np.ndarray:
    """A centred moving average over a twentieth of the curve, over what there is of it at the ends."""
    if not len(raw):
        return raw
    kernel = np.ones(len(raw) // 40 * 2 + 1)
    return np.convolve(raw, kernel, "same") / np.convolve(np.ones_like(raw), kernel, "same")


def finish(axes: "Axes", title: str) -> None:
    """Labels; a logarithmic axis where every value allows it."""
    from matplotlib.ticker import AutoLocator, LogLocator

    axes.set(title=title, xlabel="step", ylabel="loss")
    values = [y for line in axes.get_lines() for y in np.asarray(line.get_ydata())]
    if values and min(values) > 0:
        axes.set_yscale("log")
        wide = max(values) > 10 * min(values)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else AutoLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.grid(True, which="both", color="0.9", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if values:
        axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))  # no curve runs there
