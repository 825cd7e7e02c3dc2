"""3x3 convolutions with a quarter of the multiplications: F(4x4, 3x3) of Lavin & Gray (2016), arXiv:1509.09308.

The 4x4 results of a tile depend on 6x6 values x and the kernel w of 3x3, and are (sec. 4.3)

    A^T [(G w G^T) * (B^T x B)] A

with one product for each of 36 elements: over all tiles and channels, 36 matrix products. Here x, w and the results are
vectors of 36, 9 and 16, and each transform is one matrix, the Kronecker product of that above with itself. In exact
arithmetic this is the convolution; in float32 it rounds three to four times as much as one done directly.

`python -m benchmarks.convolutions` measures what it saves on a CPU. On a GPU the choice is cudnn's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

Shape = Sequence[int]

CHANNELS, PIXELS = 128, 256  # with fewer it gains little or loses: the transforms cost what the products save
TILES = 128  # at once: bounds the memory that lies between the products

_A_T = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
_B_T = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_24G = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]])
_TO_RESULTS, _TO_ELEMENTS = torch.kron(_A_T, _A_T), torch.kron(_B_T, _B_T)
_OF_KERNELS = torch.kron(_24G, _24G).double() / 24**2
_CONSTANT = 7  # of the 36 elements: what is added to it is added to each of the 16 results


class Conv3x3(nn.Conv2d):
    """A convolution of stride 1 between zeros, which keeps height and width.

    Wide and large maps in float32 on a CPU take the way with fewer multiplications. How many there are plays no part,
    so that the size of a batch does not choose the way.
    """

    fast = True

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)
        self.wide = min(channels_in, channels_out) >= CHANNELS

    def forward(self, x: Tensor) -> Tensor:
        if not self.suits(x):
            return super().forward(x)
        out: Tensor = convolution(x, self.weight, self.bias)
        return out

    def suits(self, x: Tensor, scale: int = 1) -> bool:
        """Would x, were its sides so many times as long, take the way with fewer multiplications?"""
        return self.fast and self.wide and _plain(x) and _large(scale * x.shape[-2], scale * x.shape[-1])


@contextmanager
def direct() -> Iterator[None]:
    """Within it all convolutions are PyTorch's own, in every thread: to compare with, and to export a network."""
    before, Conv3x3.fast = Conv3x3.fast, False
    try:
        yield
    finally:
        Conv3x3.fast = before


def _plain(x: Tensor) -> bool:
    """Float32 of a CPU, with nothing that our operators do not know: autocast, torch.func, derivatives forward."""
    known = not (torch.is_autocast_enabled("cpu") or _transformed())
    return known and x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == 4


def _transformed() -> bool:
    """Of a graph that is compiled the compiler asks this itself."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _large(h: int, w: int) -> bool:
    return h % 4 == w % 4 == 0 and h * w >= PIXELS


@torch.library.custom_op("ddpm::conv3x3", mutates_args=(), device_types="cpu")
def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (b, c, h, w), weight (d, c, 3, 3), bias (d,) to (b, d, h, w) in channels_last. h and w are multiples of 4.

    To torch.compile this and its gradients are operators, and not their parts.
    """
    return _convolved(x, _elements(weight, _OF_KERNELS).permute(1, 2, 0), bias)


@torch.library.custom_op("ddpm::conv3x3_input_gradient", mutates_args=(), device_types="cpu")
def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """Of x, for that of the results (b, d, h, w): their convolution with the kernels turned by 180 degrees."""
    return _convolved(grad, _elements(weight, _OF_KERNELS.flip(1)).transpose(0, 1), None)


@torch.library.custom_op("ddpm::conv3x3_weight_gradient", mutates_args=(), device_types="cpu")
def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Of the weight, (d, c, 3, 3) in channels_last, for that of the results (b, d, h, w)."""
    products = x.new_zeros(36, grad.shape[1], x.shape[1])
    for grads, values in zip(_pieces(grad, _squares), _pieces(x, _rimmed), strict=True):
        elements = _TO_RESULTS.t().to(x.dtype) @ _vectors(grads)
        products.baddbmm_(elements.permute(1, 2, 0), _values(values))
    taps = _OF_KERNELS.t().to(x.dtype) @ products.transpose(0, 1)
    return taps.view(grad.shape[1], 3, 3, x.shape[1]).permute(0, 3, 1, 2)


@convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    return _outline(x, x.shape[0], weight.shape[0], *x.shape[2:])


@input_gradient.register_fake
def _(grad: Tensor, weight: Tensor) -> Tensor:
    return _outline(grad, grad.shape[0], weight.shape[1], *grad.shape[2:])


@weight_gradient.register_fake
def _(grad: Tensor, x: Tensor) -> Tensor:
    return _outline(x, grad.shape[1], x.shape[1], 3, 3)


def _outline(like: Tensor, *shape: int | torch.SymInt) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    (x, weight), (of_x, of_weight, of_bias) = ctx.saved_tensors, ctx.needs_input_grad
    return (
        input_gradient(grad, weight) if of_x else None,
        weight_gradient(grad, x) if of_weight else None,
        grad.sum((0, 2, 3)) if of_bias else None,
    )


def _backward_of_input_gradient(ctx: Any, other: Tensor) -> tuple[Tensor, Tensor]:
    grad, weight = ctx.saved_tensors
    return convolution(other, weight, None), weight_gradient(grad, other)


def _backward_of_weight_gradient(ctx: Any, other: Tensor) -> tuple[Tensor, Tensor]:
    grad, x = ctx.saved_tensors
    return convolution(x, other, None), input_gradient(grad, other)


convolution.register_autograd(_backward, setup_context=_save)
input_gradient.register_autograd(_backward_of_input_gradient, setup_context=_save)
weight_gradient.register_autograd(_backward_of_weight_gradient, setup_context=_save)
for operator in (convolution, input_gradient, weight_gradient):
    operator.register_autocast("cpu", torch.float32)  # backward may run within it where forward did not


@register_flop_formula(
    [torch.ops.ddpm.conv3x3, torch.ops.ddpm.conv3x3_input_gradient, torch.ops.ddpm.conv3x3_weight_gradient]
)
def _operations(first: Shape, second: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    """Of the definition, as for other convolutions: what is spared counts as done."""
    kernels = out_shape if tuple(out_shape[2:]) == (3, 3) else second
    return int(conv_flop_count(list(first), list(kernels), list(first)))


def _elements(weight: Tensor, transform: Tensor) -> Tensor:
    """The 36 elements of each kernel: (d, c, 3, 3) to (d, 36, c)."""
    return transform.to(weight.dtype) @ weight.permute(0, 2, 3, 1).flatten(1, 2)


def _convolved(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """x (b, c, h, w), kernels (36, c, d), bias (d,) to (b, d, h, w)."""
    b, _, h, w = x.shape
    out = x.new_empty(b, h, w, kernels.shape[2]).permute(0, 3, 1, 2)
    for values, results in zip(_pieces(x, _rimmed), _pieces(out, _squares), strict=True):
        products = torch.bmm(_values(values), kernels)
        if bias is not None:
            products[_CONSTANT] += bias
        results.copy_((_TO_RESULTS.to(x.dtype) @ products.transpose(0, 1)).view(results.shape))
    return out


def _squares(maps: Tensor) -> Tensor:
    """The 4x4 pixels of each tile, a view: (b, d, h, w) to (b, h / 4, w / 4, 4, 4, d)."""
    b, d, h, w = maps.shape
    return maps.permute(0, 2, 3, 1).view(b, h // 4, 4, w // 4, 4, d).transpose(2, 3)


def _rimmed(maps: Tensor) -> Tensor:
    """The 6x6 pixels in and around each tile: (b, c, h, w) to (b, h / 4, w / 4, 6, 6, c)."""
    wide = functional.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    return wide.unfold(1, 6, 4).unfold(2, 6, 4).permute(0, 1, 2, 4, 5, 3)


def _pieces(maps: Tensor, tiles: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """The tiles of several images at a time, or of some rows of one."""
    rows, columns = maps.shape[2] // 4, maps.shape[3] // 4
    for images in torch.split(maps, max(1, TILES // (rows * columns))):
        yield from torch.split(tiles(images), max(1, TILES // columns), dim=1)


def _values(tiles: Tensor) -> Tensor:
    """The 36 elements of each tile: (b, y, x, 6, 6, c) to (36, tiles, c)."""
    return (_TO_ELEMENTS.to(tiles.dtype) @ _vectors(tiles)).transpose(0, 1)


def _vectors(tiles: Tensor) -> Tensor:
    """(b, y, x, n, n, c) to (tiles, n * n, c)."""
    return tiles.flatten(0, 2).flatten(1, 2)
