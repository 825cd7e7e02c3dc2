"""A rank waits for another one for longer than the limit of a process group."""

import time
from datetime import timedelta
from pathlib import Path

import pytest
from compose import composed
from forked import _context
from lightning.pytorch import LightningModule, Trainer
from torch import distributed

from ddpm.callbacks.patience import Patience
from ddpm.opening import quiet_trainer
from ddpm.trainer import build_trainer


def one_rank(rank: int, meeting: Path, patient: bool) -> None:
    """Rank 1 comes to the barrier a second after the time is up."""
    distributed.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{meeting}")
    distributed.barrier()
    distributed.group.WORLD.set_timeout(timedelta(seconds=1))
    if patient:
        Patience().setup(Trainer(accelerator="cpu", logger=False), LightningModule(), "predict")
    time.sleep(2 * rank)
    distributed.barrier()


@pytest.mark.parametrize("patient", [True, False])
def test_a_rank_that_comes_late_is_waited_for(patient: bool, tmp_path: Path) -> None:
    ranks = [_context.Process(target=one_rank, args=(rank, tmp_path / "meeting", patient)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert all(rank.exitcode == 0 for rank in ranks) == patient


@pytest.mark.parametrize("trainer", ["cpu", "ddp_cpu"])
def test_every_trainer_is_patient(trainer: str, tmp_path: Path) -> None:
    config = composed(f"trainer={trainer}")
    for made in (build_trainer(config, folder=tmp_path), quiet_trainer(config, [])):
        assert sum(isinstance(callback, Patience) for callback in made.callbacks) == 1
