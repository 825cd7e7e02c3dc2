"""A training run from its resolved config to its scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from omegaconf import OmegaConf
from pydantic import StrictBool
from torch import Tensor, nn
from torch.optim import Optimizer

from ddpm import strangers
from ddpm.build import (
    Config,
    build_callbacks,
    build_data,
    build_loggers,
    build_module,
    refuse_gaps,
)
from ddpm.callbacks.checkpoint import PREVIOUS
from ddpm.callbacks.ema import EMA
from ddpm.callbacks.evaluation import Evaluate
from ddpm.callbacks.run_log import RunLog
from ddpm.callbacks.stop import StopWhenAsked
from ddpm.checkpoint import MODEL_GROUPS, Unreadable, resumable
from ddpm.checkpoint_io import AtomicCheckpointIO, remove, room_in
from ddpm.errors import Refused
from ddpm.instantiate import check_value, check_values, shortened, target_of
from ddpm.loggers import is_id, keep_id, kept_id
from ddpm.meeting import meet
from ddpm.noise import Stream, scalar
from ddpm.privacy import public
from ddpm.report import announce, console, training_report
from ddpm.runs import Run
from ddpm.trainer import build_trainer, refuse_batch, refuse_replays, refuse_scaling
from ddpm.whole import whole

PLACE_TYPES = {"name": str, "runs": str, "resume": str | None}
ROOT_TYPES = {
    "seed": int,
    "label_dropout": float,
    "input_perturbation": float,
    "zero_terminal_snr": StrictBool,  # a word such as "no" would count as true
    "optimized_metric": str | None,
}
# What says nothing of a checkpoint; the last three are RuntimeErrors, of the memory, the device and the network.
UNTOUCHED = (Refused, torch.OutOfMemoryError, torch.AcceleratorError, torch.distributed.DistError)


def check_place(config: Config) -> None:
    """The keys that say where a run is must have possible values before there is a place to note others."""
    check_values(config, PLACE_TYPES)


def settings(config: Config) -> Config:
    """The config, if the keys that belong to no group have possible values."""
    check_values(config, ROOT_TYPES)
    refuse_gaps(config)
    return config


def train(config: Config, run: Run) -> dict[str, float]:
    """Train as the config says, go on where the run's last checkpoint left off, and return the scores."""
    data = build_data(config)
    torch.manual_seed(scalar(config["seed"], Stream.INIT))
    module = build_module(config, data.facts)
    data.prepare_data()
    data.setup("fit")  # what cannot be read shows before anything else starts
    callbacks = build_callbacks(config, run.folder, data, module)
    metric = config["optimized_metric"]
    if metric is not None and not any(isinstance(callback, Evaluate) for callback in callbacks):
        raise Refused(f"optimized_metric={metric} needs callbacks.evaluation; add it, or set optimized_metric=null.")
    start = newest(run)
    if start is not None:
        keep_wandb_id(run, start)
    log, loggers = RunLog(run.folder), build_loggers(config, run.folder)
    plugins = [AtomicCheckpointIO()]
    trainer = build_trainer(config, [StopWhenAsked(), *callbacks], [log, *loggers], plugins, run.folder)
    refuse_batch(data.batch_size, trainer)
    refuse_scaling(config, trainer)
    refuse_replays(config, trainer)
    if start is not None:
        refuse_other(start.content, config, callbacks)
    beginning = Beginning(run, config, log, start)
    del start  # or its weights would stay in memory
    for logger in loggers:
        logger.log_hyperparams(module.card["config"])
    announce(config, trainer, module, run.folder)
    with room_in(run.folder, "then go on from the last checkpoint with resume=auto"):
        fit(trainer, module, data, beginning)
        scores = next((callback.scores for callback in callbacks if isinstance(callback, Evaluate)), {})
        if trainer.is_global_zero:
            training_report(run.folder, log, scores)
    return scores


class Beginning(Callback):
    """The first trace that a command leaves in a run's folder, once all that a checkpoint holds is restored: one
    that is refused leaves the folder as it was. The log is cut back to where it was then.

    Where a run goes on from the checkpoint before its last, as that is damaged or gone, this one becomes the last
    again: so what is saved next keeps it, and not the damaged one.
    """

    def __init__(self, run: Run, config: Config, log: RunLog, start: "Start | None") -> None:
        self.run, self.config, self.run_log, self.begun = run, config, log, False
        self.checkpoint = start.path if start else None
        self.step: int = start.content["global_step"] if start else 0
        self.log_bytes = start.content["callbacks"]["SaveLast"]["log_bytes"] if start else 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Once the ranks are connected, and before any of them restores what it has found: one that has no step left
        to do would not come to the start of training."""
        if trainer.world_size > 1:
            refuse_different_steps(self.step, trainer.world_size, self.run.folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer, scheduler in zip(trainer.optimizers, trainer.lr_scheduler_configs, strict=True):
            refuse_misfit(optimizer, pl_module.make_optimizer)  # type: ignore[arg-type]
            take_numbers(optimizer, scheduler.scheduler)
        self.begin()

    def begin(self) -> None:
        """Once, and only where this process may write to the run."""
        if self.run.lock is not None and not self.begun:
            self.run_log.cut(self.log_bytes)
            with whole(self.run.folder / "config.yaml") as part:
                part.write_text(OmegaConf.to_yaml(self.config))
            if self.checkpoint is not None and self.checkpoint != self.run.last_checkpoint:
                remove(self.run.last_checkpoint)
                self.checkpoint.replace(self.run.last_checkpoint)
        self.begun = True


def refuse_different_steps(step: int, ranks: int, folder: Path) -> None:
    """Raises Refused, on all ranks, where they go on from checkpoints of different steps: only the weights of rank 0
    would reach the others, and not its optimiser, averages and images."""
    steps = [step] * ranks
    torch.distributed.all_gather_object(steps, step)
    if len(set(steps)) > 1:
        found = ", ".join(map(str, sorted(set(steps))))
        raise Refused(
            f"the ranks find other checkpoints in {folder}, of the steps {found}; give a folder that all nodes share "
            "(runs=FOLDER or resume=FOLDER)."
        )


def refuse_misfit(optimizer: Optimizer, make: Callable[[Sequence[Tensor]], Optimizer]) -> None:
    """Raises ValueError, or AttributeError, where a checkpoint has brought another state than such an optimiser keeps
    of its parameters.

    It would only show in the first step; and a fused one writes, without looking, where its parameters have numbers. So
    the state is laid out as they are.
    """
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = {like: state_of_one(make, *like) for like in {(parameter.ndim, parameter.device) for parameter in own}}
    for parameter, state in optimizer.state.items():
        for name, value in kept[parameter.ndim, parameter.device].items() if state else ():
            if not is_alike(state.get(name), value, parameter):
                raise ValueError(f"the optimiser's {name} is not that of a parameter of {tuple(parameter.shape)}")
            if state[name].shape == parameter.shape and state[name].stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(state[name])


def state_of_one(make: Callable[[Sequence[Tensor]], Optimizer], ndim: int, device: torch.device) -> Mapping[str, Any]:
    """What an optimiser keeps of a parameter with so many dimensions, 2, 3, ... wide."""
    parameter = nn.Parameter(torch.zeros(*range(2, 2 + ndim), device=device))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = make([parameter])
    optimizer.step(lambda: 0.0)  # some ask for a loss
    return {name: value for name, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}


def is_alike(value: Any, usual: Tensor, parameter: Tensor) -> bool:
    """Is it of the parameter's shape, or a count, where that is usual?"""
    if not isinstance(value, Tensor):
        return False
    if usual.shape == tuple(range(2, 2 + parameter.ndim)):
        return value.shape == parameter.shape
    return usual.ndim > 0 or (value.ndim == 0 and value.dtype == usual.dtype and bool(value >= 0))


def take_numbers(optimizer: Optimizer, scheduler: Any) -> None:
    """Go on with the config's learning rate and its other numbers, where a checkpoint has brought its own."""
    rates = [optimizer.defaults["lr"] * factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    scheduler.base_lrs = [optimizer.defaults["lr"] for _ in rates]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group |= optimizer.defaults | {"initial_lr": optimizer.defaults["lr"], "lr": rate}


def fit(trainer: Trainer, module: LightningModule, data: LightningDataModule, beginning: Beginning) -> None:
    """Train. Raises Refused for a checkpoint that is whole and does not fit this run."""
    trainer.callbacks.insert(0, beginning)  # type: ignore[attr-defined]
    checkpoint = beginning.checkpoint
    meet()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        if checkpoint is None or beginning.begun or isinstance(error, UNTOUCHED) or strangers.unread(error):
            raise
        reason = shortened(f"{type(error).__name__}: {error}")
        raise Refused(f"{checkpoint} does not fit this run ({reason}); set name=NAME for a new one.") from error
    beginning.begin()  # where no step was left to do


@dataclass(frozen=True)
class Start:
    """The checkpoint that a run goes on from."""

    path: Path
    content: dict[str, Any]


def refuse_other(content: dict[str, Any], config: Config, callbacks: Sequence[Callback]) -> None:
    """Raises Refused where a checkpoint is of a run that this command cannot go on with."""
    refuse_change(content["ddpm"]["config"], config)
    tell_other_rate(content["ddpm"]["config"], config, content["global_step"])
    if "averaging_state" in content and not any(isinstance(callback, EMA) for callback in callbacks):
        raise Refused("this run has averaged weights and cannot go on without callbacks.ema; add it, or set name=NAME.")


def newest(run: Run) -> Start | None:
    """The run's last checkpoint, or the one before it where that is damaged or gone. Raises Unreadable where the disk
    fails: the last one may be whole, and would be lost."""
    last, previous = run.last_checkpoint, run.last_checkpoint.with_name(PREVIOUS)
    told = f"{last} is gone."
    if last.exists():
        try:
            return Start(last, resumable(last))
        except Unreadable:
            raise
        except Refused as damage:
            if not previous.exists():
                raise
            told = str(damage)
    if not previous.exists():
        return None
    start = Start(previous, resumable(previous))
    if run.lock is not None:
        console.print(f"{told} This run goes on from {previous}.", soft_wrap=True, markup=False)
    return start


def keep_wandb_id(run: Run, start: Start) -> None:
    """A folder that has lost the id of its run at W&B has it from the checkpoint."""
    run_id = start.content["callbacks"]["SaveLast"].get("wandb_id")
    if run.lock is not None and is_id(run_id) and not kept_id(run.folder):
        keep_id(run.folder, run_id)


def tell_other_rate(before: Config, now: Config, step: int) -> None:
    """Say where a run does not go on as if it had been as long from the start."""
    trainer = before.get("trainer")
    old, new = trainer.get("max_steps") if isinstance(trainer, dict) else None, now["trainer"]["max_steps"]
    bends = "max_steps" in signature(target_of(now["lr_schedule"], "lr_schedule")).parameters
    if bends and isinstance(old, int) and old != new:
        console.print(
            f"this run was begun for {old} steps: the learning rate goes on from step {step} as in a run of {new}, "
            "which the steps before did not.",
            soft_wrap=True,
        )


KINDS = ("_target_", "fused", "foreach", "amsgrad")  # of an optimiser: its state is that of these


def refuse_change(before: Config, now: Config) -> None:
    """A run goes on as it began. Raises Refused where what shapes the model, the data or their order has changed."""
    check_value([before], list[dict[str, Any]], "the checkpoint's config")  # in a list, as it could be a node
    before, now = public(before), public(now)  # where things are may change
    old = {name: before[name] if isinstance(before.get(name), dict) else {} for name in ("optimizer", "data")}
    shaping = ("seed", "objective", "timestep", "label_dropout", "input_perturbation", "zero_terminal_snr")
    pairs = [(key, before.get(key), now.get(key)) for key in (*MODEL_GROUPS, *shaping)]
    pairs += [(f"optimizer.{key}", old["optimizer"].get(key), now["optimizer"].get(key)) for key in KINDS]
    pairs += [(f"data.{key}", old["data"].get(key), now["data"].get(key)) for key in sorted(now["data"])]
    for key, was, new in pairs:
        if was != new and key not in ("data.root", "data.num_workers", "data.download"):
            raise Refused(f"this run was begun with another {key}; leave it as it was, or set name=NAME for a new run.")
