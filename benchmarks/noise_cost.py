"""What it costs that noise is a function of (seed, image, step): `python -m benchmarks.noise_cost`.

The noise of a batch, by `ddpm.noise.normal` and by `torch.randn`, and a sampling step of `model=ddpm_cifar10`, which
take turns; the median of each, and the difference of the first two as a share of the third. It may be 5 %.
"""

import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from benchmarks.turns import rounds
from ddpm.build import build_diffusion, build_sampler
from ddpm.cli import plain
from ddpm.data.facts import Facts
from ddpm.noise import Stream, normal
from ddpm.types import times

BATCH, SHAPE, ROUNDS = 16, (3, 32, 32), 15


def contenders(device: torch.device) -> dict[str, Callable[[], object]]:
    """What takes turns."""
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        config = plain(compose("train", ["model=ddpm_cifar10", "data=cifar10"]))
    diffusion = build_diffusion(config, Facts("noise", SHAPE, 256, (), "")).to(device).eval()
    sampler = build_sampler(config, diffusion)
    image, x_t = torch.arange(BATCH, device=device), torch.randn(BATCH, *SHAPE, device=device)
    return {
        "ddpm.noise.normal": lambda: normal(0, Stream.SAMPLE, image, 500, SHAPE),
        "torch.randn": lambda: torch.randn(BATCH, *SHAPE, device=device),
        "sampling step": lambda: sampler.step(diffusion, x_t, times(500, x_t), times(499, x_t), x_t),
    }


if __name__ == "__main__":
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.inference_mode():
        taken = rounds(contenders(device), ROUNDS)
    median = {name: statistics.median(each[name] for each in taken) for name in taken[0]}
    for name, value in median.items():
        print(f"{name:20} {1000 * value:9.3f} ms for {BATCH} images on {device.type}")
    ours, theirs, step = median.values()
    print(f"{'share of a step':20} {(ours - theirs) / step:9.2%}")
