"""How the learning rate goes over the steps: a factor of `optimizer.lr` for each optimiser step."""

import math
from collections.abc import Callable

from ddpm.errors import Refused

Factor = Callable[[int], float]


def constant() -> Factor:
    """The learning rate itself."""
    return lambda step: 1.0


def warmup(*, num_steps: int) -> Factor:
    """min(step/num_steps, 1), from 0 at the first step: Ho et al. (2020), code."""
    _check(num_steps)
    return lambda step: min(step / num_steps, 1.0)


def warmup_cosine(*, num_steps: int, max_steps: int) -> Factor:
    """The same warm-up, then half a cosine down to 0 at the last step (Loshchilov & Hutter 2017)."""
    _check(num_steps)
    if max_steps <= num_steps:
        raise Refused(
            f"lr_schedule.num_steps is {num_steps}, but training has only {max_steps} steps; "
            "lower it, set trainer.max_steps, or choose lr_schedule=constant."
        )

    def factor(step: int) -> float:
        done = min(max(step - num_steps, 0) / (max_steps - num_steps), 1.0)
        return min(step / num_steps, 1.0) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def _check(num_steps: int) -> None:
    if num_steps < 1:
        raise Refused(f"lr_schedule.num_steps is {num_steps}; it must be at least 1.")
