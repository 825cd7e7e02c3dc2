"""A few numbers on their way from the device to the host, who does not wait for them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Deferred:
    """Numbers (n,), and when the host may read them: on a CPU they are there."""

    numbers: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, numbers: Tensor) -> "Deferred":
        """Copies them behind the host's back: reading them later waits for what the device was to do until now, and
        for nothing that it was asked since."""
        if not numbers.is_cuda:
            return cls(numbers, None)
        on_host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return cls(on_host, arrived)

    def read(self) -> list[float]:
        """The numbers."""
        if self.arrived is not None:
            self.arrived.synchronize()
        found: list[float] = self.numbers.tolist()
        return found
