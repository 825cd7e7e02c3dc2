"""The clock of a contender. It works in rounds of steps: each is asked for, timed and answered, and in between
the process waits, so that contenders can take turns."""

import json
from time import perf_counter
from typing import IO, Any

import torch

from benchmarks.speed.memory import forget, megabytes


class Over(Exception):
    """No more rounds of this task are wanted."""


class Pace:
    """Rounds as the other end of a pipe asks for them, in lines of JSON: {"steps": n}, and 0 ends the task.

    Each is answered by {"seconds": ..., "steps": done in them, "settling": ..., "peak_memory_mb": ...}. On a GPU a
    round begins with a step of its own, settling, whose seconds do not count, and ends by giving back the memory that
    it kept for the next: others need it too.
    """

    def __init__(self, asked: IO[str], answers: IO[str], device: torch.device) -> None:
        self.asked, self.answers, self.device = asked, answers, device
        self._settling = 1 if device.type == "cuda" else 0
        self._left = 0  # of the steps of this round, with those before the clock starts
        self._steps = 0
        self._done = 0.0
        self._asked = self._since = 0.0

    def begin(self) -> None:
        """Before the first step of a task. Waits for a round; raises Over where none is wanted."""
        if self._left == 0:
            self._next()

    def tick(self, share: float = 1.0) -> None:
        """After each step; a short batch is a share of one. Raises Over where it was the last."""
        self._left -= 1
        self._done += share
        if self._left == self._steps:
            self._start()
        if self._left == 0:
            self._answer()
            self._next()

    def ask(self) -> dict[str, Any]:
        """What the other end says next; nothing where it is gone."""
        line = self.asked.readline()
        said: dict[str, Any] = json.loads(line) if line else {}
        return said

    def say(self, **facts: Any) -> None:
        self.answers.write(json.dumps(facts) + "\n")
        self.answers.flush()

    def _next(self) -> None:
        self._steps = self.ask().get("steps", 0)
        if self._steps == 0:
            raise Over
        self._left = self._steps + self._settling
        self._asked = perf_counter()
        if not self._settling:
            self._start()

    def _start(self) -> None:
        self._wait()
        forget(self.device)
        self._done = 0.0
        self._since = perf_counter()

    def _answer(self) -> None:
        self._wait()
        seconds = perf_counter() - self._since
        peak = megabytes(self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        settling = self._since - self._asked if self._settling else 0.0
        self.say(seconds=seconds, steps=self._done, settling=settling, peak_memory_mb=peak)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


CURRENT: Pace | None = None  # a callback that is built from a config finds it here


def current() -> Pace:
    """That of this process."""
    assert CURRENT is not None  # the worker has set it
    return CURRENT
