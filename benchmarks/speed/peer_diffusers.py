"""diffusers, as its training example and its pipelines use it."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.flops import flops, size
from benchmarks.speed.pace import Pace
from benchmarks.speed.peer import autocast, epochs, one_batch, prepared, tick, to_sample
from benchmarks.speed.worker import Spec, Task

diffusers: Any = import_module("diffusers")  # it makes its names as they are asked for, which no type checker sees
optimization: Any = import_module("diffusers.optimization")
training_utils: Any = import_module("diffusers.training_utils")
LONG = 1_000_000  # steps of the learning rate's schedule


class Contender:
    """UNet2DModel with DDPMScheduler and DDIMScheduler.

    Best settings: fused AdamW, averages in one kernel, no loss read back each step; for sampling in bf16,
    all of the network in bf16.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def tasks(self) -> Mapping[str, Task]:
        return {
            "sample_step": partial(self.sample, "DDPMScheduler", 1000),
            "ddim50": self.draw,
            "train_step": lambda pace: self.train(one_batch(self.spec), pace),
            "epoch": lambda pace: self.train(epochs(self.spec), pace),
        }

    def facts(self) -> dict[str, Any]:
        with torch.device("meta"):
            network = diffusers.UNet2DModel(**self.spec.problem.unet2d)
        return {"parameters": size(network), "flops": flops(network, call, self.spec.problem.shape)}

    def train(self, batches: Iterator[Tensor], pace: Pace) -> None:
        best = self.spec.setting.best
        unet = prepared(diffusers.UNet2DModel(**self.spec.problem.unet2d), self.spec).train()
        optimizer = torch.optim.AdamW(
            unet.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8, fused=best or None
        )
        schedule = optimization.get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=LONG)
        average = training_utils.EMAModel(
            unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=best
        )
        noising = diffusers.DDPMScheduler(num_train_timesteps=1000)
        pace.begin()
        for images in batches:
            noise = torch.randn_like(images)
            time = torch.randint(0, 1000, (len(images),), device=images.device)
            noisy = noising.add_noise(images, noise, time)
            with autocast(self.spec):
                loss = nn.functional.mse_loss(call(unet, noisy, time).float(), noise)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            average.step(unet.parameters())
            if not best:
                loss.item()  # as the example logs it
            tick(pace, images, self.spec)

    @torch.no_grad()
    def sample(self, kind: str, steps: int, pace: Pace) -> None:
        """The loop of its pipelines."""
        unet, shape = to_sample(diffusers.UNet2DModel(**self.spec.problem.unet2d), self.spec), self.spec.problem.shape
        scheduler = getattr(diffusers, kind)(num_train_timesteps=1000)
        scheduler.set_timesteps(steps)
        pace.begin()
        while True:
            x = torch.randn(self.spec.problem.sample_batch, *shape, device=self.spec.device)
            for t in scheduler.timesteps:
                with self.mixed(unet):
                    output = call(unet, x.to(unet.dtype), t).float()
                x = scheduler.step(output, t, x).prev_sample
                pace.tick()

    def draw(self, pace: Pace) -> None:
        unet = to_sample(diffusers.UNet2DModel(**self.spec.problem.unet2d), self.spec)
        pipeline = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler(num_train_timesteps=1000))
        pipeline.set_progress_bar_config(disable=True)
        pace.begin()
        while True:
            with self.mixed(unet):
                drawn = pipeline(self.spec.problem.sample_batch, num_inference_steps=50, output_type="pt").images
            drawn.float().cpu()  # its other types of output know no bf16
            pace.tick()

    def mixed(self, unet: Any) -> AbstractContextManager[None]:
        """Mixed precision to draw with, for a network that is not all of bf16."""
        return nullcontext() if unet.dtype == torch.bfloat16 else autocast(self.spec)


def call(network: nn.Module, x: Tensor, time: Tensor) -> Tensor:
    """The network's one output."""
    out: Tensor = network(x, time).sample
    return out
