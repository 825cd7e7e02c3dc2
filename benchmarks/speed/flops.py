"""Floating-point operations, counted without doing them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Call = Callable[[nn.Module, Tensor, Tensor], Tensor]  # network, x (b, c, h, w), time (b,)


def flops(network: nn.Module, call: Call, shape: Sequence[int]) -> dict[str, int]:
    """Of the convolutions and matrix products for one image: forward, and forward with backward.

    The network is one of the meta device, where every tensor is a shape.
    """
    x, time = torch.empty(1, *shape, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        out = call(network, x, time)
        forward = counter.get_total_flops()
        out.sum().backward()  # type: ignore[no-untyped-call]
    return {"forward": forward, "training": counter.get_total_flops()}


def size(network: nn.Module) -> int:
    """The number of its parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
