"""Grids compare: the same noise at every step, and the averaged weights; TensorBoard shows them beside the numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from compose import composed
from PIL import Image
from running import UNSCORED, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddpm.build import build_sampler
from ddpm.checkpoint import load
from ddpm.images import enlarged, grid, to_uint8
from ddpm.sampling import draw

CHOSEN = [text for text in UNSCORED if text not in ("~callbacks.samples", "lr_schedule.num_steps=2")]
CHOSEN += ["callbacks.samples.num_images=4", "callbacks.samples.every_n_steps=2", "callbacks.ema.warmup=false"]
CHOSEN += ["callbacks.ema.decay=0.5", "lr_schedule=constant", "seed=3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run whose weights move fast, so that the averaged ones stay behind."""
    loud = ["optimizer.lr=0.05", "logger=[csv,tensorboard]"]
    return run(tmp_path_factory.mktemp("samples") / "run", *(t for t in CHOSEN if t != "logger=[]"), *loud)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_grids_of_a_model_that_stands_still_are_equal_byte_for_byte(tmp_path):
    folder = run(tmp_path / "run", *CHOSEN, "optimizer.lr=0.0", "trainer.max_steps=4")
    first, second = sorted((folder / "samples").iterdir())
    assert [path.name for path in (first, second)] == ["step_0000002.png", "step_0000004.png"]
    assert first.read_bytes() == second.read_bytes()
    assert pixels(first).std() > 20


def test_a_grid_is_drawn_with_the_averaged_weights_from_the_runs_own_seed(trained):
    config = composed(*CHOSEN)
    shown = pixels(trained / "samples/step_0000006.png")
    drawn = {}
    for weights in ("ema", "raw"):
        diffusion = load(trained / "checkpoints/last.ckpt", weights).diffusion.eval()
        with torch.no_grad():
            images = draw(diffusion, build_sampler(config, diffusion), torch.arange(4), (1, 8, 8), seed=3)
        drawn[weights] = enlarged(grid(to_uint8(images)), 512)[0].numpy()
    assert np.array_equal(shown, drawn["ema"])
    assert not np.array_equal(drawn["ema"], drawn["raw"])


def test_tensorboard_has_the_losses_the_learning_rate_and_the_grids(trained):
    events = EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "val/loss", "train/gradient_norm", "lr-Adam"} <= set(tags["scalars"])
    assert {f"train/loss_quarter_{k}" for k in (1, 2, 3, 4)} <= set(tags["scalars"])
    assert [event.value for event in events.Scalars("lr-Adam")] == pytest.approx([0.05] * 3)
    assert len(events.Images("samples")) == 3
    assert (trained / "csv").is_dir()
