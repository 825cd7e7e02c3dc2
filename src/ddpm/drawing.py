"""What `sample.py` does: a mode draws from a checkpoint into a folder."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddpm.build import Config
from ddpm.data.image_data import ImageData
from ddpm.errors import Refused
from ddpm.instantiate import check_values, make
from ddpm.mode import Mode, Studio
from ddpm.mode.files import read_image
from ddpm.opening import Opened, data_of, opened, quiet_trainer
from ddpm.precision import precision
from ddpm.report import console
from ddpm.types import Images

TYPES = {
    "out": str,
    "label": int | None,
    "guidance": float,
    "png": bool,
    "npz": bool,
    "trajectory": bool,
    "images": int | str | list[int | str] | None,
}


def draw_images(config: Config) -> None:
    """Draw as the config of sample.py says, and tell where everything is."""
    mode = checked(config)
    model = opened(config)
    refuse_label(config["label"], model)
    try:
        paths = mode.draw(studio(config, model))
    except OSError as error:
        raise unwritable(f"{error.filename or config['out']}: {error.strerror or error}") from error
    for path in paths:
        console.print(str(path), soft_wrap=True, markup=False)


def checked(config: Config) -> Mode:
    """The mode, if what asks for nothing of the model is possible."""
    check_values(config, TYPES)
    mode: Mode = make(config.get("mode"), "mode")
    refuse_useless(config, mode)
    if not config["png"] and not config["npz"]:
        raise Refused("png=false and npz=false leave no file for the images; set one of them to true.")
    refuse_guidance(float(config["guidance"]), config["label"])
    refuse_unwritable(Path(config["out"]))
    return mode


def refuse_unwritable(out: Path) -> None:
    """Some modes write nothing for hours; where they will is tried before. The folder itself is made when they do."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise unwritable(f"{there} is {'no folder' if not there.is_dir() else 'write-protected'}")


def unwritable(reason: str) -> Refused:
    """What a user reads when the disk refuses."""
    return Refused(f"the images cannot be written ({reason}); set out=FOLDER to another place.")


def refuse_useless(config: Config, mode: Mode) -> None:
    """An option that the mode has no use for would be overlooked."""
    for option in ("label", "images", "npz", "trajectory"):
        is_set = config[option] is not None and config[option] is not False  # label=0 is
        if is_set and option not in mode.uses:
            raise Refused(f"this mode has no use for {option}={config[option]}; leave it out, or take another mode=.")


def refuse_label(label: int | None, model: Opened) -> None:
    """A label must be one that the model knows."""
    if label is None:
        return
    if getattr(model.loaded.diffusion.network, "null_label", None) is None:
        raise Refused("this model takes no label; leave out label=, or train with model.class_conditional=true.")
    if not 0 <= label < model.loaded.facts.num_classes:
        raise Refused(f"label={label} is not one of 0, ..., {model.loaded.facts.num_classes - 1}.")


def refuse_guidance(guidance: float, label: int | None) -> None:
    """Guidance leads from the images of no label to those of one: without a label it would be overlooked."""
    if guidance != 1 and label is None:
        raise Refused(f"guidance={guidance} has no use without a label; leave it out, or add label=NUMBER.")


def studio(config: Config, model: Opened) -> Studio:
    """Where a mode draws."""
    return Studio(
        module=model.module(config["seed"], config["label"], float(config["guidance"])),
        real=partial(real_images, config, model),
        num_images=config["num_images"],
        batch_size=config["batch_size"],
        trainer=partial(quiet_trainer, config),
        out=Path(config["out"]),
        png=config["png"],
        npz=config["npz"],
        trajectory=config["trajectory"],
        protocol=protocol(config, model),
    )


def protocol(config: Config, model: Opened) -> dict[str, Any]:
    """What image number i is a function of, beside i; and the kind of files that it is in."""
    return {
        "checkpoint": model.weights_key,
        "precision": precision(config["trainer"]["precision"], config["trainer"]["accelerator"]),
        "sampler": dict(config["sampler"]),
        "sigma": None if model.sampler.has_own_sigma else dict(model.sigma),
        "seed": config["seed"],
        "label": config["label"],
        "guidance": float(config["guidance"]),
        "png": config["png"],
    }


def real_images(config: Config, model: Opened, most: int) -> Images:
    """The user's images, files or numbers of the test split; without any, the first so many of that:
    (n, c, h, w) in [-1, 1]. Files alone need no data."""
    asked = config["images"]
    names = asked if isinstance(asked, list) else [asked]
    if not names:
        raise Refused("images=[] names no image; leave it out for those of the test split.")
    if all(isinstance(name, str) for name in names):
        return torch.cat([read_image(name, model.loaded.facts) for name in names])
    data = data_of(model.loaded, config["data"])
    if asked is None:
        return data.batch("test", range(min(most, len(data.load("test"))))).images
    return torch.cat([real_image(data, name) for name in names])


def real_image(data: ImageData, name: int | str) -> Images:
    """An image of the test split by its number, or of a file: (1, c, h, w) in [-1, 1]."""
    if isinstance(name, str):
        return read_image(name, data.facts)
    count = len(data.load("test"))
    if not 0 <= name < count:
        raise Refused(f"there is no test image {name}; their numbers are 0, ..., {count - 1}.")
    return data.batch("test", [name]).images
