"""Contenders that take turns: A B C, A B C, ... in processes of their own, of which one works at any time."""

import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed.plan import Contender, Group, Options

ROOT = Path(__file__).parents[2]
WARM_UP = 1.0  # seconds: who takes less for the first step gets a second one before the clock runs
LEAST, SHORT = 3, 2.0  # steps of a round, where they take no more than these seconds
HEATS = 3  # rounds, after which one setting of each label goes on


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


@dataclass
class Result:
    """What came of one task of a group, and what has been learnt of its contenders so far."""

    group: Group
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # what they said of themselves, by name
    task: str = ""
    timings: dict[str, Timing] = field(default_factory=dict)  # at the task, by name
    failures: dict[str, str] = field(default_factory=dict)  # by name


def beaten(timings: Iterable[Timing]) -> list[str]:
    """Of contenders with one label all but the one with the fastest median."""
    fastest: dict[str, Timing] = {}
    timings = list(timings)
    for timing in timings:
        label = timing.contender.label
        if label not in fastest or median(timing.seconds) < median(fastest[label].seconds):
            fastest[label] = timing
    return [timing.contender.name for timing in timings if timing is not fastest[timing.contender.label]]


def turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """A B C, A B C, ...: what makes the machine slower for a while makes it so for everybody."""
    for _ in range(rounds):
        yield from names


class Race:
    """A group's contenders at its tasks."""

    def __init__(self, group: Group, options: Options) -> None:
        self.options, self.result = options, Result(group)
        self.workers: dict[str, Worker] = {}

    def run(self) -> Iterator[Result]:
        """The result of each task, when it is done. All are the same object: take what is to be kept."""
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
                yield self.result

    def tried(self, name: str, what: Any, *arguments: Any) -> None:
        """Do something with a contender; one that is lost is out."""
        try:
            what(name, *arguments)
        except Lost as loss:
            self.result.failures[name] = str(loss)
            self.workers.pop(name).close()
            self.result.timings.pop(name, None)

    def meet(self, name: str) -> None:
        self.result.facts[name] = self.workers[name].hear()

    def task(self, task: str) -> None:
        """Warm everybody up, then let them take turns."""
        timings = {name: Timing(worker.contender) for name, worker in self.workers.items() if self.can(name, task)}
        self.result.task, self.result.timings = task, timings
        steps: dict[str, int] = {}
        for name in list(timings):
            self.tried(name, self.warm_up, task, steps)
        self.settle(steps)
        self.rounds(steps, min(HEATS, self.options.rounds))
        losers = beaten(timings.values())
        for name in losers:
            self.tried(name, self.end, steps)
        self.rounds(steps, self.options.rounds - HEATS)
        for name in list(steps):
            self.tried(name, self.end, steps)

    def settle(self, steps: dict[str, int]) -> None:
        """A round that does not count: while the others warmed up, the system may have taken back memory that lay
        idle."""
        self.rounds(steps, 1)
        for timing in self.result.timings.values():
            timing.seconds, timing.peak_memory_mb = [], 0.0

    def rounds(self, steps: dict[str, int], count: int) -> None:
        """So many of everybody who has steps to do."""
        for name in turns(list(steps), count):
            if name in self.workers:
                self.tried(name, self.round, steps[name])

    def can(self, name: str, task: str) -> bool:
        return task in self.result.facts[name]["tasks"]

    def warm_up(self, name: str, task: str, steps: dict[str, int]) -> None:
        """At least one step, which also tells how many fill a round."""
        worker, timing = self.workers[name], self.result.timings[name]
        worker.say(task=task)
        answer = worker.round(1)
        seconds, timing.first = answer["seconds"], answer["settling"] or answer["seconds"]
        if (seconds < WARM_UP and not self.options.quick) or timing.contender.setting.compiled:
            seconds = worker.round(2)["seconds"] / 2
        steps[name] = self.result.group.problem.pass_steps if task == "epoch" else self.fill(seconds)

    def fill(self, seconds: float) -> int:
        """The steps of a round, where one takes so long."""
        least = LEAST if LEAST * seconds <= SHORT and not self.options.quick else 1
        return max(least, round(self.options.seconds / seconds))

    def round(self, name: str, steps: int) -> None:
        answer, timing = self.workers[name].round(steps), self.result.timings[name]
        timing.seconds.append(answer["seconds"] / answer["steps"])
        timing.peak_memory_mb = max(timing.peak_memory_mb, answer["peak_memory_mb"])

    def end(self, name: str, steps: dict[str, int]) -> None:
        if steps.pop(name, 0) and name in self.workers:
            self.workers[name].round(0)
