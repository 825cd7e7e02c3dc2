"""What `sample.py` and `evaluate.py` share: a trained model with the sigma and the sampler asked for."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ddpm import texts
from ddpm.analytic import estimated
from ddpm.build import Config, build_data, build_sampler, compile_network, refuse_gaps
from ddpm.checkpoint import Loaded, load, refuse_foreign
from ddpm.data.image_data import ImageData
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import Refused
from ddpm.instantiate import check, check_value, check_values, make, target_of, wirable
from ddpm.meeting import is_follower
from ddpm.metric.cache import fingerprint
from ddpm.precision import device_of
from ddpm.sampler import Sampler
from ddpm.sampling import SamplingModule
from ddpm.sigma import Analytic
from ddpm.trainer import build_trainer, refuse_absent, spreads

COMMON_TYPES = {"checkpoint": str, "num_images": int, "batch_size": int, "weights": str, "seed": int, "data": Any}
PLACES = ("path", "root")  # where data are


@dataclass(frozen=True)
class Opened:
    """A checkpoint, ready to be sampled from as a config says."""

    loaded: Loaded
    sampler: Sampler
    sigma: Mapping[str, Any]  # the node of the sigma that is used
    decoder: Mapping[str, Any]  # and of the decoder

    @cached_property
    def weights_key(self) -> str:
        """Tells one model from another: a hash of its weights, its schedule and its prediction."""
        diffusion, config = self.loaded.diffusion, self.loaded.config
        tensors = diffusion.network.state_dict() | {"schedule": diffusion.schedule.log_alpha_bar}
        return fingerprint(tensors, config["model"], config["prediction"])

    def module(self, seed: int, label: int | None = None, guidance: float = 1.0) -> SamplingModule:
        return SamplingModule(
            self.loaded.diffusion,
            self.sampler,
            shape=self.loaded.facts.shape,
            seed=seed,
            label=label,
            guidance=guidance,
        )


def opened(config: Config, draws: bool = True) -> Opened:
    """Open the checkpoint of a config. Raises Refused for a sigma of its own where a sampler `draws` that would not
    use it; a bound does."""
    check_values(config, COMMON_TYPES)
    refuse_gaps(config, ("sampler", "trainer"))
    if spreads(config["trainer"].get("strategy")):
        raise Refused("trainer=fsdp spreads a model for its training alone; here each rank holds it: take trainer=ddp.")
    refuse_absent(config["trainer"]["accelerator"])
    for key in ("num_images", "batch_size"):
        if config[key] < 1:
            raise Refused(f"{key} is {config[key]}; it must be at least 1.")
    loaded = load(config["checkpoint"], config["weights"])
    make(config["sampler"], "sampler").times(loaded.diffusion.num_steps)  # refused before a sigma is estimated for it
    sigma, decoder = (config.get(group) or loaded.config[group] for group in ("sigma", "decoder"))
    if config.get("sigma"):
        if draws and make(config["sampler"], "sampler").has_own_sigma:
            raise Refused("this sampler has its own sigma; leave out sigma=, or take sampler=ancestral.")
        loaded = replace(loaded, diffusion=_with_sigma(loaded, config))
    if config.get("decoder"):
        loaded = replace(loaded, diffusion=loaded.diffusion.with_decoder(make(decoder, "decoder")).eval())
    compile_network(config, loaded.diffusion)
    used = {key: value for key, value in sigma.items() if key != "cache"}  # where it is kept changes nothing
    return Opened(loaded, build_sampler(config, loaded.diffusion), used, decoder)


def _with_sigma(loaded: Loaded, config: Config) -> GaussianDiffusion:
    sigma = make(config["sigma"], "sigma", **_measured(loaded, config))
    if sigma.learned and config["sigma"] != loaded.config["sigma"]:
        raise Refused("this model was not trained with that learned sigma; leave out sigma=, or take a fixed one.")
    return loaded.diffusion.with_sigma(sigma).eval()


def _measured(loaded: Loaded, config: Config) -> dict[str, Any]:
    """What a sigma that is fitted to a trained network has to know of it."""
    node = config["sigma"]
    if target_of(node, "sigma") is not Analytic:
        return {}
    check(node, Analytic, "sigma", {"eps_power"})
    for key in ("num_images", "batch_size"):
        if node[key] < 1:
            raise Refused(f"sigma.{key} is {node[key]}; it must be at least 1.")
    data, device = data_of(loaded, config["data"]), device_of(config["trainer"]["accelerator"])
    counts = node["num_images"], node["batch_size"]
    return {"eps_power": estimated(loaded.diffusion, data, *counts, node["cache"], device)}


def data_of(loaded: Loaded, changes: Any) -> ImageData:
    """The data set that a model was trained on, with a user's changes (its root, say), which must be a mapping.

    The checkpoint may be from anybody: it does not say what is downloaded, how many processes read, or where outside
    of the working directory data lie. That the user says, or the config that the run's folder keeps.
    """
    node, seed = loaded.config.get("data", {}), loaded.config.get("seed")
    refuse_foreign(node, "data")
    check_value(seed, int, "the checkpoint's seed")
    check_value([changes], list[dict[str, Any]], "data")  # in a list, as a mapping alone could be a whole node
    node = located(tamed(node), loaded.path) | dict(changes)
    tell_places({key: place for key, place in node.items() if key in PLACES and key not in changes})
    if lost := sorted(wirable(target_of(node, "data"), node) & {*PLACES}):
        raise Refused(f"the checkpoint does not tell where its data are on this machine; add +data.{lost[0]}=FOLDER.")
    data = build_data({"data": node, "seed": seed})
    if data.facts.shape != loaded.facts.shape:
        raise Refused(f"the data have images of {data.facts.shape}, but the model makes {loaded.facts.shape}.")
    return data


def tell_places(places: Mapping[str, Any]) -> None:
    """Say what is read outside of the working directory since a run's folder says so, which anybody may have made."""
    for key, place in places.items():
        if _climbs(place) and not is_follower():
            print(f"data.{key}={place!r}, as the config.yaml of the run says")


def tamed(node: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a checkpoint without what only a user decides."""
    kept = {key: value for key, value in node.items() if key not in PLACES or not _climbs(value)}
    if "download" in kept:
        kept["download"] = False
    if isinstance(workers := kept.get("num_workers"), int):
        kept["num_workers"] = min(workers, os.cpu_count() or 1)
    return kept


def _climbs(place: Any) -> bool:
    """Does it lead out of the working directory?"""
    return isinstance(place, str) and (Path(place).is_absolute() or ".." in Path(place).parts)


def located(node: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """The data with the places that the config in the folder of the checkpoint's run tells, where they lack them.

    Data that are read from a `path` keep copies below their root, which is the user's business alone.
    """
    told = texts.settings(checkpoint.parent.with_name("config.yaml")).get("data")
    if not isinstance(told, dict) or told.get("_target_") != node["_target_"]:
        return dict(node)
    read = {"path": told.get("path"), "root": None} if "path" in told else {"root": told.get("root")}
    return {key: place for key, place in read.items() if place is None or isinstance(place, str)} | dict(node)


class EndAtOnce(Callback):
    """SIGTERM ends a drawing or a measurement at once, since what is finished is on the disk. Lightning would take
    note of the signal and go on to the end."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def quiet_trainer(config: Config, callbacks: list[Any]) -> Trainer:
    """A Trainer that only predicts: no log, no checkpoint."""
    node = config["trainer"] | {"enable_checkpointing": False}
    return build_trainer({"trainer": node}, [*callbacks, EndAtOnce()])
