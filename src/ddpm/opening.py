"""What `sample.py` and `evaluate.py` share: a trained model with the sigma and the sampler asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch import Trainer

from ddpm.build import Config, build_data, build_sampler, build_trainer
from ddpm.checkpoint import Loaded, load, refuse_foreign
from ddpm.data.image_data import ImageData
from ddpm.errors import Refused
from ddpm.instantiate import check_value, make
from ddpm.sampler import Sampler
from ddpm.sampling import SamplingModule

COMMON_TYPES = {"checkpoint": str, "num_images": int, "batch_size": int, "weights": str, "seed": int}


@dataclass(frozen=True)
class Opened:
    """A checkpoint, ready to be sampled from as a config says."""

    loaded: Loaded
    sampler: Sampler
    sigma: Mapping[str, Any]  # the node of the sigma that is used

    def module(self, seed: int, label: int | None = None, guidance: float = 1.0) -> SamplingModule:
        return SamplingModule(
            self.loaded.diffusion,
            self.sampler,
            shape=self.loaded.facts.shape,
            seed=seed,
            label=label,
            guidance=guidance,
        )


def opened(config: Config, kinds: Mapping[str, Any]) -> Opened:
    """Open the checkpoint of a config, whose keys outside the groups are of these kinds."""
    for key, kind in (COMMON_TYPES | dict(kinds)).items():
        check_value(config[key], kind, key)
    for key in ("num_images", "batch_size"):
        if config[key] < 1:
            raise Refused(f"{key} is {config[key]}; it must be at least 1.")
    loaded = load(config["checkpoint"], config["weights"])
    sigma = config.get("sigma") or loaded.config["sigma"]
    if config.get("sigma"):
        loaded = replace(loaded, diffusion=_with_sigma(loaded, config))
    return Opened(loaded, build_sampler(config, loaded.diffusion), sigma)


def _with_sigma(loaded: Loaded, config: Config) -> Any:
    sigma = make(config["sigma"], "sigma")
    if make(config["sampler"], "sampler").has_own_sigma:
        raise Refused("this sampler has its own sigma; leave out sigma=, or take sampler=ancestral.")
    if sigma.learned and config["sigma"] != loaded.config["sigma"]:
        raise Refused("this model was not trained with that learned sigma; leave out sigma=, or take a fixed one.")
    return loaded.diffusion.with_sigma(sigma).eval()


def data_of(loaded: Loaded, changes: Mapping[str, Any]) -> ImageData:
    """The data set that a model was trained on, with a user's changes (its root, say)."""
    node = dict(loaded.config["data"])
    refuse_foreign(node, "data")
    data = build_data({"data": node | dict(changes), "seed": loaded.config["seed"]})
    if data.facts.shape != loaded.facts.shape:
        raise Refused(f"the data have images of {data.facts.shape}, but the model makes {loaded.facts.shape}.")
    return data


def quiet_trainer(config: Config, callbacks: list[Any]) -> Trainer:
    """A Trainer that only predicts: no log, no checkpoint."""
    node = config["trainer"] | {"enable_checkpointing": False}
    return build_trainer({"trainer": node}, callbacks)
