"""A training run from its resolved config to its scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from pydantic import StrictBool

from ddpm.build import (
    Config,
    build_callbacks,
    build_data,
    build_loggers,
    build_module,
    build_trainer,
    refuse_batch,
    refuse_relaunch,
    refuse_scaling,
)
from ddpm.callbacks.checkpoint import PREVIOUS
from ddpm.callbacks.ema import EMA
from ddpm.callbacks.evaluation import Evaluate
from ddpm.callbacks.run_log import RunLog
from ddpm.checkpoint import MODEL_GROUPS, read
from ddpm.checkpoint_io import AtomicCheckpointIO
from ddpm.errors import Refused
from ddpm.instantiate import check_value
from ddpm.noise import Stream, scalar
from ddpm.report import announce, console, training_report
from ddpm.runs import Run

PLACE_TYPES = {"name": str, "runs": str, "resume": str | None}
ROOT_TYPES = {
    "seed": int,
    "label_dropout": float,
    "input_perturbation": float,
    "zero_terminal_snr": StrictBool,  # a word such as "no" would count as true
    "optimized_metric": str | None,
}


def check_place(config: Config) -> None:
    """The keys that say where a run is must have possible values before there is a place to note others."""
    for key, kind in PLACE_TYPES.items():
        check_value(config[key], kind, key)


def settings(config: Config) -> Config:
    """The config, if the keys that belong to no group have possible values."""
    for key, kind in ROOT_TYPES.items():
        check_value(config[key], kind, key)
    return config


def train(config: Config, run: Run, in_sweep: bool = False) -> dict[str, float]:
    """Train as the config says, go on where the run's last checkpoint left off, and return the scores."""
    data = build_data(config)
    torch.manual_seed(scalar(config["seed"], Stream.INIT))
    module = build_module(config, data.facts)
    data.prepare_data()
    data.setup("fit")  # what can not be read shows before anything else starts
    callbacks = build_callbacks(config, run.folder, data, module)
    metric = config["optimized_metric"]
    if metric is not None and not any(isinstance(callback, Evaluate) for callback in callbacks):
        raise Refused(f"optimized_metric={metric} needs callbacks.evaluation; add it, or set optimized_metric=null.")
    log, loggers = RunLog(run.folder), build_loggers(config, run.folder)
    trainer = build_trainer(config, callbacks, [log, *loggers], [AtomicCheckpointIO()], run.folder)
    refuse_batch(data.batch_size, trainer)
    refuse_scaling(config, trainer)
    refuse_relaunch(trainer, in_sweep)
    checkpoint = resumed(run, log, callbacks, config)
    if run.lock is not None:
        (run.folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
    for logger in loggers:
        logger.log_hyperparams(config)
    announce(config, trainer, module, run.folder)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    scores = next((callback.scores for callback in callbacks if isinstance(callback, Evaluate)), {})
    if trainer.is_global_zero:
        training_report(run.folder, log, scores)
    return scores


def resumed(run: Run, log: RunLog, callbacks: Sequence[Callback], config: Config) -> Path | None:
    """The checkpoint to go on from, if there is one; the log is cut back to where it was then."""
    if not run.last_checkpoint.exists():
        if run.lock is not None:
            log.cut(0)
        return None
    path, content = newest(run)
    refuse_change(content["ddpm"]["config"], config)
    if "averaging_state" in content and not any(isinstance(callback, EMA) for callback in callbacks):
        raise Refused(
            "this run has averaged weights and can not go on without callbacks.ema; add it, or set name=NAME."
        )
    if run.lock is not None:
        log.cut(content["callbacks"]["SaveLast"]["log_bytes"])
    return path


def newest(run: Run) -> tuple[Path, dict[str, Any]]:
    """The run's last checkpoint, or the one before it where that is damaged."""
    previous = run.last_checkpoint.with_name(PREVIOUS)
    try:
        return run.last_checkpoint, read(run.last_checkpoint)
    except Refused as damage:
        if not previous.exists():
            raise
        console.print(f"{damage} This run goes on from {previous}.", soft_wrap=True)
        return previous, read(previous)


def refuse_change(before: Config, now: Config) -> None:
    """A run goes on as it began: what shapes the model, the data or their order may not change."""
    shaping = ("seed", "objective", "timestep", "label_dropout", "input_perturbation", "zero_terminal_snr")
    pairs = [(key, before.get(key), now.get(key)) for key in (*MODEL_GROUPS, *shaping)]
    pairs += [(f"data.{key}", before["data"].get(key), now["data"].get(key)) for key in sorted(now["data"])]
    for key, old, new in pairs:
        if old != new and key not in ("data.root", "data.num_workers", "data.download"):
            raise Refused(f"this run was begun with another {key}; leave it as it was, or set name=NAME for a new run.")
