"""A network whose weights are spread over the ranks (PyTorch's FSDP2), for one that a GPU cannot hold in training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from ddpm.model.layers import Attention, ResidualBlock


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Spread a network over the ranks of a mesh, in place: each residual block and each attention is gathered when it
    computes, and given up afterwards. Its weights lie row after row, whatever their memory format was."""
    network.to(memory_format=torch.contiguous_format)
    parts = [part for part in network.modules() if isinstance(part, ResidualBlock | Attention)]
    for part in (*parts, network):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Within it each rank holds all weights of what `shard` has spread, so that ranks may call it unequally often."""
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def whole(value: Tensor) -> Tensor:
    """A number that all ranks have a part in, on each of them."""
    return value.full_tensor() if isinstance(value, DTensor) else value
