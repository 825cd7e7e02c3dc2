"""Runs and measurements of seconds, in this process."""

from pathlib import Path
from typing import Any

from compose import composed
from processes import SMALL

from ddpm.measuring import measure
from ddpm.runs import locked
from ddpm.training import settings, train

UNSCORED = [  # a run that leaves a model, and nothing else that takes time
    *(text for text in SMALL if not text.startswith(("callbacks.samples", "callbacks.evaluation"))),
    "logger=[]",
    "metric=[]",
    "optimized_metric=null",
    "~callbacks.evaluation",
    "~callbacks.samples",
    "schedule.num_steps=10",
]


def run(folder: Path, *overrides: str) -> Path:
    """Train, in a folder that may hold a run to go on with."""
    return run_as(folder, composed(*overrides))


def run_as(folder: Path, config: dict[str, Any]) -> Path:
    """The same, of a config that is composed."""
    folder.mkdir(exist_ok=True)
    one = locked(folder)
    try:
        train(settings(config), one)
    finally:
        one.lock.release()
    return folder


def measured(trained: Path, results: Path, *overrides: str) -> float | None:
    """What evaluate.py returns for a run."""
    asked = [f"checkpoint={trained}", f"results={results}", "num_images=8", "sampler.num_steps=4", "trainer=cpu"]
    asked += overrides if any(text.startswith("metric=") for text in overrides) else ["metric=[fid_random]", *overrides]
    return measure(composed(*asked, verb="evaluate"), asked)
