"""Lightning's Trainer as a config asks for it."""

import logging
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ParallelStrategy

from ddpm.build import Config
from ddpm.callbacks.ema import EMA
from ddpm.callbacks.lifeline import Lifeline
from ddpm.callbacks.patience import Patience
from ddpm.callbacks.progress import Progress
from ddpm.compile import GRAPHS
from ddpm.data.stream import micro_batch
from ddpm.errors import Refused
from ddpm.instantiate import make, target_of
from ddpm.precision import BFloat16Mixed, device_of, precision
from ddpm.sharded import Sharded

NOWHERE = Path(os.devnull)  # in a job of SLURM, Lightning takes weights from any hpc_ckpt_* where it works


def build_trainer(
    cfg: Config,
    callbacks: Iterable[Callback] = (),
    loggers: Iterable[Logger] = (),
    plugins: Iterable[Any] = (),
    folder: Path | None = None,
) -> Trainer:
    """Lightning's Trainer, with its precision chosen, its intervals in optimiser steps, and our own loaders."""
    quieten()
    node = dict(cfg["trainer"])
    node["precision"] = precision(node["precision"], node["accelerator"])
    if node["precision"] == "bf16-mixed":
        keeps_casts = not spreads(node.get("strategy"))
        plugins = [*plugins, BFloat16Mixed(device_of(node["accelerator"]), keeps_casts=keeps_casts)]
        node["precision"] = None  # the plugin says it
    if isinstance(node.get("val_check_interval"), int):
        node["val_check_interval"] *= node["accumulate_grad_batches"]
    watched = [Lifeline(folder=folder), Patience(), *callbacks]
    if not any(isinstance(callback, Progress) for callback in watched):
        node["enable_progress_bar"] = False  # Lightning's own would stand in
    if spreads(node.get("strategy")):
        refuse_sharding(node["precision"], watched)
    refuse_absent(node["accelerator"])
    node["accelerator"] = device_of(node["accelerator"])
    made = {"callbacks": watched, "logger": list(loggers), "plugins": list(plugins)}
    trainer: Trainer = make(node, "trainer", default_root_dir=folder or NOWHERE, **made)
    refuse_other_launch(trainer)
    return trainer


def refuse_other_launch(trainer: Trainer) -> None:
    """As many processes as the trainer asks for have to be there. One of a single device would not look, and each of
    several would do the whole work."""
    asked = trainer.num_devices * trainer.num_nodes
    started = int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else asked
    if started != asked:
        raise Refused(
            f"torchrun has started {started} processes, and the trainer is of {asked}; take trainer=ddp, or on CPUs "
            "ddp_cpu, with trainer.devices processes on each of trainer.num_nodes nodes."
        )
    if isinstance(trainer.strategy, ParallelStrategy) and trainer.strategy.cluster_environment is not None:
        try:
            trainer.strategy.cluster_environment.validate_settings(trainer.num_devices, trainer.num_nodes)
        except ValueError as fault:  # SLURM's tasks are others
            raise Refused(str(fault)) from fault


def refuse_absent(accelerator: str) -> None:
    """A GPU that is asked for has to be there, and one of CUDA: the numbers need float64, which Apple's have not."""
    if accelerator not in ("auto", "cpu") and not torch.cuda.is_available():
        raise Refused("trainer asks for a GPU of CUDA, and PyTorch finds none here; take trainer=cpu or ddp_cpu.")


def spreads(strategy: Any) -> bool:
    """Does a node of a strategy spread the weights over the ranks?"""
    return isinstance(strategy, Mapping) and target_of(strategy, "trainer.strategy") is Sharded


def refuse_sharding(precision: str | None, callbacks: Iterable[Callback]) -> None:
    """Weights that are spread over ranks."""
    if any(isinstance(callback, EMA) for callback in callbacks):
        raise Refused("callbacks.ema cannot average weights that trainer=fsdp spreads over ranks; add ~callbacks.ema.")
    if precision == "16-mixed":
        raise Refused("trainer=fsdp has no loss scaling for trainer.precision=16-mixed; take bf16-mixed or 32-true.")
    if not torch.cuda.is_available():
        raise Refused("trainer=fsdp spreads a model over GPUs, and there is none; take trainer=ddp_cpu or trainer=cpu.")


def quieten() -> None:
    """Keep what Lightning says of workers that are not needed, of PyTorch's versions and of its products."""
    for text in ("does not have many workers", "infer the batch indices", "predict returned None"):
        warnings.filterwarnings("ignore", f".*{text}.*")
    for text in ("LeafSpec", "broadcast_buffers", "all_gather"):
        warnings.filterwarnings("ignore", f".*{text}.* is deprecated")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)


def refuse_scaling(cfg: Config, trainer: Trainer) -> None:
    """A loss scaler must see the gradients before the optimiser, and clipping must too."""
    if trainer.precision == "16-mixed" and cfg["optimizer"].get("fused"):
        raise Refused(
            "trainer.precision=16-mixed scales the loss, which a fused optimiser hides; add optimizer.fused=false."
        )


def refuse_replays(cfg: Config, trainer: Trainer) -> None:
    """CUDA graphs own the gradients that they return, and write over them when the next micro-batch is replayed."""
    if trainer.accumulate_grad_batches > 1 and (cfg.get("compile") or {}).get("mode") in GRAPHS:
        raise Refused(
            f"compile.mode={cfg['compile']['mode']} captures CUDA graphs, which do not keep the gradients of several "
            "micro-batches; take compile.mode=max-autotune-no-cudagraphs, or trainer.accumulate_grad_batches=1."
        )


def refuse_batch(batch_size: int, trainer: Trainer) -> None:
    """Before anything is restored: raises Refused where the global batch cannot be shared out evenly."""
    micro_batch(batch_size, trainer.world_size, trainer.accumulate_grad_batches)
