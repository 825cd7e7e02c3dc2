"""The most memory that a contender has held."""

import resource
import sys

import torch

_PER_MB = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kilobytes


def forget(device: torch.device) -> None:
    """Begin anew, which only a GPU's count can: what chooses kernels takes more than a step does. On a CPU tasks that
    need little stand first."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def megabytes(device: torch.device) -> float:
    """Of this process on a CPU, libraries and all; on a GPU what PyTorch holds for tensors, the pools of CUDA graphs
    with it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _PER_MB
