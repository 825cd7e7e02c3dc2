"""A training run from its resolved config to its scores."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback

from ddpm.build import (
    Config,
    build_callbacks,
    build_data,
    build_loggers,
    build_module,
    build_trainer,
    refuse_batch,
)
from ddpm.callbacks.ema import EMA
from ddpm.callbacks.evaluation import Evaluate
from ddpm.callbacks.run_log import RunLog
from ddpm.checkpoint import read
from ddpm.checkpoint_io import AtomicCheckpointIO
from ddpm.errors import Refused
from ddpm.instantiate import check_value
from ddpm.noise import Stream, scalar
from ddpm.report import announce, training_report
from ddpm.runs import Run

ROOT_TYPES = {
    "seed": int,
    "name": str,
    "runs": str,
    "resume": str | None,
    "label_dropout": float,
    "optimized_metric": str | None,
}


def settings(config: Config) -> Config:
    """The config, if the keys that belong to no group have possible values."""
    for key, kind in ROOT_TYPES.items():
        check_value(config[key], kind, key)
    return config


def train(config: Config, run: Run) -> dict[str, float]:
    """Train as the config says, go on where the run's last checkpoint left off, and return the scores."""
    data = build_data(config)
    torch.manual_seed(scalar(config["seed"], Stream.INIT))
    module = build_module(config, data.facts)
    data.prepare_data()
    data.setup("fit")  # what can not be read shows before anything else starts
    callbacks = build_callbacks(config, run.folder, data, module)
    log, loggers = RunLog(run.folder), build_loggers(config, run.folder)
    trainer = build_trainer(config, callbacks, [log, *loggers], plugins=[AtomicCheckpointIO()])
    refuse_batch(data.batch_size, trainer)
    for logger in loggers:
        logger.log_hyperparams(config)
    announce(config, trainer, module, run.folder)
    trainer.fit(module, datamodule=data, ckpt_path=resumed(run, log, callbacks), weights_only=True)
    scores = next((callback.scores for callback in callbacks if isinstance(callback, Evaluate)), {})
    if trainer.is_global_zero:
        training_report(run.folder, log, scores)
    return scores


def resumed(run: Run, log: RunLog, callbacks: Sequence[Callback]) -> Path | None:
    """The checkpoint to go on from, if there is one; the log is cut back to where it was then."""
    if not run.last_checkpoint.exists():
        return None
    content = read(run.last_checkpoint)
    if "averaging_state" in content and not any(isinstance(callback, EMA) for callback in callbacks):
        raise Refused(
            "this run has averaged weights and can not go on without callbacks.ema; add it, or set name=NAME."
        )
    if run.lock is not None:
        log.cut(content["callbacks"]["SaveLast"]["log_bytes"])
    return run.last_checkpoint
