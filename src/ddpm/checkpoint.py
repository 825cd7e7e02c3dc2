"""A checkpoint opens by itself: it embeds its resolved config and the facts of its data.

It is read as data: `weights_only=True`, and of its config only targets of ours are ever built, from plain values that
are checked like a user's, in which nothing is looked up. What it claims is compared with what it holds before memory
is asked for.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import FunctionType
from typing import Annotated, Any

from pydantic import AllowInfNan, NonNegativeInt, PositiveFloat, PositiveInt, StrictBool
from torch import Tensor, nn

from ddpm import strangers
from ddpm.build import Config, build_diffusion, outlined
from ddpm.callbacks.checkpoint import LAST
from ddpm.data.facts import Facts
from ddpm.data.image_data import ImageData
from ddpm.decoder import Decoder
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import Refused
from ddpm.instantiate import Node, check_value, shortened
from ddpm.prediction import Prediction
from ddpm.sharded import is_sharded, joined
from ddpm.sigma import Sigma

MODEL_GROUPS = ("model", "schedule", "sigma", "prediction", "decoder")
SINCE = {  # choices that older files do not name, as they were then
    "decoder": {"_target_": "ddpm.decoder.Exact"},
    "input_perturbation": 0.0,
    "zero_terminal_snr": False,
}
_Score = Annotated[float, AllowInfNan(True)]  # what was measured may be that bad
# What a run goes on from; in lists, since a mapping alone would be taken for a node, whose target is looked up.
OF_CALLBACKS: dict[str, dict[str, Any]] = {
    "SaveLast": {"log_bytes": list[NonNegativeInt]},
    "Evaluate": {"best": list[float | None], "best_of": list[str | None], "scores": list[dict[str, _Score]]},
    "StopOnNonFinite": {"skipped": list[NonNegativeInt], "in_a_row": list[NonNegativeInt]},
    "EMA": {"latest_update_step": list[NonNegativeInt]},
}
OF_LR_SCHEDULE: dict[str, Any] = {  # all that LambdaLR writes; it takes any name for one of its own attributes
    "base_lrs": list[list[float]],
    "last_epoch": list[NonNegativeInt],
    "lr_lambdas": list[list[None]],
    "_get_lr_called_within_step": list[StrictBool],
    "_is_initial": list[StrictBool],
    "_last_lr": list[list[float]],
    "_step_count": list[NonNegativeInt],
}
OF_LOSS_SCALER: dict[str, Any] = {
    "scale": list[PositiveFloat],
    "growth_factor": list[PositiveFloat],
    "backoff_factor": list[PositiveFloat],
    "growth_interval": list[PositiveInt],
    "_growth_tracker": list[NonNegativeInt],
}
LOSS_SCALERS = ("MixedPrecision", "native_amp_scaling_state")  # by which names Lightning finds it
WEIGHTS = {"ema": "state_dict", "raw": "current_model_state"}
KINDS = {"model": nn.Module, "sigma": Sigma, "prediction": Prediction, "decoder": Decoder, "data": ImageData}


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds."""

    diffusion: GaussianDiffusion
    config: Config
    facts: Facts
    step: int
    path: Path
    weights: str  # which of them: without EMA there are only raw ones


class Unreadable(Refused):
    """A file that may be whole: the disk or the memory fails."""


def load(path: str | Path, weights: str = "ema") -> Loaded:
    """Open a `.ckpt`, or the last one of a run's folder, with its averaged or its raw weights.

    Raises Refused for a file that is missing, truncated, not ours, or whose shapes do not fit.
    """
    file = find(path)
    return loaded(read(file), file, weights)


def loaded(content: dict[str, Any], file: Path, weights: str) -> Loaded:
    """What a file has held. Raises Refused as `load` does."""
    config, facts = content["ddpm"]["config"], facts_of(content, file)
    for group in MODEL_GROUPS:
        refuse_foreign(config.get(group), group)
    check_value(config["zero_terminal_snr"], StrictBool, f"zero_terminal_snr in {file}")
    state = own(chosen(content, weights))
    try:
        refuse_misfit(outlined(config, facts), state)
        diffusion = build_diffusion(config, facts)
    except Refused as reason:
        raise Refused(f"{file} cannot be opened: {reason}") from reason
    diffusion.load_state_dict(state)
    held = weights if WEIGHTS["raw"] in content else "raw"
    return Loaded(diffusion.eval(), config, facts, content["global_step"], file, held)


def find(path: str | Path) -> Path:
    """The file that a user's path means."""
    given = Path(path)
    file = given / "checkpoints" / LAST if given.is_dir() and not is_sharded(given) else given
    if not (file.is_file() or is_sharded(file)):
        raise Refused(f"there is no checkpoint at {file}; give a .ckpt file or the folder of a run that has one.")
    return file


def read(file: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours. Raises Unreadable where it cannot be told what that is."""
    try:
        content = joined(file) if file.is_dir() else strangers.content(file)
    except (ValueError, OSError, LookupError, TypeError, RuntimeError, MemoryError) as reason:
        if lack := strangers.unread(reason):
            raise Unreadable(
                f"{file} cannot be read ({lack.strerror}), and may be whole; give the same command again once it can."
            ) from reason
        raise Refused(
            f"{file} is damaged or no checkpoint ({reason}); take another one, such as previous.ckpt beside it."
        ) from reason
    if not isinstance(content, dict) or not {"ddpm", "state_dict", "global_step"} <= content.keys():
        raise Refused(f"{file} is not a checkpoint of this framework; train one with train.py.")
    check_value(content["global_step"], NonNegativeInt, f"global_step in {file}")
    named = [content[key] for key in content.keys() & {"ddpm", *WEIGHTS.values()}]
    card = content["ddpm"] if isinstance(content["ddpm"], dict) else {}
    if not all(isinstance(part, dict) for part in (*named, card.get("config"), card.get("facts"))):
        raise Refused(f"{file} does not say what its model is; take another one.")
    content["ddpm"]["config"] = SINCE | content["ddpm"]["config"]
    return content


def resumable(file: Path) -> dict[str, Any]:
    """The content of a checkpoint that training can go on from."""
    content = read(file)
    callbacks = content.get("callbacks")
    if not isinstance(callbacks, dict) or not all(isinstance(state, dict) for state in callbacks.values()):
        raise Refused(f"{file} holds no state of a run; take another one.")
    for name, kinds in OF_CALLBACKS.items():
        for key in kinds.keys() & callbacks.get(name, {}).keys():
            check_value([callbacks[name][key]], kinds[key], f"{key} in {file}")
    refuse_attributes(content.get("lr_schedulers", []), OF_LR_SCHEDULE, file)
    refuse_attributes([content.get(key, {}) for key in LOSS_SCALERS], OF_LOSS_SCALER, file)
    if "log_bytes" not in callbacks.get("SaveLast", {}):
        raise Refused(f"{file} does not say how long the log of its run was; take another one.")
    if strange := [leaf for leaf in leaves(content.get("loops")) if not isinstance(leaf, int) or leaf < 0]:
        raise Refused(f"{file} counts its steps as {shortened(strange[0])}; take an earlier checkpoint.")
    if any(isinstance(leaf, Tensor) and not leaf.isfinite().all() for leaf in leaves(content)):
        raise Refused(f"{file} has numbers that are not finite; take an earlier checkpoint.")
    return content


def refuse_attributes(states: Any, kinds: Mapping[str, Any], file: Path) -> None:
    """What is restored without being looked at may only have these names, each with a value of its kind."""
    if not isinstance(states, list) or not all(isinstance(state, dict) for state in states):
        raise Refused(f"{file} holds {shortened(states)} where it should say how a run goes on; take another one.")
    for key, value in (pair for state in states for pair in state.items()):
        if key not in kinds:
            raise Refused(f"{file} holds {shortened(key)}, which no file of a run does; take another one.")
        check_value([value], kinds[key], f"{key} in {file}")


def leaves(content: Any) -> Iterator[Any]:
    """All that is in some containers."""
    if not isinstance(content, dict | list | tuple):
        yield content
        return
    for part in content.values() if isinstance(content, dict) else content:
        yield from leaves(part)


def facts_of(content: dict[str, Any], file: Path) -> Facts:
    """The facts of the data that a model was trained on."""
    try:
        return Facts.from_dict(content["ddpm"]["facts"])
    except ValueError as fault:
        raise Refused(f"{file} holds no facts of data: {shortened(fault)}") from fault


def chosen(content: dict[str, Any], weights: str) -> dict[str, Any]:
    """The averaged weights, or the raw ones; without EMA they are the same."""
    if weights not in WEIGHTS:
        raise Refused(f"weights={shortened(weights)} is not possible; choose one of {', '.join(WEIGHTS)}.")
    state: dict[str, Any] = content.get(WEIGHTS[weights], content["state_dict"])
    return state


def own(state: Mapping[Any, Any]) -> dict[str, Any]:
    """The weights of the model in a training module's state."""
    prefix = "diffusion."
    return {str(key).removeprefix(prefix): value for key, value in state.items() if str(key).startswith(prefix)}


def refuse_misfit(outline: nn.Module, state: Mapping[str, Any]) -> None:
    """The weights must be those of a model of these shapes, and finite."""
    layout = outline.state_dict()
    if misfit := sorted(map(str, layout.keys() ^ state.keys())):
        raise Refused(f"its weights do not fit its model: only one of them has {shortened(misfit[0])}.")
    for name, expected in layout.items():
        given = state[name]
        if not isinstance(given, Tensor) or not given.is_floating_point() or given.shape != expected.shape:
            what = f"{given.dtype} of {tuple(given.shape)}" if isinstance(given, Tensor) else shortened(given)
            raise Refused(f"its weights do not fit its model: {name} is {what}, not of {tuple(expected.shape)}.")
    if infinite := [name for name, value in state.items() if not value.isfinite().all()]:
        raise Refused(f"it has numbers in {infinite[0]} that are not finite; take an earlier checkpoint.")


def refuse_foreign(node: Any, group: str) -> None:
    """A file may only name a choice of ours for a group, and itself names no further object."""
    target = node.get("_target_") if isinstance(node, dict) else None
    if not isinstance(node, dict) or not _is_choice(target, group):
        raise Refused(
            f"the checkpoint's {group} names {shortened(target)}, which is not one of ours; do not trust this file."
        )
    if not _is_flat(node):
        raise Refused(
            f"the checkpoint's {group} holds more than numbers and words, which is not one of ours; "
            "do not trust this file."
        )


def _is_choice(target: Any, group: str) -> bool:
    """Does it name what a YAML of the group could? A class of its kind, or a function that gives betas."""
    room, _, name = str(target).rpartition(".")
    home = f"ddpm.{group}"
    if name.startswith("_") or room not in {home, *_modules(home)}:
        return False
    found = getattr(import_module(room), name, None)
    if group == "schedule":
        return isinstance(found, FunctionType) and found.__module__ == home
    is_kind = inspect.isclass(found) and issubclass(found, KINDS[group]) and not inspect.isabstract(found)
    return is_kind and found.__module__.startswith(home)


def _modules(home: str) -> list[str]:
    """The modules of a group of data sets, which lie each in its own."""
    path = getattr(import_module(home), "__path__", []) if home == "ddpm.data" else []
    return [module.name for module in iter_modules(path, prefix=f"{home}.")]


def _is_flat(node: Node) -> bool:
    """One target, and below it no further node, not even in a list: nothing else could be built."""
    special = {key for key in node if not isinstance(key, str) or key.startswith("_")}
    return special == {"_target_"} and all(map(_is_plain, node.values()))


def _is_plain(value: Any) -> bool:
    """A number, a word or a list of such; no interpolation, and nothing that is still to be given."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return "${" not in value and value != "???"
    return value is None or isinstance(value, int | float)
