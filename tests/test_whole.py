"""What is written is whole, and on the disk before it takes its name."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm import measuring, rate_distortion, sweep
from ddpm.callbacks.run_log import plot_loss
from ddpm.checkpoint_io import AtomicCheckpointIO
from ddpm.drawn import Pictures, Shards, open_drawing, write_npz
from ddpm.images import write_png, write_webp
from ddpm.metric.cache import cached
from ddpm.pictures import Figure, Table, plot, write_table
from ddpm.tables.__main__ import keep
from ddpm.whole import is_there, whole

PICTURE = torch.zeros(1, 4, 4, dtype=torch.uint8)
TERMS = dict.fromkeys(("bits_per_dim", "x_0_mse"), np.ones(12)) | {"L_T": np.array(1.0)}


def bound(path: Path) -> None:
    rate_distortion.write(TERMS, path.with_suffix(""))


def sweep_table(path: Path) -> None:
    sweep.present([{"run": "a", "reason": ""}], path.with_suffix(""))


def shard(path: Path) -> None:
    Shards(path.parent, 2).write(torch.arange(2), PICTURE.expand(2, -1, -1, -1))


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.png": lambda path: write_png(PICTURE, path),
    "a.webp": lambda path: write_webp([PICTURE, PICTURE], path),
    "a.npz": lambda path: write_npz(path, (1, 1, 4, 4), [PICTURE[None]]),
    "000007.png": lambda path: Pictures(path.parent, 8).write(torch.tensor([7]), PICTURE[None]),
    "shards/000000-000001.npz": lambda path: shard(path.parents[1] / "x"),
    "drawing.json": lambda path: open_drawing(Pictures(path.parent, 1), {"seed": 0}, write=True),
    "figure.png": lambda path: plot(Figure("x", torch.zeros(1, 1, 1, 4, 4), [""], [""]), path),
    "table.csv": lambda path: write_table(Table(["a"], [[1]]), path),
    "bound.npz": bound,
    "bound.csv": bound,
    "bound.png": bound,
    "loss.png": lambda path: plot_loss({"train/loss": {9: 1.0, 19: 0.5}}, path),
    "sweep.csv": sweep_table,
    "sweep.md": sweep_table,
    "table1.md": lambda path: keep(path, "| row |"),
    "last.ckpt": lambda path: AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(3)}, path),
    "results.jsonl": lambda path: measuring.keep(path, {"protocol": {"seed": 0}}),
    "statistics": lambda path: cached(
        path, read=Path.read_text, make=lambda: "made", write=lambda told, part: part.write_text(told)
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_on_the_disk_before_it_has_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a loss of power leaves no empty file that counts as done."""
    path, fsync = tmp_path / name, os.fsync
    synchronised = []

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        facts = os.fstat(descriptor)
        synchronised.append((facts.st_ino, facts.st_size, is_there(path)))

    path.touch() if name == "results.jsonl" else None  # whose rows are read first
    monkeypatch.setattr(os, "fsync", noted)
    WRITERS[name](path)
    facts = path.stat()
    assert (facts.st_ino, facts.st_size, False) in synchronised
    assert facts.st_size > 0
    assert not list(tmp_path.rglob("*.part"))


def test_what_can_not_be_finished_leaves_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_table(Table(["a"], [[1]]), path)
    with pytest.raises((csv.Error, TypeError)):  # of its writer, or where types are watched
        write_table(Table(["a"], [[1], 2]), path)  # type: ignore[list-item]
    assert path.read_text() == "a\n1\n"
    with pytest.raises(ValueError, match="broken"), whole(path) as part:
        part.write_text("half")
        raise ValueError("broken")
    assert path.read_text() == "a\n1\n"
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]  # half of a large one would keep the disk full


@pytest.mark.parametrize("name", [name for name in WRITERS if name.endswith(".csv")])
def test_all_tables_of_numbers_have_the_same_ends_of_lines(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert b"\n" in content
    assert b"\r" not in content
