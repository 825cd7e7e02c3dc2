"""Weights that are spread over two CPU ranks: training, its checkpoint, and what opens it."""

import os
import shutil
from pathlib import Path

import forked
import pytest
import torch
from compose import composed
from lightning.pytorch import Trainer
from processes import SMALL

from ddpm.build import build_callbacks, build_data, build_module
from ddpm.callbacks.ema import EMA
from ddpm.callbacks.lifeline import Lifeline
from ddpm.checkpoint import find, load, read, resumable
from ddpm.checkpoint_io import AtomicCheckpointIO, give_back_names, take_name
from ddpm.errors import Refused
from ddpm.noise import Stream, scalar
from ddpm.sharded import Sharded, file_of
from ddpm.trainer import build_trainer

ASKED = [text for text in SMALL if not text.startswith("trainer.max_steps")]
ASKED += ["callbacks=[checkpoint,samples,evaluation,finite]", "model.dropout=0.0", "lr_schedule=warmup"]
ASKED += ["optimizer.eps=0.01", "logger=[]"]


def train(folder: Path, steps: int, checkpoint: Path | None, environment: dict[str, str]) -> None:
    """What training.train does, on two CPUs, which trainer=fsdp refuses."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    config = composed(*ASKED, f"trainer.max_steps={steps}")
    data = build_data(config)
    torch.manual_seed(scalar(config["seed"], Stream.INIT))
    module = build_module(config, data.facts)
    callbacks = [Lifeline(folder=None), *build_callbacks(config, folder, data, module)]
    kept = ("accelerator", "max_epochs", "gradient_clip_val", "val_check_interval", "check_val_every_n_epoch")
    options = {key: config["trainer"][key] for key in (*kept, "num_sanity_val_steps", "use_distributed_sampler")}
    trainer = Trainer(
        **options, max_steps=steps, strategy=Sharded() if environment else "auto", devices=2 if environment else 1,
        callbacks=callbacks, plugins=[AtomicCheckpointIO()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero:
        (folder / "val_loss").write_text(str(trainer.callback_metrics["val/loss"].item()))


def on_two(folder: Path, steps: int, checkpoint: Path | None = None) -> None:
    """Train on two ranks to the end."""
    context = forked._context
    ranks = [context.Process(target=train, args=(folder, steps, checkpoint, its)) for its in forked._launched(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
        rank.kill()
    assert [rank.exitcode for rank in ranks] == [0, 0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Eight steps on one rank; on two; and on two with a stop after four."""
    one, two, parts = (tmp_path_factory.mktemp(name) for name in ("one", "two", "parts"))
    with torch.random.fork_rng():
        train(one, 8, None, {})
    on_two(two, 8)
    on_two(parts, 4)
    on_two(parts, 8, parts / "checkpoints/last.ckpt")
    return [folder / "checkpoints/last.ckpt" for folder in (one, two, parts)]


@pytest.mark.slow
def test_spread_over_ranks_training_is_what_it_is_on_one_and_goes_on_as_it_was(runs):
    one, two, parts = (read(path) for path in runs)
    assert [runs[1] / file_of(rank) for rank in range(2)] == sorted(runs[1].iterdir())
    for name, expected in one["state_dict"].items():
        assert torch.allclose(two["state_dict"][name], expected, rtol=1e-3, atol=1e-6), name
        assert torch.equal(two["state_dict"][name], parts["state_dict"][name]), name
    rows = torch.load(runs[1] / file_of(1), weights_only=True)["state_dict"]
    sizes = [sum(value.numel() for value in state.values()) for state in (rows, two["state_dict"])]
    assert sizes[0] < 0.6 * sizes[1]
    assert (runs[1].parents[1] / "samples/step_0000008.png").is_file()
    assert read(runs[1].with_name("best.ckpt"))["global_step"] > 0
    validated = [float((path.parents[1] / "val_loss").read_text()) for path in runs]
    assert validated == [pytest.approx(validated[0], rel=1e-3)] * 3


@pytest.mark.slow
def test_such_a_checkpoint_opens_like_any_other(runs):
    found, alone = load(runs[1]), load(runs[0])
    assert found.step == 8
    assert find(runs[1]) == runs[1]
    assert find(runs[1].parents[1]) == runs[1]
    assert resumable(runs[1])["global_step"] == 8
    for mine, its in zip(found.diffusion.parameters(), alone.diffusion.parameters(), strict=True):
        assert torch.allclose(mine, its, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_a_part_that_is_missing_or_of_another_step_is_told(runs, tmp_path):
    for rank in range(2):
        (tmp_path / file_of(rank)).write_bytes((runs[1] / file_of(rank)).read_bytes())
    other = torch.load(tmp_path / file_of(1), weights_only=True)
    torch.save(other | {"global_step": 7}, tmp_path / file_of(1))
    with pytest.raises(Refused, match="parts are of different steps"):
        load(tmp_path)
    (tmp_path / file_of(1)).unlink()
    with pytest.raises(Refused, match="damaged"):
        load(tmp_path)


@pytest.mark.parametrize("call", range(3))
def test_a_kill_while_a_folder_takes_a_name_leaves_a_whole_one(call, tmp_path, monkeypatch):
    """Before each of the two changes of a name, and before the old one is deleted."""
    for name in ("best.ckpt", "best.ckpt.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / file_of(0)).write_text(name)
    left = [call]

    def killed(work):
        def one(*arguments):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return work(*arguments)

        return one

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed(Path.replace))
        patch.setattr("shutil.rmtree", killed(shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            take_name(tmp_path / "best.ckpt.part", tmp_path / "best.ckpt")
    give_back_names(tmp_path)
    assert (tmp_path / "best.ckpt" / file_of(0)).read_text() == ("best.ckpt" if call < 2 else "best.ckpt.part")
    assert not list(tmp_path.glob("*.old"))


def test_it_is_refused_where_it_can_not_be_in_one_sentence():
    config = composed("trainer=fsdp")
    with pytest.raises(Refused, match=r"add ~callbacks\.ema"):
        build_trainer(config, [EMA(decay=0.9, warmup=False)])
    with pytest.raises(Refused, match="no loss scaling"):
        build_trainer(composed("trainer=fsdp", "trainer.precision=16-mixed"))
    if not torch.cuda.is_available():
        with pytest.raises(Refused, match="spreads a model over GPUs, and there is none"):
            build_trainer(config)
