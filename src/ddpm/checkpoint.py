"""A checkpoint opens by itself: it embeds its resolved config and the facts of its data.

It is read as data: `weights_only=True`, and of its config only targets of ours are ever built.
"""

import pickle
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import ModuleInfo, iter_modules
from typing import Any

import torch

from ddpm.build import Config, build_diffusion
from ddpm.callbacks.checkpoint import LAST
from ddpm.data.facts import Facts
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import Refused
from ddpm.instantiate import Node

MODEL_GROUPS = ("model", "schedule", "sigma", "prediction", "decoder")
SINCE = {  # choices that older files do not name, as they were then
    "decoder": {"_target_": "ddpm.decoder.Exact"},
    "input_perturbation": 0.0,
    "zero_terminal_snr": False,
}
WEIGHTS = {"ema": "state_dict", "raw": "current_model_state"}


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds."""

    diffusion: GaussianDiffusion
    config: Config
    facts: Facts
    step: int
    path: Path


def load(path: str | Path, weights: str = "ema") -> Loaded:
    """Open a `.ckpt`, or the last one of a run's folder, with its averaged or its raw weights.

    Raises Refused for a file that is missing, truncated, not ours, or whose shapes do not fit.
    """
    file = find(path)
    content = read(file)
    config, facts = content["ddpm"]["config"], Facts.from_dict(content["ddpm"]["facts"])
    for group in MODEL_GROUPS:
        refuse_foreign(config.get(group), group)
    diffusion = build_diffusion(config, facts)
    fill(diffusion, chosen(content, weights), file)
    return Loaded(diffusion.eval(), config, facts, content["global_step"], file)


def find(path: str | Path) -> Path:
    """The file that a user's path means."""
    given = Path(path)
    file = given / "checkpoints" / LAST if given.is_dir() else given
    if not file.is_file():
        raise Refused(f"there is no checkpoint at {file}; give a .ckpt file or the folder of a run that has one.")
    return file


def read(file: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        raise Refused(
            f"{file} is damaged or no checkpoint; take another one, such as previous.ckpt beside it."
        ) from error
    if not isinstance(content, dict) or not {"ddpm", "state_dict", "global_step"} <= content.keys():
        raise Refused(f"{file} is not a checkpoint of this framework; train one with train.py.")
    content["ddpm"]["config"] = SINCE | content["ddpm"]["config"]
    return content


def chosen(content: dict[str, Any], weights: str) -> dict[str, Any]:
    """The averaged weights, or the raw ones; without EMA they are the same."""
    if weights not in WEIGHTS:
        raise Refused(f"weights={weights} is not possible; choose one of {', '.join(WEIGHTS)}.")
    state: dict[str, Any] = content.get(WEIGHTS[weights], content["state_dict"])
    return state


def fill(diffusion: GaussianDiffusion, state: dict[str, Any], file: Path) -> None:
    """Put the weights of a training module's state into the model."""
    prefix = "diffusion."
    mine = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    try:
        diffusion.load_state_dict(mine)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise Refused(f"the weights in {file} do not fit its model: {reason}") from error


def refuse_foreign(node: Node | None, group: str) -> None:
    """A file may only name what is defined in the room of its group, and itself names no further object."""
    target = node.get("_target_") if isinstance(node, dict) else None
    room, _, name = str(target).rpartition(".")
    home = f"ddpm.{group}"
    is_ours = room == home or room in {module.name for module in _rooms(home)}
    found = getattr(import_module(room), name, None) if is_ours else None
    if not isinstance(node, dict) or not _is_flat(node) or not callable(found) or not found.__module__.startswith(home):
        raise Refused(f"the checkpoint's {group} names {target}, which is not one of ours; do not trust this file.")


def _is_flat(node: Node) -> bool:
    """One target, and below it no further node, not even in a list: nothing else could be built."""
    special = {key for key in node if key.startswith("_")}
    return special == {"_target_"} and all(map(_is_plain, node.values()))


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, list) else not isinstance(value, dict)


def _rooms(home: str) -> list[ModuleInfo]:
    """The modules of a group that is a package."""
    return list(iter_modules(getattr(import_module(home), "__path__", []), prefix=f"{home}."))
