"""3x3 convolutions with a quarter of the multiplications: F(4x4, 3x3) of Lavin & Gray (2016), arXiv:1509.09308.

The 4x4 results of a tile depend on 6x6 values x and the kernel w of 3x3, and are (sec. 4.3)

    A^T [(G w G^T) * (B^T x B)] A

with one product for each of 36 elements: over all tiles and channels, 36 matrix products. Here x, w and the results are
vectors of 36, 9 and 16, and each transform is one matrix, the Kronecker product of that above with itself. In exact
arithmetic this is the convolution; in float32 it rounds about three times as much as one done directly.

cudnn has it on GPUs. On a CPU PyTorch's own convolution does every multiplication, and the gradient of a weight at half
the rate of the rest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS, PIXELS = 64, 256  # with fewer the transforms cost what the products save
TILES = 128  # at once, so that what lies between the products fits into a processor's cache

_A = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
_B = torch.tensor(
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
RESULTS, VALUES, WEIGHTS = torch.kron(_A, _A), torch.kron(_B, _B), torch.kron(_24G, _24G).double() / 24**2
BIAS = 7  # of the 36 elements: what is added there is added to each of the 16 results


class Conv3x3(nn.Conv2d):
    """A convolution of stride 1 between zeros, which keeps height and width.

    In float32 on a CPU, large maps take the way with fewer multiplications. Their shape decides and not how many there
    are, so that the size of a batch does not choose how an image is rounded.
    """

    fast = True

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.fast and min(self.in_channels, self.out_channels) >= CHANNELS and _suits(x)):
            return super().forward(x)
        out: Tensor = convolution(x, self.weight, self.bias)
        return out


@contextmanager
def direct() -> Iterator[None]:
    """Within it all convolutions are PyTorch's own: to compare with, and for torch.func, which knows no others."""
    Conv3x3.fast = False
    try:
        yield
    finally:
        Conv3x3.fast = True


def _suits(x: Tensor) -> bool:
    h, w = x.shape[2:]
    float32 = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and float32 and h % 4 == w % 4 == 0 and h * w >= PIXELS


@torch.library.custom_op("ddpm::conv3x3", mutates_args=())
def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (b, c, h, w), weight (d, c, 3, 3), bias (d,) to (b, d, h, w) in channels_last. h and w are multiples of 4.

    To torch.compile this and its gradients are operators, and not their parts.
    """
    return _convolved(x, _elements(weight, WEIGHTS).permute(1, 2, 0), bias)


@torch.library.custom_op("ddpm::conv3x3_input", mutates_args=())
def of_input(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of x: the convolution of grad (b, d, h, w) with the kernels turned by 180 degrees."""
    return _convolved(grad, _elements(weight, WEIGHTS.flip(1)).transpose(0, 1), None)


@torch.library.custom_op("ddpm::conv3x3_weight", mutates_args=())
def of_weight(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of the weight, (d, c, 3, 3) in channels_last."""
    products = x.new_zeros(36, grad.shape[1], x.shape[1])
    for images, grads in zip(_pieces(x), _pieces(grad), strict=True):
        elements = RESULTS.t().to(x.dtype) @ _tiles(grads, 4)
        products.baddbmm_(elements.permute(1, 2, 0), _values(images))
    taps = WEIGHTS.t().to(x.dtype) @ products.transpose(0, 1)
    return taps.view(-1, 3, 3, x.shape[1]).permute(0, 3, 1, 2)


@convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    return _outline(x, len(x), len(weight), *x.shape[2:])


@of_input.register_fake
def _(grad: Tensor, weight: Tensor) -> Tensor:
    return _outline(grad, len(grad), weight.shape[1], *grad.shape[2:])


@of_weight.register_fake
def _(grad: Tensor, x: Tensor) -> Tensor:
    return _outline(x, grad.shape[1], x.shape[1], 3, 3)


def _outline(like: Tensor, *shape: int | torch.SymInt) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:2])


def _of_convolution(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
    x, weight = ctx.saved_tensors
    of_x, _, of_bias = ctx.needs_input_grad
    return of_input(grad, weight) if of_x else None, of_weight(grad, x), grad.sum((0, 2, 3)) if of_bias else None


def _of_of_input(ctx: Any, other: Tensor) -> tuple[Tensor, Tensor]:
    grad, weight = ctx.saved_tensors
    return convolution(other, weight, None), of_weight(grad, other)


def _of_of_weight(ctx: Any, other: Tensor) -> tuple[Tensor, Tensor]:
    grad, x = ctx.saved_tensors
    return convolution(x, other, None), of_input(grad, other)


convolution.register_autograd(_of_convolution, setup_context=_keep)
of_input.register_autograd(_of_of_input, setup_context=_keep)
of_weight.register_autograd(_of_of_weight, setup_context=_keep)


def _elements(weight: Tensor, transform: Tensor) -> Tensor:
    """The 36 elements of each kernel: (d, c, 3, 3) to (d, 36, c)."""
    return transform.to(weight.dtype) @ weight.permute(0, 2, 3, 1).flatten(1, 2)


def _convolved(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """x (b, c, h, w), kernels (36, c, d), bias (d,) to (b, d, h, w)."""
    b, _, h, w = x.shape
    out = x.new_empty(b, h // 4, 4, w // 4, 4, kernels.shape[2])
    pieces = _pieces(x)
    for images, results in zip(pieces, torch.split(out, len(pieces[0])), strict=True):
        products = torch.bmm(_values(images), kernels)
        if bias is not None:
            products[BIAS] += bias
        tiles = RESULTS.to(x.dtype) @ products.transpose(0, 1)
        results.copy_(tiles.view(results.transpose(2, 3).shape).transpose(2, 3))
    return out.view(b, h, w, -1).permute(0, 3, 1, 2)


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    """A few images at a time, (n, h, w, c)."""
    at_once = max(1, 16 * TILES // (x.shape[2] * x.shape[3]))
    return torch.split(x.permute(0, 2, 3, 1).contiguous(), at_once)


def _values(images: Tensor) -> Tensor:
    """The 36 elements of each tile and its rim: (n, h, w, c) to (36, tiles, c)."""
    tiles = _tiles(functional.pad(images, (0, 0, 1, 1, 1, 1)), 6)
    return (VALUES.to(images.dtype) @ tiles).transpose(0, 1)


def _tiles(images: Tensor, side: int) -> Tensor:
    """Squares that begin at every fourth pixel: (n, h, w, c) to (tiles, side * side, c)."""
    return images.unfold(1, side, 4).unfold(2, side, 4).permute(0, 1, 2, 4, 5, 3).flatten(0, 2).flatten(1, 2)
