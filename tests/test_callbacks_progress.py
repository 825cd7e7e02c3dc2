"""Progress is counted in optimiser steps, and short where nobody watches it live."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
from compose import composed
from lightning.pytorch.strategies import SingleDeviceStrategy
from tiny import Tiny, fit, tiny_trainer
from torch import Tensor

from ddpm.callbacks.progress import Progress
from ddpm.data.stream import as_loader, index_batches
from ddpm.trainer import build_trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_pipe_gets_a_line_each_tenth_of_the_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], accumulate: int
) -> None:
    options = {"enable_progress_bar": True, "accumulate_grad_batches": accumulate}
    fit(tiny_trainer(tmp_path, 40, Progress(), **options), Tiny())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines] == [f"step {k} of 40" for k in range(4, 41, 4)]
    assert all(word in line for line in lines for word in ("gone", "left", "steps/s", "loss"))


def test_a_resumed_run_counts_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tiny_trainer(tmp_path, 35)
    fit(first, Tiny())
    first.save_checkpoint(tmp_path / "35.ckpt")
    fit(tiny_trainer(tmp_path, 40, Progress(), enable_progress_bar=True), Tiny(), tmp_path / "35.ckpt")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 36 of 40 (90 %)", "step 40 of 40 (100 %)"]


class OneOfTwo(SingleDeviceStrategy):
    """A rank beside one that has so many images to draw."""

    def __init__(self, others: int) -> None:
        super().__init__("cpu")
        self.others = others

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor + self.others


class Draws(Tiny):
    """A clock tells two seconds more with each batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.seconds = count(0.0, 2.0)
        self.tell(monkeypatch)
        self.patch = monkeypatch

    def tell(self, patch: pytest.MonkeyPatch) -> None:
        now = next(self.seconds)
        patch.setattr("ddpm.callbacks.progress.monotonic", lambda: now)

    def predict_step(self, indices: Tensor, batch_idx: int) -> None:
        self.tell(self.patch)


def drawn(folder: Path, mine: list[Tensor], others: int, patch: pytest.MonkeyPatch) -> None:
    trainer = tiny_trainer(folder, 1, Progress(), enable_progress_bar=True, strategy=OneOfTwo(others))
    trainer.predict(Draws(patch), [as_loader(mine)], return_predictions=False)


def test_a_drawing_tells_images_a_second_and_the_time_left_of_all_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(tmp_path, index_batches(7, 2, rank=0, world_size=2), 3, monkeypatch)
    assert capsys.readouterr().out.splitlines() == [
        "image 3 of 7 (42 %), 0:00:02 gone, 0:00:03 left, 1.5 images/s",
        "image 7 of 7 (100 %), 0:00:04 gone, 0:00:00 left, 1.75 images/s",
    ]


def test_a_rank_without_images_says_that_it_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(tmp_path, [], 3, monkeypatch)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "3 images are left to other ranks than this one, which waits for them."


@pytest.mark.parametrize("chosen", [[], [Progress()]])
def test_without_it_there_is_no_bar(chosen: list[Progress]) -> None:
    made = build_trainer(composed("trainer=cpu"), chosen)
    assert (made.progress_bar_callback is not None) == bool(chosen)
