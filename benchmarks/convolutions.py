"""What our convolutions save: `python -m benchmarks.convolutions`.

`model=ddpm_cifar10` as it is takes turns with itself with one thing undone: with 3x3 convolutions as PyTorch computes
them, which matters on a CPU alone, and with each pixel repeated before an upsampling's 3x3 convolution instead of a
transposed one. Forward, and forward with backward. Printed are the median over the rounds of the quotient of their
times, and its quartiles.
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
from ddpm.model.winograd import direct

BATCH, SHAPE, ROUNDS = 8, (3, 32, 32), 9
CONF = Path(__file__).parents[1] / "conf/model/ddpm_cifar10.yaml"
Step = Callable[[], object]


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


def told(name: str, ours: Step, undone: Step) -> None:
    quotients = [taken["undone"] / taken["ours"] for taken in rounds({"ours": ours, "undone": undone}, ROUNDS)]
    low, middle, high = statistics.quantiles(quotients, n=4)
    print(f"{name:40} {middle:.3f} times the rate (quartiles {low:.3f} and {high:.3f})", flush=True)


def directly(step: Step) -> None:
    with direct():
        step()


def compare(name: str, step: Callable[[UNet], object], ours: UNet, repeated: UNet) -> None:
    told(f"{name}: 3x3 by Winograd", lambda: step(ours), lambda: directly(lambda: step(ours)))
    told(f"{name}: upsampling", lambda: step(ours), lambda: step(repeated))


if __name__ == "__main__":
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    both = [network(repeats, device) for repeats in (False, True)]
    x = torch.randn(BATCH, *SHAPE, device=device).to(memory_format=torch.channels_last)
    t = torch.arange(BATCH, device=device)
    with torch.inference_mode():
        compare("forward", lambda unet: unet.eval()(x, t), *both)
    compare("forward and backward", lambda unet: unet.train()(x, t).square().mean().backward(), *both)
