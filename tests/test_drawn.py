"""A folder of images that is written batch by batch."""

import numpy as np
import pytest
import torch

from ddpm.data.stream import index_batches
from ddpm.drawn import Pictures, Shards, alone, finished, numbered, open_drawing, stream, write_npz
from ddpm.errors import Refused

KINDS = [Pictures, Shards]


def images(n, channels=3):
    return torch.randint(0, 256, (n, channels, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (7, 3), (8, 4)])
def test_what_is_written_is_there_once_and_in_its_place(kind, channels, count, batch_size, tmp_path):
    drawn, all_, batches = kind(tmp_path, count), images(count, channels), index_batches(count, batch_size, 0, 1)
    assert [len(batch) for batch in drawn.missing(batches)] == [len(batch) for batch in batches]
    for k, batch in enumerate(reversed(batches)):
        drawn.write(batch, all_[batch])
        assert len(drawn.missing(batches)) == len(batches) - k - 1
    assert drawn.indices() == set(range(count))
    assert torch.equal(torch.cat(list(stream(drawn, batches))), all_)
    assert not list(tmp_path.rglob("*.part"))


def test_half_a_batch_of_pictures_is_made_again(tmp_path):
    drawn, batch = Pictures(tmp_path, 4), torch.arange(4)
    drawn.write(batch, images(4))
    numbered(tmp_path, 2).unlink()
    assert len(drawn.missing([batch])) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_a_loss_of_power_left_empty_is_made_again(kind, tmp_path):
    drawn, batches = kind(tmp_path, 4), index_batches(4, 2, 0, 1)
    for batch in batches:
        drawn.write(batch, images(4)[batch])
    name = "000003.png" if kind is Pictures else "shards/000002-000003.npz"
    (tmp_path / name).write_bytes(b"")
    assert [batch.tolist() for batch in drawn.missing(batches)] == [[2, 3]]
    assert drawn.indices() == ({0, 1, 2} if kind is Pictures else {0, 1})
    (tmp_path / "samples.npz").touch()
    assert not finished(tmp_path / "samples.npz", 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_npz_is_what_numpy_would_write_whatever_the_batches(channels, tmp_path):
    all_, paths = images(9, channels), [tmp_path / f"{k}.npz" for k in (2, 9)]
    for path, size in zip(paths, (2, 9), strict=True):
        write_npz(path, tuple(all_.shape), all_.split(size))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    kept = np.load(paths[0], allow_pickle=False)
    assert kept.files == ["arr_0"]
    assert kept["arr_0"].dtype == np.uint8
    assert np.array_equal(kept["arr_0"], all_.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_holds_one_drawing(kind, tmp_path):
    drawn = kind(tmp_path / "out", 4)
    open_drawing(drawn, {"seed": 0, "sampler": "x"}, write=True)
    open_drawing(drawn, {"seed": 0, "sampler": "x"}, write=True)
    drawn.write(torch.arange(4), images(4))
    open_drawing(kind(tmp_path / "out", 8), {"seed": 0, "sampler": "x"}, write=True)
    with pytest.raises(Refused, match="another seed"):
        open_drawing(drawn, {"seed": 1, "sampler": "x"}, write=True)
    with pytest.raises(Refused, match="more than num_images=2"):
        open_drawing(kind(tmp_path / "out", 2), {"seed": 0, "sampler": "x"}, write=True)
    (tmp_path / "out/drawing.json").unlink()
    with pytest.raises(Refused, match="unknown origin"):
        open_drawing(drawn, {"seed": 0, "sampler": "x"}, write=True)


def test_a_folder_is_drawn_into_by_one_command_at_a_time(tmp_path):
    out = tmp_path / "new/out"
    refused = pytest.raises(Refused, match=r"another process draws into .*new/out; wait for it")
    for _ in range(2):
        with alone(out, first=True), alone(out, first=False), refused, alone(out, first=True):
            raise AssertionError
