"""What a run says in the terminal: before it starts, and where everything is when it has ended."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ddpm.callbacks.run_log import RunLog, plot_loss, read
from ddpm.module import DiffusionModule

console = Console()


def announce(config: Mapping[str, Any], trainer: Trainer, module: DiffusionModule, folder: Path) -> None:
    """One paragraph on what is about to run."""
    if not trainer.is_global_zero:
        return
    count = sum(p.numel() for p in module.diffusion.network.parameters())
    device = type(trainer.accelerator).__name__.removesuffix("Accelerator")
    asked = " (chosen for this processor)" if config["trainer"]["precision"] == "auto" else ""
    steps = f"{trainer.max_steps:,}" if trainer.max_steps > 0 else "until trainer.max_time"
    rows = {
        "model": f"{count:,} parameters",
        "data": f"{module.card['facts']['name']}: {module.card['facts']['note']}",
        "steps": f"{steps} of {module.batch_size} images",
        "device": f"{device} x {trainer.world_size}, precision {trainer.precision}{asked}",
        "folder": str(folder),
    }
    _list(rows)


def training_report(folder: Path, log: RunLog, scores: Mapping[str, float]) -> None:
    """Where the checkpoint, the grid, the loss curve and the metrics are, and the scores."""
    curve = folder / "loss.png"
    if log.path.exists():  # a run may end before it has anything to log
        plot_loss(read(log.path), curve)
    grids = sorted((folder / "samples").glob("step_*.png"))
    rows = {
        "checkpoint": folder / "checkpoints" / "last.ckpt",
        "best checkpoint": folder / "checkpoints" / "best.ckpt",
        "sample grid": grids[-1] if grids else None,
        "loss curve": curve,
        "metrics": log.path,
    }
    _list({name: str(path) for name, path in rows.items() if path and path.exists()})
    if scores:
        console.print(score_table(scores))


def score_table(scores: Mapping[str, float]) -> Table:
    """The scores, one a row; a mean with its interval of 95 %, from its standard error."""
    errors = {name.replace("_std_error", ""): value for name, value in scores.items() if "_std_error" in name}
    table = Table("score", "value")
    for name, value in scores.items():
        interval = f" ± {1.96 * errors[name]:.2g} (95 %)" if name in errors else ""
        table.add_row(name, f"{value:.5g}{interval}")
    return table


def _list(rows: Mapping[str, str]) -> None:
    """One line each, however long: a path that is broken over lines cannot be copied."""
    for name, value in rows.items():
        console.print(f"[bold]{name:16}[/bold]{escape(value)}", soft_wrap=True, highlight=False)
