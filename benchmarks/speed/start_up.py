"""How long a command takes until something happens."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from benchmarks.speed.race import ROOT, Lost, turns

_FIRST = "+callbacks.first={_target_: benchmarks.speed.first_step.FirstStep}"
_QUICK = ["callbacks=[ema_warmup]", "metric=[]", "optimized_metric=null", "model=tiny"]


@dataclass(frozen=True)
class Command:
    """Arguments of Python, and of a Python that only imports what cannot be spared."""

    name: str
    arguments: list[str]
    bare: list[str]


def commands(quick: bool) -> list[Command]:
    """What a user waits for first."""
    run = ["train.py", "logger=csv", _FIRST, *(_QUICK if quick else [])]
    heavy = "import hydra" if quick else "import torch, lightning, hydra"
    return [
        Command("train.py --help", ["train.py", "--help"], ["-c", "import hydra"]),
        Command("train.py --cfg job", ["train.py", "--cfg", "job"], ["-c", "import hydra"]),
        Command("first training step", run, ["-c", heavy]),
    ]


def start_up(quick: bool, rounds: int) -> list[dict[str, Any]]:
    """A record for each command. It is measured last, when the disk's caches are filled."""
    asked = commands(quick)
    every = {command.name: command.arguments for command in asked}
    every |= {" ".join(command.bare): command.bare for command in asked}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in every}
    for name in turns(list(every), 1 if quick else rounds):
        taken[name].append(timed(every[name]))
    return [record(command, taken[command.name], taken[" ".join(command.bare)]) for command in asked]


def timed(arguments: Sequence[str]) -> tuple[float, float]:
    """Seconds, and megabytes at most, of a Python with these arguments. Raises Lost where it fails."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        mine = [f"runs={folder}"] if arguments[0] == "train.py" and "--help" not in arguments else []
        since = perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments, *mine], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = perf_counter() - since
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise Lost(f"{' '.join(arguments)}: {log.read().strip().splitlines()[-1:]}")
    return seconds, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def record(command: Command, mine: list[tuple[float, float]], bare: list[tuple[float, float]]) -> dict[str, Any]:
    """As results.record; in seconds: the fewer the better."""
    contenders = {"ours": taken(command.name, "ours", mine), "floor": taken(" ".join(command.bare), "floor", bare)}
    told = {"row": "start_up", "model": command.name, "device": "cpu", "precision": None, "unit": "seconds"}
    return told | {"batch": None, "asked": ["ours", "floor"], "contenders": contenders}


def taken(setting: str, label: str, rounds: list[tuple[float, float]]) -> dict[str, Any]:
    """What it took."""
    return {
        "label": label,
        "setting": setting,
        "compiled": False,
        "first_step_seconds": rounds[0][0],
        "seconds": [seconds for seconds, _ in rounds],
        "peak_memory_mb": round(max(megabytes for _, megabytes in rounds)),
        "flops": None,
    }
