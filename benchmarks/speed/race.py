"""Contenders that take turns: A B C, A B C, ... in processes of their own, of which one works at any time."""

import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed.plan import Contender, Group, Options

ROOT = Path(__file__).parents[2]
WARM_UP = 1.0  # seconds: who takes less for the first step gets a second one before the clock runs


class Lost(Exception):
    """A contender's process has ended or does not answer."""


class Worker:
    """A contender's process, from this end of the pipe."""

    def __init__(self, contender: Contender, spec: dict[str, Any], patience: float) -> None:
        self.contender, self.patience = contender, patience
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.worker", json.dumps(spec)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def say(self, **request: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise Lost(self.last_words()) from error

    def hear(self) -> dict[str, Any]:
        """Its next answer, which is one line: nothing waits in a buffer before it."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], self.patience)[0]:
            raise Lost(f"no answer in {self.patience:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise Lost(self.last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def round(self, steps: int) -> dict[str, Any]:
        self.say(steps=steps)
        return self.hear()

    def last_words(self) -> str:
        """The last line that it wrote, which is what a traceback ends with."""
        self.process.wait()
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        return lines[-1] if lines else f"ended with {self.process.returncode}"

    def close(self) -> None:
        """End it; more than once does no harm."""
        self.process.kill()
        self.process.wait()
        for end in (self.process.stdin, self.process.stdout, self.log):
            assert end is not None
            end.close()


@dataclass
class Timing:
    """What a contender did at a task."""

    contender: Contender
    first: float = 0.0  # seconds of the first step, compiling and choosing kernels with it
    seconds: list[float] = field(default_factory=list)  # a step, round by round
    peak_memory_mb: float = 0.0

    @property
    def typical(self) -> float:
        return median(self.seconds)


@dataclass
class Result:
    """A group's timings by task, what its contenders said of themselves, and who failed."""

    group: Group
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # by the contender's name
    timings: dict[str, list[Timing]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """A B C, A B C, ...: what makes the machine slower for a while makes it so for everybody."""
    for _ in range(rounds):
        yield from names


class Race:
    """A group's contenders at its tasks."""

    def __init__(self, group: Group, options: Options) -> None:
        self.options, self.result = options, Result(group)
        self.workers: dict[str, Worker] = {}

    def run(self) -> Result:
        group = self.result.group
        with ExitStack() as stack:
            for contender in group.contenders:
                worker = Worker(contender, group.spec(contender), self.options.patience)
                stack.callback(worker.close)
                self.workers[contender.name] = worker
            for name in list(self.workers):
                self.tried(name, self.meet)
            for task in group.tasks:
                self.task(task)
        return self.result

    def tried(self, name: str, what: Any, *arguments: Any) -> None:
        """Do something with a contender; one that is lost is out."""
        try:
            what(name, *arguments)
        except Lost as loss:
            self.result.failures[name] = str(loss)
            self.workers.pop(name).close()
            for timings in list(self.result.timings.values())[-1:]:  # of the task that it did not finish
                timings[:] = [timing for timing in timings if timing.contender.name != name]

    def meet(self, name: str) -> None:
        self.result.facts[name] = self.workers[name].hear()

    def task(self, task: str) -> None:
        """Warm everybody up, then let them take turns."""
        timings = {name: Timing(worker.contender) for name, worker in self.workers.items() if self.can(name, task)}
        steps: dict[str, int] = {}
        self.result.timings[task] = list(timings.values())
        for name, timing in timings.items():
            self.tried(name, self.warm_up, task, timing, steps)
        for name in turns(list(timings), self.options.rounds):
            if name in self.workers:
                self.tried(name, self.round, steps, timings[name])
        for name in timings:
            if name in self.workers:
                self.tried(name, self.end)

    def can(self, name: str, task: str) -> bool:
        return task in self.result.facts[name]["tasks"]

    def warm_up(self, name: str, task: str, timing: Timing, steps: dict[str, int]) -> None:
        """At least one step, which also tells how many fill a round."""
        worker = self.workers[name]
        worker.say(task=task)
        seconds = timing.first = worker.round(1)["seconds"]
        if (seconds < WARM_UP and not self.options.quick) or timing.contender.setting.compiled:
            seconds = worker.round(2)["seconds"] / 2
        fill = max(1, round(self.options.seconds / seconds))
        steps[name] = self.result.group.problem.pass_steps if task == "epoch" else fill

    def round(self, name: str, steps: dict[str, int], timing: Timing) -> None:
        answer = self.workers[name].round(steps[name])
        timing.seconds.append(answer["seconds"] / steps[name])
        timing.peak_memory_mb = max(timing.peak_memory_mb, answer["peak_memory_mb"])

    def end(self, name: str) -> None:
        self.workers[name].round(0)
