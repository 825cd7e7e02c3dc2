"""A sweep ends with one table of overrides against scores, rebuilt from the folders of its runs.

Also by hand, for instance after a sweep was killed: `python -m ddpm.sweep runs/NAME`.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table as Shown

_started: list[Path] = []


class Table(Callback):
    """Remembers that a sweep has started. Hydra's own end of a sweep is not called when a job failed, so
    `finish` is for whoever has started Hydra."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _started.append(Path(config.runs) / config.name)


def finish() -> None:
    """Write and show the table of each sweep that this process has started."""
    while _started:
        show(_started.pop())


def show(folder: Path) -> None:
    """Write `table.csv` and `table.md` beside the runs of a folder, and print the table."""
    rows = [as_row(file) for file in sorted(folder.glob("*/status.json"))]
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "reason")) + ["reason"]
    cells = [[str(row.get(name, "")) for name in columns] for row in rows]
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *cells])
    (folder / "table.md").write_text(markdown(columns, cells))
    table = Shown(*columns)
    for row in cells:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f"table: {folder / 'table.csv'}, {folder / 'table.md'}", soft_wrap=True)


def as_row(file: Path) -> dict[str, Any]:
    """One run: its overrides, how it ended and why, its scores."""
    told = json.loads(file.read_text())
    chosen = dict(text.lstrip("+~").partition("=")[::2] for text in told.get("overrides", []))
    scores = {name: f"{value:.5g}" for name, value in told.get("scores", {}).items()}
    return {"run": file.parent.name} | chosen | {"state": told["state"]} | scores | {"reason": told.get("reason") or ""}


def markdown(columns: list[str], cells: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *cells]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    show(Path(sys.argv[1]))
