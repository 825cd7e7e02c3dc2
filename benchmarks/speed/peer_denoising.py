"""denoising-diffusion-pytorch, as its own Trainer uses it."""

from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.flops import flops, size
from benchmarks.speed.pace import Pace
from benchmarks.speed.peer import autocast, epochs, one_batch, prepared, tick, to_sample
from benchmarks.speed.worker import Spec, Task

denoising: Any = import_module("denoising_diffusion_pytorch")  # neither of the packages has types
attend: Any = import_module("denoising_diffusion_pytorch.attend")
ema_pytorch: Any = import_module("ema_pytorch")


class Contender:
    """Unet with GaussianDiffusion.

    Best settings: fused Adam, averages in one kernel and at each step as everybody else's, scaled dot-product
    attention, no loss read back each step; for sampling in bf16, weights in bf16.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def tasks(self) -> Mapping[str, Task]:
        return {
            "sample_step": partial(self.sample, 1000),
            "ddim50": self.draw,
            "train_step": lambda pace: self.train(one_batch(self.spec), pace),
            "epoch": lambda pace: self.train(epochs(self.spec), pace),
        }

    def facts(self) -> dict[str, Any]:
        with torch.device("meta"):
            network = self.unet()
        return {"parameters": size(network), "flops": flops(network, call, self.spec.problem.shape)}

    def unet(self) -> nn.Module:
        unet: nn.Module = denoising.Unet(**self.spec.problem.unet, flash_attn=self.spec.setting.best)
        for part in unet.modules():
            if isinstance(part, attend.Attend):  # on a GPU it allows one kernel alone, which float32 does not have
                part.cuda_config = part.cpu_config
        return unet

    def diffusion(self, unet: nn.Module, steps: int) -> Any:
        side = self.spec.problem.shape[-1]
        return denoising.GaussianDiffusion(unet, image_size=side, timesteps=1000, sampling_timesteps=steps).to(
            self.spec.device
        )

    def train(self, batches: Iterator[Tensor], pace: Pace) -> None:
        best = self.spec.setting.best
        diffusion = self.diffusion(prepared(self.unet(), self.spec), 1000).train()
        optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99), fused=best or None)
        average = self.average(diffusion)
        pace.begin()
        for images in batches:
            with autocast(self.spec):
                loss = diffusion((images + 1) / 2)
            if not best:
                loss.item()  # as its Trainer shows it
            loss.backward()
            torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update()
            tick(pace, images, self.spec)

    def average(self, diffusion: nn.Module) -> Any:
        """As its Trainer has it, which copies every tenth step up to the hundredth and averages every tenth from
        there. At its best each step averages, and the count of steps stays on the CPU, where reading it waits for
        nobody."""
        if not self.spec.setting.best:
            return ema_pytorch.EMA(diffusion, beta=0.995, update_every=10).to(self.spec.device)
        return ema_pytorch.EMA(diffusion, beta=0.995, update_every=1, update_after_step=0, use_foreach=True)

    def sample(self, steps: int, pace: Pace) -> None:
        """Its own loop, which asks for the network's opinion once a step."""
        diffusion = self.diffusion(to_sample(self.unet(), self.spec), steps)
        ask = diffusion.model_predictions

        def paced(*arguments: Any, **options: Any) -> Any:
            pace.begin()
            with autocast(self.spec):
                said = ask(*arguments, **options)
            pace.tick()
            return said

        diffusion.model_predictions = paced
        while True:
            diffusion.sample(batch_size=self.spec.problem.sample_batch)

    def draw(self, pace: Pace) -> None:
        diffusion = self.diffusion(to_sample(self.unet(), self.spec), 50)
        pace.begin()
        while True:
            with autocast(self.spec):
                diffusion.sample(batch_size=self.spec.problem.sample_batch).mul(255).byte().cpu()
            pace.tick()


def call(network: nn.Module, x: Tensor, time: Tensor) -> Tensor:
    """The network's one output."""
    out: Tensor = network(x, time)
    return out
