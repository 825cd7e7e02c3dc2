"""The levels of the U: what lies between two changes of resolution."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Make = Callable[[int], nn.Module]  # of the number of channels
MakeBlock = Callable[[int, int], nn.Module]  # of the numbers of channels that go in and come out


class Down(nn.Module):
    """One level of the way down: residual blocks, attention behind each, and a halving unless it is the last.

    channels_in: for each block, the channels that it is given; every block returns `width`.
    res(channels_in, width) and attend(width) make the blocks and what follows each of them.
    """

    def __init__(
        self,
        channels_in: Sequence[int],
        width: int,
        res: MakeBlock,
        attend: Make,
        downsample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(res(channels, width) for channels in channels_in)
        self.attn = nn.ModuleList(attend(width) for _ in channels_in)
        self.downsample = downsample

    def forward(self, h: Tensor, temb: Tensor) -> list[Tensor]:
        """Every feature map of the level, the last of them being the input of the next level."""
        maps = []
        for block, attn in zip(self.block, self.attn, strict=True):
            h = attn(block(h, temb))
            maps.append(h)
        return maps if self.downsample is None else [*maps, self.downsample(h)]


class Middle(nn.Module):
    """The bottom of the U: residual block, attention, residual block."""

    def __init__(self, width: int, res: MakeBlock, attend: Make) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = res(width, width), attend(width), res(width, width)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(h, temb)), temb)
        return out


class Up(nn.Module):
    """One level of the way up: like Down, but each block joins a map of the way down to its input, whose
    channels `channels_in` counts, and the level may end in a doubling."""

    def __init__(
        self,
        channels_in: Sequence[int],
        width: int,
        res: MakeBlock,
        attend: Make,
        upsample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(res(channels, width) for channels in channels_in)
        self.attn = nn.ModuleList(attend(width) for _ in channels_in)
        self.upsample = upsample

    def forward(self, h: Tensor, temb: Tensor, maps: list[Tensor]) -> Tensor:
        """The features that the level hands on; it takes its maps from the end of the list."""
        for block, attn in zip(self.block, self.attn, strict=True):
            h = attn(block(torch.cat((h, maps.pop()), dim=1), temb))
        return h if self.upsample is None else self.upsample(h)
