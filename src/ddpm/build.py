"""The only place where the graph of objects is wired: from a resolved config and the facts of the data.

The graph is fixed by the mathematics and only its leaves are choices. Impossible or silly pairs are
refused here, before anything runs.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from ddpm.data.facts import Facts
from ddpm.data.image_data import ImageData
from ddpm.decoder import Decoder
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import Refused
from ddpm.instantiate import check_value, make
from ddpm.metric import DataMetric, SampleMetric
from ddpm.module import DiffusionModule
from ddpm.objective import Objective, Weighted
from ddpm.precision import BFloat16Mixed, device_of, precision
from ddpm.prediction import Prediction
from ddpm.sampler import Sampler
from ddpm.schedule import NoiseSchedule, zero_terminal_snr
from ddpm.sigma import Sigma

Config = dict[str, Any]


def build_data(cfg: Config) -> ImageData:
    """The data set of a config; it opens its files when it is first asked for images."""
    data: ImageData = make(cfg["data"], "data", seed=cfg["seed"])
    return data


def build_diffusion(cfg: Config, facts: Facts) -> GaussianDiffusion:
    """The model of a config for data of these facts, with fresh weights from the global generator."""
    with torch.device("cpu"):  # the table has numbers even where the network is on the meta device
        betas = make(cfg["schedule"], "schedule")
        schedule = NoiseSchedule(zero_terminal_snr(betas) if cfg["zero_terminal_snr"] else betas)
    sigma: Sigma = make(cfg["sigma"], "sigma", eps_power=None)
    prediction: Prediction = make(cfg["prediction"], "prediction")
    decoder: Decoder = make(cfg["decoder"], "decoder")
    refuse_prediction(prediction, schedule)
    network = make(cfg["model"], "model", shape=facts.shape, num_classes=facts.num_classes, learned=sigma.learned)
    network = network.to(memory_format=torch.channels_last)
    return GaussianDiffusion(network, schedule, sigma, prediction, facts.num_levels, decoder)


def build_module(cfg: Config, facts: Facts) -> DiffusionModule:
    """The model in training."""
    diffusion = build_diffusion(cfg, facts)
    objective: Objective = make(cfg["objective"], "objective")
    refuse_objective(objective, diffusion)
    if not 0 <= cfg["label_dropout"] < 1:
        raise Refused(f"label_dropout is {cfg['label_dropout']}; it must lie in [0, 1).")
    if not 0 <= cfg["input_perturbation"] < math.inf:
        raise Refused(f"input_perturbation is {cfg['input_perturbation']}; it must be 0 or more (the paper: 0.1).")
    refuse_labels(cfg, facts)
    check_value(cfg["trainer"]["max_steps"], int, "trainer.max_steps")
    if cfg["trainer"]["max_steps"] == 0:
        raise Refused(
            "trainer.max_steps is 0, which trains nothing; take at least 1 (-1 trains until trainer.max_time)."
        )
    return DiffusionModule(
        diffusion,
        objective,
        make(cfg["timestep"], "timestep", num_steps=diffusion.num_steps),
        optimizer=build_optimizer(cfg),
        lr_factor=make(cfg["lr_schedule"], "lr_schedule", max_steps=cfg["trainer"]["max_steps"]),
        seed=cfg["seed"],
        batch_size=cfg["data"]["batch_size"],
        label_dropout=cfg["label_dropout"],
        input_perturbation=cfg["input_perturbation"],
        card={"config": cfg, "facts": facts.as_dict()},
    )


def build_optimizer(cfg: Config) -> Callable[..., torch.optim.Optimizer]:
    """The optimiser of a config, waiting for its parameters; tried on one, so that its numbers are checked."""
    optimizer: Callable[..., torch.optim.Optimizer] = make(cfg["optimizer"], "optimizer")
    try:
        optimizer([torch.nn.Parameter(torch.zeros(1, device="cpu"))])
    except (TypeError, ValueError) as error:
        raise Refused(f"optimizer: {error}") from error
    return optimizer


def build_sampler(cfg: Config, diffusion: GaussianDiffusion) -> Sampler:
    """The sampler of a config, if it can walk this model."""
    sampler: Sampler = make(cfg["sampler"], "sampler")
    visited = sampler.times(diffusion.num_steps)
    strided = len(visited) <= diffusion.num_steps
    if strided and not diffusion.sigma.strided and not sampler.has_own_sigma:
        raise Refused(
            "sigma=learned is the log-variance of one step and can not be strided; take "
            "sampler.num_steps=null, sampler=ddim, or sample with sigma=beta_tilde."
        )
    return sampler


def build_metrics(cfg: Config) -> dict[str, SampleMetric | DataMetric]:
    """The metrics of a config by the names of their scores."""
    chosen = {key: make(node, f"metric.{key}") for key, node in (cfg.get("metric") or {}).items()}
    names = [metric.name for metric in chosen.values()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Refused(f"two metrics would both be called {twice[0]}; take one of them out of metric=[...].")
    return dict(zip(names, chosen.values(), strict=True))


def build_callbacks(cfg: Config, folder: Path, data: ImageData, module: DiffusionModule) -> list[Callback]:
    """The callbacks of a config, in its order; those of ours are handed what they ask for."""
    sampler = build_sampler(cfg, module.diffusion)
    other = cfg.get("evaluation_sampler")
    available = {
        "folder": folder,
        "data": data,
        "shape": data.facts.shape,
        "metrics": build_metrics(cfg),
        "monitor": cfg["optimized_metric"],
        "sampler": sampler,
        "evaluation_sampler": build_sampler({"sampler": other}, module.diffusion) if other else sampler,
        "seed": cfg["seed"],
        "batch_size": data.batch_size,
    }
    nodes = (cfg.get("callbacks") or {}).items()
    return [make(node, f"callbacks.{key}", **available) for key, node in nodes]


def build_loggers(cfg: Config, folder: Path) -> list[Logger]:
    """The loggers of a config, writing under the run's folder."""
    nodes = (cfg.get("logger") or {}).items()
    return [make(node, f"logger.{key}", folder=folder, save_dir=folder) for key, node in nodes]


def refuse_prediction(prediction: Prediction, schedule: NoiseSchedule) -> None:
    """x_0 can not be had from eps where nothing of it is left in x_T."""
    last = torch.tensor([schedule.num_steps], device="cpu")
    if prediction.needs_signal and schedule.alpha_bar(last).item() == 0:
        raise Refused(
            "this schedule ends at alpha_bar_T = 0, where prediction=epsilon tells nothing of x_0; "
            "choose prediction=velocity, x0 or mean."
        )


def refuse_labels(cfg: Config, facts: Facts) -> None:
    """Grids and scores are of images of no label, which label dropout alone trains."""
    if cfg["model"].get("class_conditional") and facts.num_classes and cfg["label_dropout"] == 0:
        raise Refused(
            "label_dropout is 0, so the model of no label, which grids and scores are drawn from, would never be "
            "trained; set label_dropout=0.1, or model.class_conditional=false."
        )


def refuse_objective(objective: Objective, diffusion: GaussianDiffusion) -> None:
    """Every output of the network needs a gradient, and L_0 needs levels."""
    if diffusion.sigma.learned and not objective.trains_sigma:
        raise Refused(
            "this objective gives a learned sigma no gradient; choose objective=hybrid or vlb, "
            "or a fixed sigma (beta, beta_tilde)."
        )
    if objective.only_for_learned and not diffusion.sigma.learned:
        raise Refused(
            "this objective trains a learned sigma; choose sigma=learned_range or learned, or objective=simple."
        )
    if objective.needs_levels and diffusion.num_levels is None:
        raise Refused("this objective bounds a discrete likelihood, but the data have no grey levels; choose simple.")
    every = torch.arange(1, diffusion.num_steps + 1, device="cpu")
    if isinstance(objective, Weighted) and not objective.carried(diffusion, every).float().isfinite().all():
        raise Refused(
            "this objective weighs the error of x_0, which this prediction hardly shows where the schedule leaves "
            "next to nothing of x_0: that weight is infinite; choose prediction=velocity or x0, or objective=simple."
        )


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
        plugins = [*plugins, BFloat16Mixed(device_of(node["accelerator"]))]
        node["precision"] = None  # the plugin says it
    if isinstance(node.get("val_check_interval"), int):
        node["val_check_interval"] *= node["accumulate_grad_batches"]
    trainer: Trainer = make(
        node, "trainer", callbacks=list(callbacks), logger=list(loggers), plugins=list(plugins), default_root_dir=folder
    )
    return trainer


def quieten() -> None:
    """Keep what Lightning says of workers that are not needed, of PyTorch's versions and of its products."""
    for text in ("does not have many workers", "LeafSpec", "infer the batch indices", "predict returned None"):
        warnings.filterwarnings("ignore", f".*{text}.*")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)


def refuse_scaling(cfg: Config, trainer: Trainer) -> None:
    """A loss scaler must see the gradients before the optimiser, and clipping must too."""
    if trainer.precision == "16-mixed" and cfg["optimizer"].get("fused"):
        raise Refused(
            "trainer.precision=16-mixed scales the loss, which a fused optimiser hides; add optimizer.fused=false."
        )


def refuse_relaunch(trainer: Trainer, in_sweep: bool) -> None:
    """Lightning would start the command of the whole sweep again for each further rank."""
    external = trainer.strategy.cluster_environment.creates_processes_externally if trainer.world_size > 1 else True  # type: ignore[attr-defined]
    if in_sweep and not external:
        raise Refused(
            "a sweep can not launch several ranks by itself; run each of its jobs under torchrun, without -m."
        )


def refuse_batch(batch_size: int, trainer: Trainer) -> None:
    """The global batch is shared out evenly."""
    shares = trainer.world_size * trainer.accumulate_grad_batches
    if batch_size % shares:
        raise Refused(
            f"data.batch_size={batch_size} is the global batch and can not be shared out over {shares} parts "
            f"(ranks x trainer.accumulate_grad_batches); take a multiple of {shares}."
        )
