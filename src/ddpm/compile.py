"""Compiling a network, in place: its names, its weights and its averages stay what they are."""

from typing import Any, Literal

import torch
from torch import nn

from ddpm.errors import Refused
from ddpm.model.layers import Attention, ResidualBlock

Kernels = Literal["default", "max-autotune-no-cudagraphs", "max-autotune", "reduce-overhead"]
GRAPHS = ("max-autotune", "reduce-overhead")  # the kernels of these are captured as CUDA graphs


def blocks(*, network: nn.Module, mode: Kernels) -> None:
    """Each residual block and each attention for itself. Those of one shape share their code, so that this is
    compiled in a fraction of the time that the whole takes.

    With a mode that captures CUDA graphs, what a block returns lies in memory that the graphs own. Without
    gradients each replay would count as a new step, and take what the blocks before it returned: the network
    says where its step begins.
    """
    make_room()
    network.register_forward_pre_hook(begin_step)
    for part in network.modules():
        if isinstance(part, ResidualBlock | Attention):
            part.compile(mode=mode, dynamic=False)


def begin_step(*_: Any) -> None:
    """Before each call of the network; for what captures no graphs it means nothing."""
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def whole(*, network: nn.Module, mode: Kernels) -> None:
    """The network as one graph, after minutes of compiling."""
    make_room()
    network.compile(mode=mode, dynamic=False, fullgraph=True)


def make_room() -> None:
    """PyTorch gives up compiling a function that it met in eight versions, and a block has one for each shape,
    in training and in evaluation, with each batch size."""
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 4096


def refuse_without_compiler() -> None:
    """Raises Refused where a processor's code could not be compiled. A GPU's is Triton's, which says what it lacks."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise Refused(
            "compile= needs a C++ compiler for a CPU, and there is none; install g++, or leave it out."
        ) from error
