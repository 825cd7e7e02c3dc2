"""A sweep ends with one table of overrides against scores: one of train.py with that of its folder of runs, one of
evaluate.py with that of its jobs.

The first is rebuilt by hand, for instance after a sweep was killed, with `python -m ddpm.sweep runs/NAME`. Jobs
of the last sweep that were refused before they had a folder have their notes beside the runs, in `.refused`.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Column
from rich.table import Table as Shown

from ddpm import runs
from ddpm.errors import Failed, Refused
from ddpm.meeting import is_follower
from ddpm.privacy import without_paths
from ddpm.submitted import lost_jobs_fail
from ddpm.whole import whole, write_csv
from ddpm.wording import no_choice

Noted = tuple[Path, dict[str, float]]  # the file of the results, and the scores

REFUSED = ".refused"  # in a folder of runs: a folder of each job of its last sweep that has none of its own

_runs: list[Path] = []  # the folders that the jobs of a sweep of train.py have theirs in
_jobs: list[Path] = []  # the folder with what came of each job of a sweep of evaluate.py
_noted: list[Noted] = []  # of the job that runs now


class Sweep(Callback):
    """Looks over a sweep before its first job. Hydra's own end of a sweep is not called when a job failed, so
    `finish` is for whoever has started Hydra."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        refuse_mistyped(config.hydra.overrides.task)
        if config.hydra.runtime.choices["hydra/launcher"].startswith("submitit"):
            lost_jobs_fail()


class Table(Sweep):
    """A sweep of train.py."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        super().on_multirun_start(config)
        dealt = {"runs": [config.runs], "name": [config.name]} | swept(config.hydra.overrides.task)
        folders = [Path(root) / name for root, name in product(*dealt.values())]
        _runs.extend(folders)
        for notes in (folder / REFUSED for folder in folders):
            if notes.is_dir() and not is_follower():
                shutil.rmtree(notes)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        error = job_return._return_value
        unread = isinstance(error, Refused | OmegaConfBaseException) and not isinstance(error, Failed)
        if unread and config.hydra.mode == RunMode.MULTIRUN and not is_follower():
            keep_refusal(Path(str(config.runs)) / str(config.name), list(config.hydra.overrides.task), error)


class Jobs(Sweep):
    """A sweep of evaluate.py: a file for each of its jobs, whichever process that runs in."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        super().on_multirun_start(config)
        _jobs.append(Path(config.hydra.sweep.dir))

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        _noted.clear()
        if config.hydra.mode == RunMode.MULTIRUN:
            write(config, {"state": "killed"})  # until it has ended otherwise

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            write(config, outcome(job_return))


def write(config: DictConfig, outcome: Mapping[str, Any]) -> None:
    """Keep what came of a job of a sweep of evaluate.py."""
    file = Path(config.hydra.sweep.dir) / f"{config.hydra.job.num:06d}.json"
    with whole(file) as part:  # the table takes what is there
        part.write_text(json.dumps({"overrides": list(config.hydra.overrides.task), **outcome}))


def keep_refusal(folder: Path, overrides: Sequence[str], error: Exception) -> None:
    """Note why a job was refused, unless its run says so itself."""
    ours, reason = runs.without_place(overrides), without_paths(str(error))
    for run in map(told, folder.glob("*/status.json")):
        if run.get("overrides") == ours and reason in (run.get("reason") or ""):
            return
    place = folder / REFUSED / runs.label([without_paths(override) for override in overrides])
    place.mkdir(parents=True, exist_ok=True)
    runs.note(place, state="refused", overrides=ours, reason=" ".join(str(error).split()))


def outcome(job_return: JobReturn) -> dict[str, Any]:
    """How a job ended and why, its scores and their file."""
    done = job_return.status == JobStatus.COMPLETED
    reason = "" if done else " ".join(str(job_return._return_value).split())  # its property would raise it
    scores = {name: value for _, noted in _noted for name, value in noted.items()}
    results = str(_noted[0][0]) if _noted else None
    return {"state": "finished" if done else "failed", "scores": scores, "reason": reason, "results": results}


def note(results: Path, scores: Mapping[str, float]) -> None:
    """Tell the table of a sweep what the job that runs now has measured, and where it was written."""
    _noted.append((results, dict(scores)))


def noted() -> list[Noted]:
    """What the job that runs now has measured."""
    return list(_noted)


def swept(overrides: Sequence[str], keys: Sequence[str] = ("runs", "name")) -> dict[str, list[str]]:
    """The values that a sweep deals out to some keys, for those that it does."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    dealt = [override for override in parsed if override.key_or_group in keys and override.is_sweep_override()]
    return {
        override.key_or_group: [text.strip("\"'") for text in override.sweep_string_iterator()] for override in dealt
    }


def refuse_mistyped(overrides: Sequence[str]) -> None:
    """Hydra would find a mistyped choice when its job is due, hours after the first one began."""
    loader = GlobalHydra.instance().config_loader()
    for override in OverridesParser.create(loader).parse_overrides(list(overrides)):
        choices = loader.get_group_options(override.key_or_group) if override.is_sweep_override() else []
        asked = [text.strip("[]").split(",") for text in override.sweep_string_iterator()] if choices else []
        unknown = sorted({name for names in asked for name in names} - {*choices, "null", ""})
        if unknown:  # Hydra lets no mere Exception of a callback through
            sys.exit(f"error: {no_choice(override.key_or_group, unknown[0], choices)}")


def finish() -> None:
    """Write and show the table of each sweep that this process has started."""
    while _runs:
        show(_runs.pop(0))
    while _jobs:
        show_jobs(_jobs.pop(0))


def show(folder: Path) -> None:
    """Write `table.csv` and `table.md` beside the runs of a folder, and print the table."""
    present([as_row(file) for file in files_of(folder)], folder / "table")


def files_of(folder: Path) -> list[Path]:
    """What tells of the runs of a folder, and of the jobs of its last sweep that have none."""
    return sorted(folder.glob("*/status.json")) + sorted(folder.glob(f"{REFUSED}/*/status.json"))


def show_jobs(folder: Path) -> None:
    """Print the jobs of a sweep of evaluate.py, and write `evaluations.csv` and `.md` beside the first results."""
    jobs = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    results = next((job["results"] for job in jobs if job.get("results")), None)
    rows = [as_dict(job["overrides"]) | as_outcome(job) for job in jobs]
    present(rows, Path(results).parent / "evaluations" if results else None)


def present(rows: Sequence[Mapping[str, str]], stem: Path | None) -> None:
    """Print a table, one row a mapping, and write it as `stem`.csv and `stem`.md."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "reason"))
    columns += ["reason"] if any(row["reason"] for row in rows) else []
    cells = [[without_paths(row.get(name, "")) for name in columns] for row in rows]
    console = Console()
    display(console, dict(zip(columns, zip(*cells, strict=True), strict=False)))
    if stem is None:
        return
    write_csv([columns, *cells], stem.with_suffix(".csv"))
    with whole(stem.with_suffix(".md")) as part:
        part.write_text(markdown(columns, cells))
    console.print(f"table: {stem}.csv, {stem}.md", soft_wrap=True, markup=False)


def display(console: Console, columns: Mapping[str, Sequence[str]]) -> None:
    """Print a table. What all its rows have in common stands above it, and the names of runs, which their overrides
    make up, only in the files."""
    common = {name: cells[0] for name, cells in columns.items() if len(set(cells)) == 1 < len(cells)}
    left = {name: cells for name, cells in columns.items() if name not in {"run", *common}}
    if common:
        console.print("all with", *(f"{name}={text}" for name, text in common.items()), soft_wrap=True, markup=False)
    table = Shown(*(Column(name, overflow="fold") for name in left))
    for row in zip(*left.values(), strict=True):
        table.add_row(*map(escape, row))
    console.print(table)


def as_row(file: Path) -> dict[str, str]:
    """One run: its overrides, how it ended and why, its scores."""
    end = told(file)
    return {"run": file.parent.name} | as_dict(end.get("overrides", [])) | as_outcome(end)


def told(file: Path) -> dict[str, Any]:
    """What a run tells of itself, also where it cannot be read."""
    try:
        return runs.status(file.parent) | {"state": runs.state(file.parent)}
    except Refused as fault:
        return {"state": "unknown", "reason": str(fault)}


def as_outcome(end: Mapping[str, Any]) -> dict[str, str]:
    """How it ended, its scores, and why it ended so."""
    return {"state": end["state"]} | rounded(end.get("scores", {})) | {"reason": end.get("reason") or ""}


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


def rebuild(arguments: Sequence[str]) -> None:
    """What `python -m ddpm.sweep` does: the table of one folder of runs. Anything else ends in an error."""
    if len(arguments) != 1 or not files_of(Path(arguments[0])):
        sys.exit(
            f"error: {' '.join(arguments) or 'nothing'} is no folder of runs; give one, as in "
            "python -m ddpm.sweep runs/ddpm."
        )
    show(Path(arguments[0]))


if __name__ == "__main__":
    rebuild(sys.argv[1:])
