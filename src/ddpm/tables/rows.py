"""Tables whose rows are trained, each for itself, and scored as they are at their last step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm.errors import Refused
from ddpm.runs import status, without_place
from ddpm.sweep import as_dict
from ddpm.tables.published import Row
from ddpm.tables.running import Checkpoint, Result, among, jobs, known, opened, sweep

DURING_TRAINING = 5000  # the images of a score during training, in the experiments of the papers
SHARED = ("metric", "sampler", "trainer")  # groups that train.py and evaluate.py both have


@dataclass(frozen=True)
class Ran:
    """What came of a row: how its run ended, as its status.json tells; its checkpoint; what that scored."""

    told: Mapping[str, Any]
    checkpoint: Checkpoint | None
    result: Result | None


def training(name: str, rows: Sequence[Row], steps: int | None, images: int, extra: Sequence[str]) -> list[str]:
    """The arguments of the sweep of train.py that makes all rows, or goes on with them: so many optimiser steps each,
    and no score during training of more than so many images.

    Raises Refused if `extra` would make several runs of a row.
    """
    experiments = ",".join(row.experiment for row in rows)
    limit = [] if steps is None else [f"trainer.max_steps={steps}"]
    few = [f"callbacks.evaluation.num_images={images}"] if images < DURING_TRAINING else []
    arguments = [f"experiment={experiments}", f"name={name}", "resume=auto", *limit, *few, *extra]
    if len(jobs(arguments)) != len(rows):
        raise Refused("a row of a table is one run; give each override one value, and make a table for each choice.")
    return arguments


def place(arguments: Sequence[str]) -> Path:
    """The folder of the runs of a sweep."""
    chosen = as_dict(arguments)
    return Path(chosen.get("runs", "runs")) / chosen["name"]


def made(arguments: Sequence[str]) -> dict[str, Path]:
    """The folder of each run of a sweep, by its experiment: the newest that was started with these overrides."""
    wanted = {frozenset(without_place(job)): as_dict(job)["experiment"] for job in jobs(arguments)}
    found = {frozenset(overrides_of(run)): run for run in _by_age(place(arguments))}
    return {experiment: found[overrides] for overrides, experiment in wanted.items() if overrides in found}


def given(path: Path, rows: Sequence[Row]) -> dict[str, Path]:
    """The runs that a user names, by their experiments: a .ckpt, a run's folder, or a folder of runs, where the
    newest of each row counts.

    Raises Refused if none of them is a row of the table.
    """
    one = path.is_file() or (path / "checkpoints").is_dir()
    found = {as_dict(overrides_of(run)).get("experiment"): run for run in ([path] if one else _by_age(path))}
    mine = {row.experiment: found[row.experiment] for row in rows if row.experiment in found}
    if not mine:
        names = ", ".join(row.experiment for row in rows)
        raise Refused(f"{path} has no run of this table's rows, which are trained with experiment= one of {names}.")
    return mine


def for_scoring(extra: Sequence[str]) -> list[str]:
    """Those overrides of train.py that hold for evaluate.py too."""
    return [text for text in extra if text.lstrip("+~").partition("=")[0].split(".")[0] in SHARED]


def score(runs: Mapping[str, Path], asked: Sequence[str]) -> tuple[dict[str, Ran], int]:
    """Score those of the runs that are not, in one sweep of evaluate.py: what came of each, and the exit code."""
    checkpoints = {name: opened(run) for name, run in runs.items() if _has_checkpoint(run)}
    missing = [checkpoint for checkpoint in checkpoints.values() if known(checkpoint, asked) is None]
    code = sweep("evaluate", [among(missing), *asked]) if missing else 0
    return {name: _outcome(run, checkpoints.get(name), asked) for name, run in runs.items()}, code


def _outcome(run: Path, checkpoint: Checkpoint | None, asked: Sequence[str]) -> Ran:
    return Ran(status(_folder(run)), checkpoint, known(checkpoint, asked) if checkpoint else None)


def _has_checkpoint(run: Path) -> bool:
    return run.is_file() or (run / "checkpoints" / "last.ckpt").exists()  # a folder of trainer=fsdp


def _folder(run: Path) -> Path:
    return run.resolve().parent.parent if run.is_file() else run


def overrides_of(run: Path) -> list[str]:
    """What a run, or the run of a .ckpt, was started with."""
    told: list[str] = status(_folder(run)).get("overrides", [])
    return told


def _by_age(folder: Path) -> list[Path]:
    """The runs in a folder, the newest last."""
    files = sorted(folder.glob("*/status.json"), key=lambda file: file.stat().st_mtime)
    return [file.parent for file in files]
