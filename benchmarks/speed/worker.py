"""The process of one contender: `python -m benchmarks.speed.worker SPEC`, asked through its standard input.

It answers on what was its standard output; whatever libraries print goes to its standard error.
"""

import gc
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch

from benchmarks.speed import pace
from benchmarks.speed.pace import Over, Pace
from benchmarks.speed.plan import Problem, Setting

Task = Callable[[Pace], None]


@dataclass(frozen=True)
class Spec:
    """What a contender has to know."""

    problem: Problem
    setting: Setting
    device: torch.device
    precision: str  # of the group


class Known(Protocol):
    """A contender: what it can do, and what a step of its network takes."""

    def tasks(self) -> Mapping[str, Task]: ...

    def facts(self) -> dict[str, Any]:
        """parameters, and floating-point operations an image: {"forward": ..., "training": ...}."""
        ...


def switch(precision: str, best: bool) -> None:
    """PyTorch's global switches. In convolutions TF32 is its own choice. cudnn's search for the fastest kernel is one
    of those that cost only a line; ours is trainer.benchmark."""
    if precision != "float32":
        torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = best


def contender(told: dict[str, Any]) -> Known:
    """The contender of a spec."""
    setting = Setting(**told["setting"])
    spec = Spec(Problem(**told["problem"]), setting, torch.device(told["device"]), told["precision"])
    switch(setting.precision, setting.best)
    known: Known = import_module(f"benchmarks.speed.{told['kind']}").Contender(spec)
    return known


def serve(clock: Pace, known: Known) -> None:
    """Tasks as they are asked for: {"task": name}, then its rounds."""
    clock.say(tasks=sorted(known.tasks()), **known.facts())
    while name := clock.ask().get("task"):
        with suppress(Over):
            known.tasks()[name](clock)
        gc.collect()
        clock.say(over=name)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    told = json.loads(sys.argv[1])
    pace.CURRENT = Pace(sys.stdin, answers, torch.device(told["device"]))
    serve(pace.CURRENT, contender(told))


if __name__ == "__main__":
    main()
