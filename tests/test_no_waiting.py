"""A training step asks the device for nothing while nothing is logged: the host never waits for it."""

import traceback
from typing import Any

import pytest
import torch
from compose import composed
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode
from yamls import names

from ddpm.build import build_callbacks, build_data, build_diffusion, build_module, build_sampler
from ddpm.sampling import draw
from ddpm.trainer import build_trainer

WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}
WAITS.add(torch.ops.aten.lift_fresh.default)  # torch.tensor(...), which would have to be copied to the device


class Watch(TorchDispatchMode):
    """Notes the operations whose result a host would have to wait for, if the tensors were on a device. The counter
    of the average always is on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        stack = traceback.extract_stack()
        if function in WAITS and not any(frame.filename.endswith("callbacks/ema.py") for frame in stack):
            self.seen.append("".join(stack.format()))
        return function(*args, **(kwargs or {}))


class Watched(Callback):
    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_start(self, trainer, pl_module):
        self.watch.__enter__()

    def on_train_end(self, trainer, pl_module):
        self.watch.__exit__(None, None, None)


@pytest.mark.parametrize(
    "objective",
    [["sigma=learned_range", "objective=hybrid", "timestep=loss_aware"], pytest.param([], marks=pytest.mark.slow)],
)
def test_a_step_waits_for_nothing(objective, tmp_path):
    small = ["model=tiny", "trainer=cpu", "trainer.precision=32-true", "trainer.max_steps=3", "data.batch_size=8"]
    quiet = ["trainer.log_every_n_steps=100", "callbacks=[ema_warmup]", "logger=[]", "optimized_metric=null"]
    config = composed(
        *small, *quiet, "metric=[]", "trainer.limit_val_batches=0", "trainer.enable_progress_bar=false", *objective
    )
    data = build_data(config)
    module = build_module(config, data.facts)
    watch = Watch()
    callbacks = [*build_callbacks(config, tmp_path, data, module), Watched(watch)]
    build_trainer(config, callbacks, [], [], tmp_path).fit(module, datamodule=data)
    assert not watch.seen, watch.seen[0]
    with watch:
        torch.ones(1).item()
    assert len(watch.seen) == 1  # it would have noticed
    with watch:
        torch.tensor([1])
    assert len(watch.seen) == 2


OURS = sorted({*names("sampler")} - {"diffusers"})  # whose tables are on the CPU


@pytest.mark.parametrize("name", OURS)
def test_a_step_of_sampling_waits_for_nothing(name):
    config = composed("model=tiny", "schedule.num_steps=6", f"sampler={name}", "sampler.num_steps=3")
    data = build_data(config)
    diffusion = build_diffusion(config, data.facts).eval()
    sampler, indices = build_sampler(config, diffusion), torch.arange(2)
    with Watch() as watch, torch.no_grad():
        draw(diffusion, sampler, indices, data.facts.shape, seed=0)
    assert not watch.seen, watch.seen[0]
