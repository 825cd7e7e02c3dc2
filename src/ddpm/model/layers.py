"""The parts of the U-Net of Ho et al. (2020), App. B, with what Nichol & Dhariwal (2021) change in them.

In channels_last, which a UNet's weights are in, nothing here makes a copy to leave it. On CUDA PyTorch's own GroupNorm
does, unless it is compiled (`compile=blocks`).
Under autocast, convolutions, linear maps and attention run in low precision, while the timestep embedding,
the statistics of GroupNorm and the softmax are accumulated in float32.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm.model.winograd import Conv3x3

FEW_PIXELS = 64  # on a CPU, by `python -m benchmarks.convolutions`


def sinusoidal(time: Tensor, dim: int, *, cos_first: bool, half_minus_one: bool) -> Tensor:
    """The timestep embedding, time (b,) to float32 (b, dim): sines and cosines of time * 10000^(-i / n).

    With half = dim / 2 and i = 0, ..., half - 1, Ho et al.'s code has n = half - 1 and the sines first;
    Nichol & Dhariwal's has n = half and the cosines first. dim is even and at least 4.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=time.device) / (half - half_minus_one)
    angle = time.float()[:, None] * torch.exp(-math.log(10_000) * exponent)
    parts = (angle.cos(), angle.sin()) if cos_first else (angle.sin(), angle.cos())
    return torch.cat(parts, dim=1)


class TimeEmbedding(nn.Module):
    """time (b,) to (b, 4 * channels): the sinusoids, as `dtype`, through two dense layers around a swish."""

    def __init__(self, *, channels: int, cos_first: bool, half_minus_one: bool) -> None:
        super().__init__()
        self.channels, self.cos_first, self.half_minus_one = channels, cos_first, half_minus_one
        self.dense = nn.ModuleList([nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, 4 * channels)])

    def forward(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        waves = sinusoidal(time, self.channels, cos_first=self.cos_first, half_minus_one=self.half_minus_one)
        out: Tensor = self.dense[1](functional.silu(self.dense[0](waves.to(dtype))))
        return out


class GroupNorm(nn.GroupNorm):
    """Group normalisation in the dtype of its weights, float32 under autocast, that returns the dtype it is given.

    On CUDA autocast does the same, but for casting back, which spares the next layers that width. On a CPU the kernel
    would take bfloat16, but is slower with it: its gradient, and whatever has few channels a group.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class Dropout(nn.Dropout):
    """Dropout that on a CPU compares 31 random bits of each value with p, which takes less time than PyTorch's own.

    What is kept is scaled before it is rounded to its dtype, so that its mean is right in bfloat16, too.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1) or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        bits = torch.empty_like(x, dtype=torch.int32).random_()
        return torch.where(bits >= min(round(self.p * 2**31), 2**31 - 1), x / (1 - self.p), 0)


class Downsample(nn.Module):
    """Halves height and width (both even) by a 3x3 convolution of stride 2.

    asymmetric: one row and column of zeros at the bottom and right alone, TensorFlow's SAME, as Ho et al.;
    otherwise one on every side, as Nichol & Dhariwal.
    """

    def __init__(self, channels: int, *, asymmetric: bool) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)
        return out


class Upsample(nn.Module):
    """Doubles height and width: each pixel repeated, then a 3x3 convolution.

    Both are one transposed convolution of stride 2, whose 4x4 kernel holds sums of the 3x3 one's taps: where two
    of them meet one repeated pixel, its product is formed once. That takes 4/9 of the multiplications. They are done
    apart where `Conv3x3` takes a quarter, and on a CPU where wide maps are so small that the sums would cost more.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        few = x.device.type == "cpu" and self.conv.wide and x.shape[-2] * x.shape[-1] < FEW_PIXELS
        return self.repeated(x) if few or self.conv.suits(x, scale=2) else self.transposed(x)

    def repeated(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out

    def transposed(self, x: Tensor) -> Tensor:
        kernel = _doubled(_doubled(self.conv.weight, 2), 3).transpose(0, 1)
        return functional.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


def _doubled(kernel: Tensor, dim: int) -> Tensor:
    """The four taps along dim of a transposed convolution that repeats each pixel before the three of `kernel`."""
    first, second, third = kernel.unbind(dim)
    return torch.stack((third, second + third, first + second, first), dim)


class ResidualBlock(nn.Module):
    """norm, swish, conv, (time), norm, swish, dropout, conv, added to the input.

    The embedding of time, already through its swish (every block shares it), is added between the
    convolutions; or, with scale_shift (Nichol & Dhariwal's "AdaGN"), scales and shifts the second norm.
    The input passes through a 1x1 convolution where the number of channels changes.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        temb_dim: int,
        num_groups: int,
        eps: float,
        dropout: float,
        scale_shift: bool,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = GroupNorm(num_groups, channels_in, eps)
        self.conv1 = Conv3x3(channels_in, channels_out)
        self.temb_proj = nn.Linear(temb_dim, 2 * channels_out if scale_shift else channels_out)
        self.norm2 = GroupNorm(num_groups, channels_out, eps)
        self.dropout = Dropout(dropout)
        self.conv2 = Conv3x3(channels_out, channels_out)
        self.nin_shortcut = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self._norm2(h, self.temb_proj(temb)[:, :, None, None])
        h = self.conv2(self.dropout(functional.silu(h)))
        out: Tensor = self.nin_shortcut(x) + h
        return out

    def _norm2(self, h: Tensor, time: Tensor) -> Tensor:
        """The second norm, as time (b, channels_out or twice as many, 1, 1) conditions it."""
        if not self.scale_shift:
            out: Tensor = self.norm2(h + time)
            return out
        scale, shift = time.chunk(2, dim=1)
        return torch.addcmul(shift, self.norm2(h), 1 + scale)


class Attention(nn.Module):
    """Self-attention over the pixels, added to the input: softmax(q k / sqrt(d)) v with d channels a head.

    qkv is one dense layer: its rows are all of q, then of k, then of v, each of them head after head.
    """

    def __init__(self, channels: int, *, num_heads: int, num_groups: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm(num_groups, channels, eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(b, h * w, c)  # a view in channels_last
        q, k, v = self.qkv(pixels).view(b, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        out: Tensor = self.proj_out(mixed)
        return x + out.view(b, h, w, c).permute(0, 3, 1, 2)


def xavier_(network: nn.Module) -> None:
    """Every dense and convolutional weight uniform with variance 1 / fan_avg, their biases 0: Ho et al.

    q, k and v are layers of their own to this rule, though they share one tensor here.
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            variance_scaling_(layer, 1.0)
    for layer in network.modules():
        if isinstance(layer, Attention):
            for weight in layer.qkv.weight.detach().chunk(3):
                nn.init.xavier_uniform_(weight)


def last_layers(network: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """The layer that ends each residual branch: it begins (nearly) at zero, and so each branch as well."""
    blocks = [part for part in network.modules() if isinstance(part, (ResidualBlock, Attention))]
    return [part.conv2 if isinstance(part, ResidualBlock) else part.proj_out for part in blocks]


def variance_scaling_(layer: nn.Conv2d | nn.Linear, scale: float) -> None:
    """Weight uniform with variance scale / fan_avg, so exactly 0 where scale is; bias 0."""
    nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(scale))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
