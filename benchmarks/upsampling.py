"""What it saves that the U-Net's upsamplings are transposed convolutions: `python -m benchmarks.upsampling`.

`model=ddpm_cifar10` as it is, and with each pixel repeated before a 3x3 convolution, take turns: forward, and forward
with backward. Printed are the median over the rounds of the quotient of their times, and its quartiles.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.turns import rounds
from ddpm.model import UNet
from ddpm.model.layers import Upsample

BATCH, SHAPE, ROUNDS = 8, (3, 32, 32), 9
CONF = Path(__file__).parents[1] / "conf/model/ddpm_cifar10.yaml"


class Repeated(nn.Module):
    """What Upsample computes, written as it is defined."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def network(repeats: bool, device: torch.device) -> UNet:
    options: dict[str, Any] = yaml.safe_load(CONF.read_text())
    options.pop("_target_")
    unet = UNet(shape=SHAPE, num_classes=0, learned=False, **options)
    for level in unet.up:
        if repeats and isinstance(level.upsample, Upsample):
            level.upsample = Repeated(level.upsample.conv)
    return unet.to(device, memory_format=torch.channels_last)


def told(name: str, ours: Callable[[], object], direct: Callable[[], object]) -> None:
    quotients = [taken["direct"] / taken["ours"] for taken in rounds({"ours": ours, "direct": direct}, ROUNDS)]
    low, middle, high = statistics.quantiles(quotients, n=4)
    print(f"{name:24} {middle:.3f} times the rate (quartiles {low:.3f} and {high:.3f})")


if __name__ == "__main__":
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    both = [network(repeats, device) for repeats in (False, True)]
    x = torch.randn(BATCH, *SHAPE, device=device).to(memory_format=torch.channels_last)
    t = torch.arange(BATCH, device=device)
    with torch.inference_mode():
        told("forward", *[lambda unet=unet: unet.eval()(x, t) for unet in both])
    told("forward and backward", *[lambda unet=unet: unet.train()(x, t).square().mean().backward() for unet in both])
