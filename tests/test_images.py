from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.images import enlarged, from_levels, grid, to_uint8, write_png, write_webp

GREY = torch.full((1, 8, 8), 128, dtype=torch.uint8)


@pytest.mark.parametrize("num_levels", [17, 256])
def test_levels_span_the_range_evenly(num_levels):
    x = from_levels(torch.arange(num_levels), num_levels)
    assert x[0] == -1
    assert x[-1] == 1
    assert torch.allclose(x.diff(), torch.tensor(2 / (num_levels - 1)), atol=1e-6)


def test_pixels_survive_the_way_to_the_network_and_back():
    levels = torch.arange(256)
    assert torch.equal(to_uint8(from_levels(levels, 256)).long(), levels)


def test_uint8_rounds_to_nearest_and_clips():
    x = torch.tensor([-7.0, 7.0, 0.0, (100.4 / 127.5) - 1, (100.6 / 127.5) - 1])
    assert to_uint8(x).tolist() == [0, 255, 128, 100, 101]


def test_a_grid_shows_each_image_where_it_belongs():
    images = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1).expand(6, 3, 4, 5)
    picture = grid(images, columns=3, padding=1)
    assert picture.shape == (3, 2 * 5 + 1, 3 * 6 + 1)
    assert picture[0, 2, 2::6].tolist() == [0, 1, 2]
    assert picture[0, 7, 2::6].tolist() == [3, 4, 5]
    assert picture[0, 0].unique().tolist() == [255]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_round_trip(channels, tmp_path):
    picture = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    write_png(picture, tmp_path / "x.png")
    back = np.asarray(Image.open(tmp_path / "x.png")).reshape(5, 7, channels)
    assert torch.equal(torch.from_numpy(back.copy()).permute(2, 0, 1), picture)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_an_animation_has_all_its_pictures(tmp_path):
    write_webp([torch.full((1, 8, 8), value, dtype=torch.uint8) for value in (0, 128, 255)], tmp_path / "x.webp")
    with Image.open(tmp_path / "x.webp") as animation:
        assert animation.n_frames == 3


@pytest.mark.parametrize("write", [lambda path: write_webp([GREY], path), lambda path: write_png(GREY, path)])
def test_a_picture_that_can_not_be_finished_leaves_the_one_before_it(write, tmp_path, monkeypatch):
    def breaks(picture, file, **_):
        Path(file).write_bytes(b"half")
        raise OSError

    path = tmp_path / "x"
    write(path)
    before = path.read_bytes()
    monkeypatch.setattr(Image.Image, "save", breaks)
    with pytest.raises(OSError):
        write(path)
    assert path.read_bytes() == before


def test_enlarging_repeats_pixels():
    assert torch.equal(enlarged(torch.tensor([[[1, 2]]]), 4), torch.tensor([[[1, 1, 2, 2], [1, 1, 2, 2]]]))
    tall = torch.zeros(5, 1, 6, 3)
    assert enlarged(tall, 12).shape == (5, 1, 12, 6)
    assert enlarged(tall, 12, size=tall.shape[-1]).shape == (5, 1, 24, 12)
