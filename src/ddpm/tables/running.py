"""What the tables share: sweeps of the verbs in processes of their own, and what is known of a checkpoint already.

A score is taken from `results.jsonl` beside its checkpoint if the same overrides gave it at the checkpoint's step;
nothing is measured twice.
"""

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from ddpm.checkpoint import Loaded, load
from ddpm.cli import quoted
from ddpm.errors import Refused
from ddpm.measuring import rows_of
from ddpm.runs import without_place
from ddpm.sweep import as_dict

VERBS = Path(__file__).parents[3]
Result = Mapping[str, Any]  # a row of results.jsonl


@dataclass(frozen=True)
class Checkpoint:
    """A trained model: its file, the step it was saved at, the T of its schedule, and the share that the average of
    its weights, which is what is scored, still has of the initial ones."""

    path: Path
    step: int
    num_steps: int
    initial: float = 0.0


def opened(path: Path) -> Checkpoint:
    """The checkpoint of a .ckpt or of a run's folder. Raises Refused if there is none."""
    loaded = load(path)
    return Checkpoint(loaded.path, loaded.step, loaded.diffusion.num_steps, initial_share(loaded))


def initial_share(loaded: Loaded) -> float:
    """d^n of a constant decay d after n steps."""
    callbacks = loaded.config.get("callbacks") or {}
    ema = callbacks.get("ema") or {"decay": 0.0, "warmup": True}
    return 0.0 if ema["warmup"] else float(ema["decay"] ** loaded.step)


def sweep(verb: str, arguments: Sequence[str]) -> int:
    """One multirun of train.py or evaluate.py; its exit code."""
    return subprocess.run([sys.executable, str(VERBS / f"{verb}.py"), "-m", *arguments], check=False).returncode


def jobs(arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, as Hydra deals them out; of two with one key the later counts."""
    parsed = OverridesParser.create().parse_overrides(quoted(arguments))
    (dealt,) = BasicSweeper.split_arguments(parsed, None)
    return dealt


def protocol(metrics: Sequence[str], images: int, extra: Sequence[str]) -> list[str]:
    """What evaluate.py is asked of the checkpoints of a table.

    Raises Refused where `extra` asks for several protocols, or for rows in another file.
    """
    asked = [f"num_images={images}", f"metric=[{','.join(metrics)}]", *extra]
    if len(jobs(asked)) != 1:
        raise Refused("a table is scored by one protocol; give each override one value.")
    if {"results", "checkpoint"} & as_dict(asked).keys():
        raise Refused("a table reads results.jsonl beside its checkpoints; leave out checkpoint= and results=.")
    return asked


def among(checkpoints: Iterable[Checkpoint]) -> str:
    """The override that sweeps over these checkpoints."""
    return "checkpoint=" + ",".join(f'"{checkpoint.path}"' for checkpoint in checkpoints)


def known(checkpoint: Checkpoint, arguments: Sequence[str]) -> Result | None:
    """What evaluate.py has measured of a checkpoint with these arguments, if it has."""
    (job,) = jobs(arguments)
    file, wanted = checkpoint.path.with_name("results.jsonl"), set(without_place(job))
    rows = rows_of(file) if file.is_file() else []
    mine = [row for row in rows if set(row.get("overrides", [])) == wanted and _is_of(row["protocol"], checkpoint)]
    return mine[-1] if mine else None


def _is_of(told: Mapping[str, Any], checkpoint: Checkpoint) -> bool:
    return (told.get("checkpoint"), told.get("step")) == (checkpoint.path.name, checkpoint.step)
