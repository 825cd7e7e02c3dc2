"""The U-Net of Ho et al. (2020), App. B, with the options of Nichol & Dhariwal (2021) and a class label.

Each level has half the resolution of the one above it. The way down keeps every feature map; the way up
takes them back, last first, and joins each to its own by channels.
The names of the parameters are those of the PyTorch ports of the authors' weights (`temb.dense.0.weight`,
`down.1.attn.0.proj_out.bias`, ...); q, k and v alone are joined, in that order, as `qkv`.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm.errors import Refused
from ddpm.model.layers import (
    Attention,
    Downsample,
    GroupNorm,
    ResidualBlock,
    TimeEmbedding,
    Upsample,
    last_layers,
    variance_scaling_,
    xavier_,
)
from ddpm.model.levels import Down, Make, MakeBlock, Middle, Up


class UNet(nn.Module):
    """The network: at x_t and t it predicts something of the shape of x_t (and v, where sigma is learned).

    Of the data and the rest of the graph:
        shape: channels, height and width of an image. Height and width are multiples of 2^(levels - 1).
        num_classes: how many labels the data have; 0 where they have none.
        learned: does the network also give v, the second output that a learned sigma needs?
    Of the paper:
        channels: width of the first level; the embedding of time has 4 times as many.
        channel_mult: for each level, from the full resolution down, its width in multiples of `channels`.
        num_res_blocks: residual blocks of a level on the way down; the way up has one more.
        attention_resolutions: the levels with attention behind each block, named as in the papers by their
            resolution: pixels of the shorter side. The middle has attention in any case.
        num_heads: heads of each attention.
        dropout: probability in [0, 1) before the last convolution of each residual block.
        num_groups, norm_eps: of every GroupNorm.
        scale_shift_norm: time scales and shifts the second norm of a block; otherwise it is added before it.
        cos_first, half_minus_one: the order and the frequencies of `sinusoidal`.
        asymmetric_padding: of `Downsample`.
        xavier_init: weights as `xavier_`, Ho et al.; otherwise PyTorch's own, as Nichol & Dhariwal.
        zero_init_scale: the variance, in units of Xavier's, of the last layer of each residual branch and of
            the network: 1e-10 in Ho et al.'s code, 0 in Nichol & Dhariwal's.
        class_conditional: embed the label beside time; the label `null_label` stands for none.
        rescale_time: the caller feeds (t - 1) * 1000 / T rather than t - 1; the network only says so.

    Initialisation draws from torch's global generator, always the same numbers for the same arguments.
    Raises Refused where a value is impossible or does not fit the others.
    """

    null_label: int | None  # num_classes; None where the network is unconditional

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        num_classes: int,
        learned: bool,
        channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        num_heads: int,
        dropout: float,
        num_groups: int,
        norm_eps: float,
        scale_shift_norm: bool,
        cos_first: bool,
        half_minus_one: bool,
        asymmetric_padding: bool,
        xavier_init: bool,
        zero_init_scale: float,
        class_conditional: bool,
        rescale_time: bool,
    ) -> None:
        super().__init__()
        _check_numbers(channels, channel_mult, num_res_blocks, dropout, norm_eps, zero_init_scale)
        _check_divisors(channels, num_groups, num_heads)
        _check_size(shape, len(channel_mult))
        _check_attention(shape, len(channel_mult), attention_resolutions)
        if class_conditional and num_classes < 1:
            raise Refused("The data have no labels to condition on: set model.class_conditional=false.")
        self.rescale_time = rescale_time
        self.null_label = num_classes if class_conditional else None

        res = partial(
            ResidualBlock,
            temb_dim=4 * channels,
            num_groups=num_groups,
            eps=norm_eps,
            dropout=dropout,
            scale_shift=scale_shift_norm,
        )
        attend = partial(Attention, num_heads=num_heads, num_groups=num_groups, eps=norm_eps)
        halve = partial(Downsample, asymmetric=asymmetric_padding)
        widths = [channels * mult for mult in channel_mult]
        sides = _sides(shape, len(widths))
        attends: list[Make] = [attend if side in attention_resolutions else nn.Identity for side in sides]

        self.temb = TimeEmbedding(channels=channels, cos_first=cos_first, half_minus_one=half_minus_one)
        self.label_emb = nn.Embedding(num_classes + 1, 4 * channels) if class_conditional else None
        self.conv_in = nn.Conv2d(shape[0], channels, 3, padding=1)
        self.down = nn.ModuleList(_way_down(channels, widths, num_res_blocks, res, attends, halve))
        self.mid = Middle(widths[-1], res, attend)
        self.up = nn.ModuleList(_way_up(channels, widths, num_res_blocks, res, attends))
        self.norm_out = GroupNorm(num_groups, widths[0], norm_eps)
        self.conv_out = nn.Conv2d(widths[0], shape[0] * (1 + learned), 3, padding=1)
        self._initialise(xavier_init, zero_init_scale)

    def _initialise(self, xavier_init: bool, zero_init_scale: float) -> None:
        if xavier_init:
            xavier_(self)
        for layer in [*last_layers(self), self.conv_out]:
            variance_scaling_(layer, zero_init_scale)
        self.to(memory_format=torch.channels_last)  # every activation follows its convolution

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction at x (b, c, h, w), in its dtype: (b, c, h, w), or (b, 2c, h, w) where v follows it.

        time: (b,), 0-based, whole or not, already rescaled. label: (b,) int64 in {0, ..., null_label}; None
        means null_label for every image. Raises Refused for a label where the network is unconditional.
        """
        temb = self._embedding(time, label, x.dtype)
        maps = [self.conv_in(x)]
        for down in self.down:
            maps += down(maps[-1], temb)
        h = self.mid(maps[-1], temb)
        for up in reversed(self.up):
            h = up(h, temb, maps)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(h)))
        return out.to(x.dtype)

    def _embedding(self, time: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What every residual block is told (b, 4 * channels); their common swish is taken here, once."""
        temb: Tensor = self.temb(time, dtype)
        if self.label_emb is not None:
            null = torch.full_like(time, self.label_emb.num_embeddings - 1, dtype=torch.long)
            temb = temb + self.label_emb(null if label is None else label)
        elif label is not None:
            raise Refused("This model knows no labels: train one with model.class_conditional=true.")
        return functional.silu(temb)


def _way_down(
    channels: int, widths: list[int], n: int, res: MakeBlock, attends: list[Make], halve: Make
) -> Iterator[Down]:
    """The levels from the full resolution down, n blocks each."""
    above = [channels, *widths[:-1]]
    for i, width in enumerate(widths):
        downsample = halve(width) if i < len(widths) - 1 else None
        yield Down([above[i]] + [width] * (n - 1), width, res, attends[i], downsample)


def _way_up(channels: int, widths: list[int], n: int, res: MakeBlock, attends: list[Make]) -> Iterator[Up]:
    """The levels of the way up, also from the full resolution down, n + 1 blocks each.

    A level takes back the n maps that its blocks made on the way down and the one that came from above.
    """
    above, below = [channels, *widths[:-1]], [*widths[1:], widths[-1]]
    for i, width in enumerate(widths):
        channels_in = [below[i] + width] + [2 * width] * (n - 1) + [width + above[i]]
        yield Up(channels_in, width, res, attends[i], Upsample(width) if i > 0 else None)


def _sides(shape: tuple[int, int, int], levels: int) -> list[int]:
    """The shorter side of each level's feature maps."""
    return [min(shape[1:]) // 2**i for i in range(levels)]


def _demand(met: bool, sentence: str) -> None:
    if not met:
        raise Refused(sentence)


def _check_numbers(
    channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    dropout: float,
    norm_eps: float,
    zero_init_scale: float,
) -> None:
    """Each number by itself."""
    _demand(
        channels >= 4 and channels % 2 == 0,
        f"model.channels must be an even number of at least 4, not {channels}.",
    )
    _demand(
        len(channel_mult) > 0 and all(mult >= 1 for mult in channel_mult),
        f"model.channel_mult must give each level a whole number of at least 1, not {list(channel_mult)}.",
    )
    _demand(1 <= num_res_blocks <= 64, f"model.num_res_blocks must lie between 1 and 64, not {num_res_blocks}.")
    _demand(0 <= dropout < 1, f"model.dropout must lie in [0, 1), not {dropout}.")
    _demand(norm_eps > 0, f"model.norm_eps must be positive, not {norm_eps}.")
    _demand(zero_init_scale >= 0, f"model.zero_init_scale must not be negative, not {zero_init_scale}.")


def _check_divisors(channels: int, num_groups: int, num_heads: int) -> None:
    """Every width is a multiple of `channels`, so what divides it divides them all."""
    for name, number in (("num_groups", num_groups), ("num_heads", num_heads)):
        _demand(
            number >= 1 and channels % number == 0,
            f"model.{name} must divide model.channels={channels}, which {number} does not.",
        )


def _check_size(shape: tuple[int, int, int], levels: int) -> None:
    channels, height, width = shape
    step = 2 ** (levels - 1)
    _demand(channels >= 1, f"Images need at least 1 channel, not {channels}.")
    _demand(
        min(height, width) >= step and height % step == 0 and width % step == 0,
        f"Images of {height}x{width} pixels cannot be halved {levels - 1} times: choose both among {step}, "
        f"{2 * step}, {3 * step}, ... (multiples of {step}), or give model.channel_mult fewer levels.",
    )


def _check_attention(shape: tuple[int, int, int], levels: int, resolutions: Sequence[int]) -> None:
    sides = _sides(shape, levels)
    _demand(
        set(resolutions) <= set(sides),
        f"model.attention_resolutions={list(resolutions)} must be among the levels' shorter sides, {sides}: "
        f"change it, or choose a model= for images of {shape[1]}x{shape[2]}, such as model=mnist for 28x28 "
        "and model=ddpm_cifar10 for 32x32.",
    )
