"""A sweep ends with one table of overrides against scores: one of train.py with that of its folder of runs, one of
evaluate.py with that of its jobs.

The first is rebuilt by hand, for instance after a sweep was killed, with `python -m ddpm.sweep runs/NAME`.
"""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table as Shown


@dataclass(frozen=True)
class Job:
    """What came of a job of evaluate.py: its overrides, the rest of its row, and where its scores were written."""

    chosen: dict[str, str]
    outcome: dict[str, str]
    folder: Path | None


_started: list[Path] = []
_jobs: list[Job] = []
_noted: list[tuple[Path, Mapping[str, float]]] = []  # the scores of the job that runs now


class Table(Callback):
    """Remembers that a sweep has started. Hydra's own end of a sweep is not called when a job failed, so
    `finish` is for whoever has started Hydra."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        refuse_mistyped(config.hydra.overrides.task)
        _started.append(Path(config.runs) / config.name)


class Jobs(Callback):
    """Keeps what came of each job of a sweep of evaluate.py."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        refuse_mistyped(config.hydra.overrides.task)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            _jobs.append(as_job(job_return))
        _noted.clear()


def note(results: Path, scores: Mapping[str, float]) -> None:
    """Tell the table of a sweep what the job that runs now has measured, and where it was written."""
    _noted.append((results, scores))


def as_job(job_return: JobReturn) -> Job:
    """A job's overrides, how it ended and why, its scores."""
    done = job_return.status == JobStatus.COMPLETED
    reason = "" if done else " ".join(str(job_return._return_value).split())  # its property would raise it
    scores = {name: value for _, noted in _noted for name, value in noted.items()}
    outcome = {"state": "finished" if done else "failed"} | rounded(scores) | {"reason": reason}
    return Job(as_dict(job_return.overrides or []), outcome, _noted[0][0].parent if _noted else None)


def refuse_mistyped(overrides: Sequence[str]) -> None:
    """Hydra would find a mistyped choice when its job is due, hours after the first one began."""
    loader = GlobalHydra.instance().config_loader()
    for override in OverridesParser.create(loader).parse_overrides(list(overrides)):
        choices = loader.get_group_options(override.key_or_group) if override.is_sweep_override() else []
        asked = [text.strip("[]").split(",") for text in override.sweep_string_iterator()] if choices else []
        unknown = sorted({name for names in asked for name in names} - {*choices, "null", ""})
        if unknown:  # Hydra lets no mere Exception of a callback through
            sys.exit(f"error: {override.key_or_group}={unknown[0]} is not one of {', '.join(choices)}.")


def finish() -> None:
    """Write and show the table of each sweep that this process has started."""
    while _started:
        show(_started.pop())
    if _jobs:
        show_jobs(_jobs)
        _jobs.clear()


def show(folder: Path) -> None:
    """Write `table.csv` and `table.md` beside the runs of a folder, and print the table."""
    present([as_row(file) for file in sorted(folder.glob("*/status.json"))], folder / "table")


def show_jobs(jobs: Sequence[Job]) -> None:
    """Print the jobs of a sweep of evaluate.py, and write `evaluations.csv` and `.md` beside the first results. What
    all jobs have in common stands above the table, not in it."""
    shared = [item for item in jobs[0].chosen.items() if all(item in job.chosen.items() for job in jobs)]
    rows = [dict(item for item in job.chosen.items() if item not in shared) | job.outcome for job in jobs]
    print("all with", *(f"{key}={text}" for key, text in shared))
    folder = next((job.folder for job in jobs if job.folder is not None), None)
    present(rows, folder / "evaluations" if folder else None)


def present(rows: Sequence[Mapping[str, str]], stem: Path | None) -> None:
    """Print a table, one row a mapping, and write it as `stem`.csv and `stem`.md."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "reason"))
    columns += ["reason"] if any(row["reason"] for row in rows) else []
    cells = [[row.get(name, "") for name in columns] for row in rows]
    table = Shown(*columns)
    for row in cells:
        table.add_row(*row)
    console = Console()
    console.print(table)
    if stem is None:
        return
    with stem.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *cells])
    stem.with_suffix(".md").write_text(markdown(columns, cells))
    console.print(f"table: {stem}.csv, {stem}.md", soft_wrap=True)


def as_row(file: Path) -> dict[str, str]:
    """One run: its overrides, how it ended and why, its scores."""
    told = json.loads(file.read_text())
    outcome = {"state": told["state"]} | rounded(told.get("scores", {})) | {"reason": told.get("reason") or ""}
    return {"run": file.parent.name} | as_dict(told.get("overrides", [])) | outcome


def as_dict(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides by their keys."""
    return {key: text for key, _, text in (override.lstrip("+~").partition("=") for override in overrides)}


def rounded(scores: Mapping[str, float]) -> dict[str, str]:
    """Scores for a table."""
    return {name: f"{value:.5g}" for name, value in scores.items()}


def markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *cells]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    show(Path(sys.argv[1]))
