"""The judge of digits, on what it must say: of real digits, and of copies."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.images import from_levels, to_uint8, write_png

PATH = Path(__file__).parents[1] / "benchmarks/judge_digits.py"
RATIO, SHARE = "ratio", "share nearer to a training image than 2.5 % of held-out digits"


@pytest.fixture(scope="module")
def judge():
    spec = importlib.util.spec_from_file_location("judge_digits", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_held_out_digits_are_real_and_no_copies(judge):
    said = judge.judge(judge.real("test")[0])
    assert said[RATIO] == 1
    assert said[SHARE] == pytest.approx(0.025, abs=1 / 297)
    assert said["accuracy of the judge on held-out digits"] > 0.97


def test_training_images_are_copies_and_one_digit_alone_is_no_sample_of_them(judge):
    images, labels = judge.real("train")
    assert judge.judge(images)[SHARE] == 1
    ones = judge.judge(images[labels == 1])
    assert ones[SHARE] == 1
    assert ones[RATIO] < 0.2


def test_anything_but_one_folder_of_images_ends_in_an_error(judge, tmp_path):
    write_png(torch.zeros(1, 90, 90, dtype=torch.uint8), tmp_path / "grid.png")
    for arguments in ([], [str(tmp_path)], [str(tmp_path / "none")], ["a", "b"]):
        with pytest.raises(SystemExit, match=r"^error: .* is no folder of images"):
            judge.main(arguments)


def test_the_pictures_of_a_folder_are_read_back_to_their_levels_without_the_grid(judge, tmp_path):
    levels = judge.real("test")[0][:12]
    assert set(np.unique(levels)) == set(range(17))
    for i, image in enumerate(torch.tensor(levels).reshape(-1, 1, 8, 8)):
        write_png(to_uint8(from_levels(image, 17)), tmp_path / f"{i:06d}.png")
    write_png(torch.zeros(1, 90, 90, dtype=torch.uint8), tmp_path / "grid.png")
    assert np.array_equal(judge.sampled(tmp_path), levels)
