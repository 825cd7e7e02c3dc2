"""The only place where the graph of objects is wired: from a resolved config and the facts of the data.

The graph is fixed by the mathematics and only its leaves are choices. Impossible or silly pairs are
refused here, before anything runs.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from pydantic import PositiveFloat, PositiveInt, StrictInt

from ddpm.callbacks.checkpoint import SaveLast
from ddpm.compile import refuse_without_compiler
from ddpm.data.facts import Facts
from ddpm.data.image_data import ImageData
from ddpm.decoder import Decoder
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import Refused
from ddpm.instantiate import LISTS, check_value, make, target_of
from ddpm.metric import DataMetric, SampleMetric
from ddpm.module import DiffusionModule
from ddpm.objective import Objective, Weighted
from ddpm.precision import device_of
from ddpm.prediction import Prediction
from ddpm.privacy import public
from ddpm.sampler import Sampler
from ddpm.schedule import NoiseSchedule, zero_terminal_snr
from ddpm.sigma import Sigma

Config = dict[str, Any]


NEEDED: dict[str, dict[str, Any]] = {  # the choices of a run, and what is asked of them beside their objects
    **{group: {} for group in ("model", "schedule", "sigma", "prediction", "decoder", "objective", "timestep")},
    **{group: {} for group in ("sampler", "optimizer", "lr_schedule")},
    "data": {"batch_size": StrictInt},
    "trainer": {
        "max_steps": int,
        "precision": str,
        "accelerator": str,
        "accumulate_grad_batches": PositiveInt,
        "gradient_clip_val": PositiveFloat | None,  # Lightning would take -1 for none
        "log_every_n_steps": PositiveInt | None,
        "val_check_interval": PositiveInt | str | None,
    },
}
SEVERAL = dict[str, dict[str, Any]] | None  # of a kind

_LEFT = 0.1  # of the variance, above that at T: ten steps of DDIM's own spacing leave 0.02 on the cosine schedule


def refuse_gaps(cfg: Config, groups: Iterable[str] = NEEDED) -> None:
    """Raises Refused where one of these choices is none, or several of a kind are no mapping."""
    for group in groups:
        target_of(cfg.get(group), group)
        for key, kind in NEEDED[group].items():
            check_value(cfg[group].get(key), kind, f"{group}.{key}")
    for group in LISTS:
        check_value(cfg.get(group), SEVERAL, group)


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


def outlined(cfg: Config, facts: Facts) -> GaussianDiffusion:
    """The model's shapes without its numbers, so that one which is too large shows before memory is asked for."""
    with torch.device("meta"):
        outline = build_diffusion(cfg, facts)
    size, room = sum(p.nbytes for p in outline.parameters()), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > room:
        raise Refused(
            f"this model takes {size / 2**30:,.0f} GiB, more than this machine's {room / 2**30:,.0f}; "
            "choose smaller model.channels, channel_mult or num_res_blocks."
        )
    return outline


def compile_network(cfg: Config, diffusion: GaussianDiffusion) -> None:
    """Compile the network of a model as the config says, if it does."""
    if cfg.get("compile"):
        if device_of(cfg["trainer"]["accelerator"]) == "cpu":
            refuse_without_compiler()
        make(cfg["compile"], "compile", network=diffusion.network)


def build_module(cfg: Config, facts: Facts) -> DiffusionModule:
    """The model in training."""
    outlined(cfg, facts)
    diffusion = build_diffusion(cfg, facts)
    compile_network(cfg, diffusion)
    objective: Objective = make(cfg["objective"], "objective")
    refuse_objective(objective, diffusion)
    if not 0 <= cfg["label_dropout"] < 1:
        raise Refused(f"label_dropout is {cfg['label_dropout']}; it must lie in [0, 1).")
    if cfg["input_perturbation"] < 0:
        raise Refused(f"input_perturbation is {cfg['input_perturbation']}; it must be 0 or more (the paper: 0.1).")
    refuse_labels(cfg, facts)
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
        label_dropout=float(cfg["label_dropout"]),
        input_perturbation=float(cfg["input_perturbation"]),
        card={"config": public(cfg), "facts": facts.as_dict()},
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
            "sigma=learned is the log-variance of one step and cannot be strided; take "
            "sampler.num_steps=null, sampler=ddim, or sample with sigma=beta_tilde."
        )
    refuse_start(diffusion.schedule, visited[0])
    return sampler


def refuse_start(schedule: NoiseSchedule, start: int) -> None:
    """Sampling starts with noise alone, so hardly more of the image may be in x_t there than there is at T."""
    there, last = schedule.alpha_bar(torch.tensor([start, schedule.num_steps])).tolist()
    if there - last > _LEFT:
        raise Refused(
            f"sampling in so few steps would start at t = {start} of {schedule.num_steps}, which is not yet noise: "
            f"{there:.0%} of x_t's variance is the image; take sampler.spacing=trailing or other sampler.num_steps."
        )


def build_metrics(cfg: Config) -> dict[str, SampleMetric | DataMetric]:
    """The metrics of a config by the names of their scores."""
    check_value(cfg.get("metric"), SEVERAL, "metric")
    chosen = {key: make(node, f"metric.{key}") for key, node in (cfg.get("metric") or {}).items()}
    names = [metric.name for metric in chosen.values()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Refused(f"two metrics would both be called {twice[0]}; take one of them out of metric=[...].")
    return dict(zip(names, chosen.values(), strict=True))


def build_callbacks(cfg: Config, folder: Path, data: ImageData, module: DiffusionModule) -> list[Callback]:
    """The callbacks of a config; those of ours are handed what they ask for.

    SaveLast stands first, wherever the config names it: what another one logs as a batch starts belongs to the step
    after the checkpoint, and a run that goes on from there logs it again. The others keep their order.
    """
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
    chosen = [make(node, f"callbacks.{key}", **available) for key, node in nodes]
    return sorted(chosen, key=lambda callback: not isinstance(callback, SaveLast))


def build_loggers(cfg: Config, folder: Path) -> list[Logger]:
    """The loggers of a config, writing under the run's folder."""
    nodes = (cfg.get("logger") or {}).items()
    return [make(node, f"logger.{key}", folder=folder, save_dir=folder) for key, node in nodes]


def refuse_prediction(prediction: Prediction, schedule: NoiseSchedule) -> None:
    """x_0 cannot be had from eps where nothing of it is left in x_T."""
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
    """Every output of the network needs a gradient."""
    if diffusion.sigma.learned and not objective.trains_sigma:
        raise Refused(
            "this objective gives a learned sigma no gradient; choose objective=hybrid or vlb, "
            "or a fixed sigma (beta, beta_tilde)."
        )
    if objective.only_for_learned and not diffusion.sigma.learned:
        raise Refused(
            "this objective trains a learned sigma; choose sigma=learned_range or learned, or objective=simple."
        )
    if isinstance(objective, Weighted):
        refuse_weights(objective, diffusion)


def refuse_weights(objective: Weighted, diffusion: GaussianDiffusion) -> None:
    """The weights of what the network says at each t must be finite, and not 0 where sampling starts."""
    every = torch.arange(1, diffusion.num_steps + 1, device="cpu")
    weights = objective.carried(diffusion, every).float()
    if not weights.isfinite().all():
        raise Refused(
            "this objective weighs the error of x_0, which this prediction hardly shows where the schedule leaves "
            "next to nothing of x_0: that weight is infinite; choose prediction=velocity or x0, or objective=simple."
        )
    if weights[-1] == 0:
        raise Refused(
            "this objective weighs by SNR, and this schedule leaves none at t = T: the step that sampling starts with "
            "would never be trained; choose objective=simple or truncated_snr, or another schedule."
        )
