"""What the small measurements share: contenders that take turns."""

import time
from collections.abc import Callable, Mapping

import torch


def rounds(contenders: Mapping[str, Callable[[], object]], count: int) -> list[dict[str, float]]:
    """The seconds of each in every round; one more, which warms up, comes before them."""
    return [{name: seconds(what) for name, what in contenders.items()} for _ in range(count + 1)][1:]


def seconds(what: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    what()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
