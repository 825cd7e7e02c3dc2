"""The run's own log is never lost, and two equal runs have equal logs."""

import csv
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image
from processes import SMALL
from running import run
from tiny import Tiny, fit, tiny_trainer

from ddpm.callbacks.learning_rate import LearningRate
from ddpm.callbacks.run_log import RunLog, draw_losses, plot_loss, read


def test_a_training_logs_what_it_measures(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run")
    fit(tiny_trainer(tmp_path, 6, logger=log), Tiny())
    history = read(log.path)
    assert list(history["train/loss"]) == [0, 1, 2, 3, 4, 5]
    assert list(history["val/loss"]) == [2, 5]
    assert "epoch" not in history
    with log.path.open() as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"step", "time", "name", "value"}
    assert all(float(row["value"]) == history[row["name"]][int(row["step"])] for row in rows)


def test_the_learning_rate_is_logged_once_a_step_however_much_is_accumulated(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    options = {"accumulate_grad_batches": 3, "limit_val_batches": 0, "log_every_n_steps": 2}
    fit(tiny_trainer(tmp_path, 6, LearningRate(), logger=log, **options), Tiny())
    rows = [line for line in log.path.read_text().splitlines() if ",lr-Adam," in line]
    assert [(int(line.split(",")[0]), float(line.split(",")[3])) for line in rows] == [(1, 0.05), (3, 0.05), (5, 0.05)]


def test_values_keep_their_last_bit_and_names_their_commas(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.log_metrics({"a, 'b' \"c\"": 0.1 + 0.2, "nothing": float("nan")}, step=3)
    history = read(log.path)
    assert history["a, 'b' \"c\""] == {3: 0.1 + 0.2}
    assert history["nothing"][3] != history["nothing"][3]


def test_a_resumed_run_has_the_log_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, log = RunLog(tmp_path / "whole"), RunLog(tmp_path / "run")
    fit(tiny_trainer(tmp_path, 10, logger=whole), Tiny())
    first = tiny_trainer(tmp_path, 5, logger=log)
    fit(first, Tiny())
    first.save_checkpoint(tmp_path / "5.ckpt")
    size = log.path.stat().st_size
    fit(tiny_trainer(tmp_path, 8, logger=log), Tiny(), tmp_path / "5.ckpt")  # went on, and was killed

    again = RunLog(tmp_path / "run")
    again.cut(size)
    assert max(read(log.path)["train/loss"]) == 4
    fit(tiny_trainer(tmp_path, 10, logger=again), Tiny(), tmp_path / "5.ckpt")
    assert read(again.path) == read(whole.path)


def test_whatever_order_a_config_has_its_callbacks_in_a_resumed_run_repeats_no_row(tmp_path: Path) -> None:
    """The learning rate of a step is logged as its batch starts, when the steps before it are saved."""
    apart = ("callbacks.samples", "callbacks.evaluation", "trainer.log", "trainer.limit_val")
    asked = [*(text for text in SMALL if not text.startswith(apart)), "logger=[]", "metric=[]", "optimized_metric=null"]
    asked += ["callbacks=[learning_rate,checkpoint,ema_warmup]", "trainer.log_every_n_steps=1"]
    asked += ["trainer.limit_val_batches=0"]
    folder = run(tmp_path / "run", *asked)
    (folder / "checkpoints/last.ckpt").unlink()
    run(folder, *asked)  # from the one before, of step 3
    rows = [line.split(",")[::2] for line in (folder / "metrics.csv").read_text().splitlines()]
    assert sum(name.startswith("lr-") for _, name in rows) == 6
    assert len({(step, name) for step, name in rows}) == len(rows)


def test_an_existing_log_is_continued_and_a_torn_line_dropped(tmp_path: Path) -> None:
    RunLog(tmp_path).log_metrics({"loss": 1.0}, step=1)
    path = RunLog(tmp_path).path
    with path.open("a") as file:
        file.write("2,2026-01-01,loss,0.12")
    assert read(path) == {"loss": {1: 1.0}}
    RunLog(tmp_path).log_metrics({"loss": 0.125}, step=2)
    assert read(path) == {"loss": {1: 1.0, 2: 0.125}}
    assert path.read_text().count("step,time,name,value") == 1


@pytest.mark.parametrize("text", ["", "step,ti"])
def test_a_log_torn_in_its_header_begins_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    RunLog(tmp_path).log_metrics({"loss": 1.0}, step=1)
    assert read(tmp_path / "metrics.csv") == {"loss": {1: 1.0}}


def test_cutting_leaves_no_second_file_and_needs_none(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.cut(0)
    assert not list(tmp_path.iterdir())
    for step in (1, 2, 3):
        log.log_metrics({"loss": float(step), "rate": 0.5}, step=step)
    log.cut(len("".join(log.path.read_text().splitlines(keepends=True)[:5])))
    log.log_metrics({"late": 7.0}, step=3)
    assert read(log.path) == {"loss": {1: 1.0, 2: 2.0}, "rate": {1: 0.5, 2: 0.5}, "late": {3: 7.0}}
    assert list(tmp_path.iterdir()) == [log.path]


@pytest.mark.parametrize("names", [[], ["train/loss"], ["train/loss", "val/loss", "train/loss_quarter_3"]])
def test_losses_are_drawn_as_far_as_they_are_there(tmp_path: Path, names: list[str]) -> None:
    plot_loss({name: {9: 1.0, 19: 0.5, 29: float("nan")} for name in names}, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.width > picture.height > 300


@pytest.mark.parametrize(("first", "last"), [(1.0, 1e-3), (0.12, 0.09), (0.0312, 0.0305)])
def test_an_axis_of_losses_can_be_read(first: float, last: float) -> None:
    axes = Figure().subplots()
    draw_losses(axes, {"train/loss": {9: first, 19: last}})
    low, high = axes.get_ylim()
    seen = [tick for tick in axes.get_yticks() if low <= tick <= high]
    labels = axes.yaxis.get_major_formatter().format_ticks(seen)
    assert len(set(labels)) == len(seen) >= 3
