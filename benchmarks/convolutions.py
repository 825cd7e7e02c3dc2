"""What our convolutions save: `python -m benchmarks.convolutions`.

First, on a CPU, single 3x3 convolutions by Winograd's algorithm over PyTorch's own: where it gains nothing, it is not
used. Then upsampling as a transposed convolution over each pixel repeated before a 3x3 convolution, both PyTorch's own.
At last `model=ddpm_cifar10` as it is over the same with all convolutions PyTorch's own, and with these over the same
with all pixels repeated. What is compared takes turns, forward and forward with backward. Printed are the median over
the rounds of the quotient of their times, and its quartiles.
"""

import statistics
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from benchmarks.turns import rounds
from ddpm.model import UNet
from ddpm.model.layers import Upsample
from ddpm.model.winograd import convolution, direct

BATCH, SHAPE, ROUNDS = 8, (3, 32, 32), 9
CONF = Path(__file__).parents[1] / "conf/model/ddpm_cifar10.yaml"
Call = Callable[[], Tensor]


class Repeated(nn.Module):
    """What Upsample computes, as it is defined."""

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample.repeated(x)


def network(repeats: bool, device: torch.device) -> UNet:
    options: dict[str, Any] = yaml.safe_load(CONF.read_text())
    options.pop("_target_")
    unet = UNet(shape=SHAPE, num_classes=0, learned=False, **options)
    for level in unet.up:
        if repeats and isinstance(level.upsample, Upsample):
            level.upsample = Repeated(level.upsample)
    return unet.to(device, memory_format=torch.channels_last)


def compare(name: str, ours: Call, other: Call) -> None:
    """Forward alone, and with the gradients of whatever wants one."""
    with torch.no_grad():
        told(f"{name}, forward", ours, other)
    told(f"{name}, with backward", lambda: ours().mean().backward(), lambda: other().mean().backward())


def told(name: str, ours: Callable[[], object], other: Callable[[], object]) -> None:
    quotients = [taken["other"] / taken["ours"] for taken in rounds({"ours": ours, "other": other}, ROUNDS)]
    low, middle, high = statistics.quantiles(quotients, n=4)
    print(f"{name:52} {middle:.2f} times the rate (quartiles {low:.2f} and {high:.2f})", flush=True)


def directly(call: Call) -> Tensor:
    with direct():
        return call()


def single(channels: int, side: int) -> None:
    conv = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(BATCH, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
    compare(f"{channels} channels, {side}x{side}", lambda: convolution(x, conv.weight, conv.bias), lambda: conv(x))


def upsampled(channels: int, side: int) -> None:
    part = Upsample(channels).to(memory_format=torch.channels_last)
    x = torch.randn(BATCH, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
    ways = [lambda way=way: directly(lambda: way(x)) for way in (part.transposed, part.repeated)]
    compare(f"transposed from {channels} channels, {side}x{side}", *ways)


def whole(device: torch.device) -> None:
    unet, repeated = (network(repeats, device) for repeats in (False, True))
    x = torch.randn(BATCH, *SHAPE, device=device).to(memory_format=torch.channels_last)
    t = torch.arange(BATCH, device=device)
    compare("ddpm_cifar10", lambda: unet(x, t), lambda: directly(lambda: unet(x, t)))
    ways = [lambda unet=unet: directly(lambda: unet(x, t)) for unet in (unet, repeated)]
    compare("its transposed convolutions", *ways)


if __name__ == "__main__":
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        for channels, side in product((32, 64, 128, 256), (8, 16, 32)):
            single(channels, side)
        for channels, side in product((64, 128, 256), (4, 6, 8, 16)):
            upsampled(channels, side)
    whole(device)
