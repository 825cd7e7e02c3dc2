"""This framework, through the code that a user's commands run."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.speed.flops import flops, size
from benchmarks.speed.pace import Over, Pace, current
from benchmarks.speed.worker import Spec, Task
from ddpm.build import Config, build_data, build_diffusion, build_sampler, compile_network
from ddpm.cli import plain
from ddpm.diffusion import GaussianDiffusion
from ddpm.images import to_uint8
from ddpm.model.layers import Upsample
from ddpm.runs import Run
from ddpm.sampler import Noise, Sampler, Step
from ddpm.sampling import SamplingModule
from ddpm.trainer import build_trainer
from ddpm.training import train
from ddpm.types import Images

CONF = Path(__file__).parents[2] / "conf"
WITHOUT_ENDING = ["trainer.max_steps=1000000", "trainer.limit_val_batches=0", "metric=[]", "optimized_metric=null"]


class Contender:
    """Tasks from a config, which is composed as train.py composes it."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def tasks(self) -> Mapping[str, Task]:
        problem = self.spec.problem
        average = problem.callbacks[:1]
        return {
            "sample_step": self.sample,
            "ddim50": self.draw,
            "train_step": partial(self.train, average, []),
            "train_loop": partial(self.train, problem.callbacks, ["csv"]),
            "epoch": partial(self.train, problem.callbacks, ["csv"]),
            **({} if self.spec.setting.compiled else {"loader": self.load}),
        }

    def facts(self) -> dict[str, Any]:
        """Upsampling is counted as it is defined, and as the peers do it: a convolution of repeated pixels."""
        network = self.network("meta")
        for part in network.modules():
            if isinstance(part, Upsample):
                part.forward = part.repeated
        return {"parameters": size(network), "flops": flops(network, call, self.spec.problem.shape)}

    def config(self, *more: str) -> Config:
        problem, precision = self.spec.problem, self.spec.setting.precision
        gpu = self.spec.device.type == "cuda"
        where = ["trainer.accelerator=gpu", "trainer.benchmark=true"] if gpu else ["trainer.accelerator=cpu"]
        how = [f"trainer.precision={'bf16-mixed' if precision == 'bf16' else '32-true'}"]
        size = [f"data.batch_size={problem.train_batch}"]
        chosen = [*problem.overrides, *where, *how, *size, *self.spec.setting.compiled, *more]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return plain(compose("train", chosen))

    def diffusion(self, cfg: Config) -> GaussianDiffusion:
        return build_diffusion(cfg, build_data(cfg).facts)

    def network(self, device: str) -> nn.Module:
        with torch.device(device):
            return self.diffusion(self.config()).network

    def train(self, callbacks: list[str], loggers: list[str], pace: Pace) -> None:
        """The whole of train.py but for what interrupts training."""
        lists = [f"callbacks=[{','.join(callbacks)}]", f"logger=[{','.join(loggers)}]"]
        pacer = "+callbacks.pacer={_target_: benchmarks.speed.ours.Pacer}"
        with TemporaryDirectory() as folder:
            train(self.config(*WITHOUT_ENDING, *lists, pacer), Run(Path(folder), None))

    def sample(self, pace: Pace) -> None:
        """Step after step of ancestral sampling, with the noise that enters each."""
        self.predict(self.config("sampler=ancestral"), partial(Paced, pace=pace), [])

    def draw(self, pace: Pace) -> None:
        """Whole images, from noise to bytes."""
        self.predict(self.config("sampler=ddim", "sampler.num_steps=50"), lambda sampler: sampler, [Bytes(pace)])

    def predict(self, cfg: Config, wrap: Any, callbacks: list[Callback]) -> None:
        diffusion = self.diffusion(cfg)
        compile_network(cfg, diffusion)
        sampler, problem = wrap(build_sampler(cfg, diffusion)), self.spec.problem
        module = SamplingModule(diffusion, sampler, shape=problem.shape, seed=0, label=None, guidance=1.0)
        batches = DataLoader(Endless(problem.sample_batch), batch_size=None)
        trainer = build_trainer(cfg, callbacks)
        trainer.predict(module, batches, return_predictions=False)

    def load(self, pace: Pace) -> None:
        """Batches as training sees them: read, moved to the device, scaled and flipped."""
        cfg = self.config()
        data = build_data(cfg)
        data.trainer = build_trainer(cfg)
        data.trainer.training = True
        data.setup("fit")
        pace.begin()
        for raw in data.train_dataloader():
            data.on_after_batch_transfer(data.transfer_batch_to_device(raw, self.spec.device, 0), 0)
            pace.tick()


def call(network: nn.Module, x: Tensor, time: Tensor) -> Tensor:
    """The network's one output."""
    out: Tensor = network(x, time)
    return out


class Pacer(Callback):
    """A training in rounds. It stands behind the other callbacks, so that a step ends when they are through."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        current().begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        try:
            current().tick()
        except Over:
            trainer.should_stop = True


class Bytes(Callback):
    """A drawing in rounds, with each batch made into bytes."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pace.begin()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        to_uint8(outputs).cpu()
        self.pace.tick()


class Paced(Sampler):
    """Another sampler's way, in rounds."""

    def __init__(self, sampler: Sampler, pace: Pace) -> None:
        self.sampler, self.pace = sampler, pace

    def trajectory(
        self, diffusion: GaussianDiffusion, x_T: Images, noise: Noise, start: int | None = None
    ) -> Iterator[Step]:
        self.pace.begin()
        for step in self.sampler.trajectory(diffusion, x_T, noise, start):
            yield step
            self.pace.tick()


class Endless(IterableDataset[Tensor]):
    """The indices of the images of one batch, again and again."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.arange(self.size)
