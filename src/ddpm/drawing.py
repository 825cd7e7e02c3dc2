"""What `sample.py` does: images from a checkpoint into a folder."""

from pathlib import Path

import torch

from ddpm.build import Config
from ddpm.callbacks.progress import Progress
from ddpm.data.stream import as_loader, index_batches
from ddpm.errors import Refused
from ddpm.opening import Opened, data_of, opened, quiet_trainer
from ddpm.pictures import GRID_LIMIT, WriteImages, write_forward, write_grid, write_npz, write_trajectory
from ddpm.report import console

TYPES = {"out": str, "label": int | None, "guidance": float, "npz": bool, "trajectory": bool, "mode": str}
FORWARD_ROWS = TRAJECTORY_ROWS = 8


def draw_images(config: Config) -> None:
    """Draw as the config of sample.py says, and tell where everything is."""
    model, out = opened(config, TYPES), Path(config["out"])
    mode = {"reverse": reverse, "forward": forward}.get(config["mode"])
    if mode is None:
        raise Refused(f"mode={config['mode']} is not possible; choose reverse or forward.")
    refuse_label(config["label"], model)
    out.mkdir(parents=True, exist_ok=True)
    for path in mode(config, model, out):
        console.print(str(path), soft_wrap=True)


def refuse_label(label: int | None, model: Opened) -> None:
    """A label must be one that the model knows."""
    if label is None:
        return
    if getattr(model.loaded.diffusion.network, "null_label", None) is None:
        raise Refused("this model takes no label; leave out label=, or train with model.class_conditional=true.")
    if not 0 <= label < model.loaded.facts.num_classes:
        raise Refused(f"label={label} is not one of 0, ..., {model.loaded.facts.num_classes - 1}.")


def reverse(config: Config, model: Opened, out: Path) -> list[Path]:
    """Noise to images, on whatever the Trainer runs on."""
    count = config["num_images"]
    writer = WriteImages(out, count)
    trainer = quiet_trainer(config, [writer, Progress()])
    module = model.module(config["seed"], config["label"], float(config["guidance"]))
    batches = index_batches(count, config["batch_size"], trainer.global_rank, trainer.world_size)
    trainer.predict(module, as_loader(batches), return_predictions=False)
    trainer.strategy.barrier("written")
    return gathered(config, model, writer) if trainer.is_global_zero else []


def gathered(config: Config, model: Opened, writer: WriteImages) -> list[Path]:
    """What is made of the single images once all are there."""
    count, out = config["num_images"], writer.out
    paths = [writer.path(0).parent, write_grid(writer.written(min(count, GRID_LIMIT)), out / "grid.png")]
    if config["npz"]:
        paths.append(write_npz(writer.written(count), out / "samples.npz"))
    if config["trajectory"]:
        indices = torch.arange(min(TRAJECTORY_ROWS, count))
        given = model.module(config["seed"], config["label"], float(config["guidance"])).given(indices)
        paths += write_trajectory(given, model.sampler, model.loaded.facts.shape, config["seed"], out, len(indices))
    return paths


def forward(config: Config, model: Opened, out: Path) -> list[Path]:
    """The noising of real images of the test split (Ho et al. 2020, Eq. 4)."""
    data = data_of(model.loaded, config["data"])
    rows = torch.arange(min(config["num_images"], FORWARD_ROWS))
    return [write_forward(model.loaded.diffusion, data.batch("test", rows).images, config["seed"], out)]
