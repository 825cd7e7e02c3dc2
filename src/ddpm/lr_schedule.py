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
    """The same warm-up, over half of the training at most, then half a cosine, down to 0 after the last step
    (Loshchilov & Hutter 2017). Raises Refused where training has no last step."""
    _check(num_steps)
    if max_steps < 1:
        raise Refused(
            f"a cosine needs an end, and trainer.max_steps is {max_steps}; set it, or choose lr_schedule=warmup."
        )
    rise = max(1, min(num_steps, max_steps // 2))

    def factor(step: int) -> float:
        done = min(max(step - rise, 0) / max(max_steps - rise, 1), 1.0)
        return min(step / rise, 1.0) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def _check(num_steps: int) -> None:
    if num_steps < 1:
        raise Refused(f"lr_schedule.num_steps is {num_steps}; it must be at least 1.")
