"""A loss or gradient that is lost stops the run before weights, averages or files take it."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from tiny import Tiny, fit, tiny_trainer
from torch import Tensor

from ddpm.callbacks.ema import EMA, averaged
from ddpm.callbacks.finite import StopOnNonFinite, Verdict
from ddpm.errors import Refused


class SaveEachStep(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{trainer.global_step}.ckpt")


class Late(StopOnNonFinite):
    """Reads its verdicts as on a GPU: one step later."""

    def judge(self, step: int, counts: Tensor) -> None:
        self.unread = Verdict(step, counts, None)


class SteepAtZero(Tiny):
    """The loss stays finite while the gradient of |w|^(1/2) at 0 does not."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        steep = (next(self.network.parameters()) * 0).abs().sqrt().sum()
        return loss + steep if self.global_step == 2 else loss


class Chosen(Tiny):
    """Only rank 1 meets the nan."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if self.global_step == 2 and self.global_rank == 1 else loss


def finite(values: Any) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in values)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_nan_stops_the_run_before_anything_takes_it(tmp_path: Path, accumulate: int) -> None:
    module, callbacks = Tiny(spoil=4), (EMA(decay=0.5, warmup=False), StopOnNonFinite(), SaveEachStep())
    trainer = tiny_trainer(tmp_path, 8, *callbacks, accumulate_grad_batches=accumulate)
    with pytest.raises(Refused, match=r"The training loss is nan or infinite in step 5: lower optimizer.lr"):
        fit(trainer, module)
    file = torch.load(tmp_path / "4.ckpt", weights_only=True)
    for name, value in module.named_parameters():
        assert torch.equal(value, file["current_model_state"][name])
    with averaged(trainer):
        for name, value in module.named_parameters():
            assert torch.equal(value, file["state_dict"][name])
    assert not (tmp_path / "5.ckpt").exists()


def test_a_lost_gradient_of_a_finite_loss_stops_the_run(tmp_path: Path) -> None:
    module = SteepAtZero()
    with pytest.raises(Refused, match=r"The gradient of the training loss is nan or infinite in step 3"):
        fit(tiny_trainer(tmp_path, 8, StopOnNonFinite()), module)
    assert finite(module.parameters())


@pytest.mark.parametrize("spoil", [4, 7])
def test_a_verdict_that_is_read_late_still_comes_before_a_file(tmp_path: Path, spoil: int) -> None:
    with pytest.raises(Refused, match=f"step {spoil + 1}"):
        fit(tiny_trainer(tmp_path, 8, Late(), SaveEachStep(), val_check_interval=100), Tiny(spoil))
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert len(saved) == spoil
    for path in saved:
        assert finite(torch.load(path, weights_only=True)["state_dict"].values())


@pytest.mark.parametrize("spoil", [4, 7])
def test_a_verdict_that_is_read_late_stops_the_run_without_a_file(tmp_path: Path, spoil: int) -> None:
    with pytest.raises(Refused, match=f"step {spoil + 1}"):
        fit(tiny_trainer(tmp_path, 8, Late(), val_check_interval=100), Tiny(spoil))


def test_the_loss_scaler_may_meet_infinite_gradients(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, growth_interval=1000)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    module = Tiny()
    fit(tiny_trainer(tmp_path, 4, StopOnNonFinite(), plugins=[plugin]), module)
    assert scaler.get_scale() < 2.0**100
    assert finite(module.parameters())


@pytest.mark.slow
def test_ranks_stop_together(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    common |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", "PYTHONPATH": str(Path(__file__).parent)}
    program = f"from test_callbacks_finite import one_rank; one_rank({str(tmp_path)!r})"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
        )
        for rank in "01"
    ]
    for rank in ranks:
        assert b"The training loss is nan or infinite in step 3" in rank.communicate(timeout=400)[1]


def one_rank(folder: str) -> None:
    fit(tiny_trainer(Path(folder), 8, StopOnNonFinite(), strategy="ddp", devices=2), Chosen())
