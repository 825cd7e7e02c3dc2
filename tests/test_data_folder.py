"""Images of every kind from a folder tree: decoding, listing, classes, splits, unreadable files."""

import os
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import UNSCORED, run
from torch import Tensor

from ddpm.callbacks.run_log import read
from ddpm.data.decode import Decoder, UnreadableError, height_and_width
from ddpm.data.image_folder import ImageFolder
from ddpm.errors import Failed, Refused

RED, WHITE = (255, 0, 0), (255, 255, 255)


def folder(root: Path | None, **changes: Any) -> ImageFolder:
    arguments = {
        "root": None if root is None else str(root),
        "image_size": 4,
        "channels": 3,
        "held_out": 0,
        "unreadable_is_fatal": False,
        "batch_size": 4,
        "num_workers": 0,
        "flip": False,
        "seed": 0,
    }
    return ImageFolder(**arguments | changes)


def grey(path: Path, level: int, size: tuple[int, int] = (4, 4)) -> None:
    """Write an image of one grey level, which tells it from others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path)


def decoded(path: Path, channels: int = 3, size: int = 4) -> Tensor:
    return Decoder(channels, size, size)(path)


def colours(image: Tensor) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in image.flatten(1).T.tolist()}


def levels(data: ImageFolder, split: str = "train") -> list[int]:
    """The grey level of each image of a split."""
    return data.load(split)[range(len(data.load(split)))][0][:, 0, 0, 0].tolist()


def png(path: Path, *chunks: tuple[bytes, bytes]) -> None:
    """A PNG of these chunks, each with its kind."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in (*chunks, (b"IEND", b""))))


def bomb(path: Path, side: int = 50000) -> None:
    """A PNG of a kilobyte that claims so many pixels a side."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    png(path, (b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**5))))


def vast(path: Path, side: int = 12000) -> None:
    """A whole PNG of 20 kilobytes, of one bit a pixel, a palette and transparency: as RGBA it is of half a gigabyte."""
    header, row = struct.pack(">IIBBBBB", side, side, 1, 3, 0, 0, 0), bytes(1 + side // 8)
    palette = ((b"PLTE", bytes(6)), (b"tRNS", b"\0\xff"))
    png(path, (b"IHDR", header), *palette, (b"IDAT", zlib.compress(row * side)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I"])
@pytest.mark.parametrize("channels", [1, 3])
def test_white_is_white_in_every_mode(mode: str, channels: int, tmp_path: Path) -> None:
    if mode.startswith("I"):
        image = Image.fromarray(np.full((4, 4), 65535, np.uint16 if mode == "I;16" else np.int32))
    else:
        image = Image.new("RGB", (4, 4), WHITE).convert("L" if mode == "LA" else "RGB").convert(mode)
    image.save(tmp_path / "a.tif")
    assert (decoded(tmp_path / "a.tif", channels) == 255).all()


def test_levels_of_the_right_size_are_left_alone(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert torch.equal(decoded(tmp_path / "a.png"), torch.from_numpy(pixels).permute(2, 0, 1))


def test_palettes_give_their_colours(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 7)
    image.putpalette([0, 0, 0] * 7 + [10, 20, 30])
    image.save(tmp_path / "a.gif")
    assert colours(decoded(tmp_path / "a.gif")) == {(10, 20, 30)}


def test_transparency_is_put_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (4, 4), (255, 0, 0, 51)).save(tmp_path / "faint.webp", lossless=True)
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "grey.png")
    Image.new("RGB", (4, 4), RED).save(tmp_path / "key.png", transparency=RED)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=0)
    for name in ("clear.png", "grey.png", "key.png", "palette.png"):
        assert colours(decoded(tmp_path / name)) == {WHITE}
    assert colours(decoded(tmp_path / "faint.webp")) == {(255, 204, 204)}


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bits_are_rounded_to_8(suffix: str, tmp_path: Path) -> None:
    deep = np.array([[0, 128, 129, 257], [1000, 32767, 32768, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    expected = (torch.from_numpy(deep.astype(np.float64)) / 257).round().to(torch.uint8)
    assert torch.equal(Decoder(1, 2, 4)(tmp_path / f"a.{suffix}")[0], expected)


def test_16_bit_transparency_is_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "a.png", transparency=1000)
    assert colours(decoded(tmp_path / "a.png")) == {WHITE}


def test_cmyk_jpegs_are_not_inverted(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    ((red, green, blue),) = colours(decoded(tmp_path / "a.jpg"))
    assert red > 250
    assert max(green, blue) < 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_rotated_images_stand_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    turn = Image.Transpose
    stored_as = {  # how a camera held that way stores what it sees
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    upright = Image.new("L", (32, 16), 0)
    upright.paste(255, (0, 0, 16, 8))
    stored = upright if orientation == 1 else upright.transpose(stored_as[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{suffix}", exif=exif)
    seen = Decoder(1, 16, 32)(tmp_path / f"a.{suffix}")[0]
    assert (seen[:8, :16] > 250).all()
    assert (seen[8:] < 5).all()
    assert (seen[:, 16:] < 5).all()


def test_the_centre_is_kept(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 10), RED)
    image.paste((0, 0, 255), (10, 0, 20, 10))
    image.save(tmp_path / "wide.png")
    image.rotate(90, expand=True).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        seen = decoded(tmp_path / name, size=5).float()
        assert (seen[0, 1:-1, 1:-1] < 40).all()
        assert (seen[2, 1:-1, 1:-1] > 215).all()


def test_the_shorter_side_decides_for_oblong_targets(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[:, None] * 4, 64, axis=1)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    seen = Decoder(1, 8, 16)(tmp_path / "a.png")
    assert seen.shape == (1, 8, 16)
    assert abs(seen.float().mean() - 126) < 1  # rows 16 to 47 of the ramp, about its middle
    assert 60 < seen.min() < 75


def test_shrinking_does_not_alias(tmp_path: Path) -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    seen = decoded(tmp_path / "a.png", channels=1, size=8).float()
    assert (seen - 127.5).abs().max() < 8


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 4)])
def test_tiny_images_are_enlarged(size: tuple[int, int], tmp_path: Path) -> None:
    grey(tmp_path / "a.png", 99, size)
    assert colours(decoded(tmp_path / "a.png")) == {(99, 99, 99)}


def test_what_is_no_image_is_unreadable_with_a_reason(tmp_path: Path) -> None:
    grey(tmp_path / "whole.png", 7, (64, 64))
    content = (tmp_path / "whole.png").read_bytes()
    files = {
        "empty.png": b"",
        "text.jpg": b"no image",
        "cut.png": content[: len(content) // 2],
        "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n(ls) run\n",
    }
    for name, body in files.items():
        (tmp_path / name).write_bytes(body)
        with pytest.raises(UnreadableError, match=": "):
            decoded(tmp_path / name)
    with pytest.raises(UnreadableError, match="FileNotFound"):
        decoded(tmp_path / "gone.png")


def test_floating_point_pixels_are_unreadable(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableError, match="floating-point"):
        decoded(tmp_path / "a.tif")


@pytest.mark.parametrize("side", [20000, 50000, 2**31 - 1])
def test_a_decompression_bomb_is_unreadable(side: int, tmp_path: Path) -> None:
    bomb(tmp_path / "bomb.png", side)
    with pytest.raises(UnreadableError, match="DecompressionBomb"):
        decoded(tmp_path / "bomb.png")


def test_an_image_that_unpacks_to_half_a_gigabyte_is_unreadable(tmp_path: Path) -> None:
    """A loader worker each would have its own."""
    grey(tmp_path / "0.png", 7)
    vast(tmp_path / "1.png")
    data = folder(tmp_path)
    with pytest.warns(UserWarning, match="1.png cannot be read .*DecompressionBombWarning"):
        assert levels(data) == [7, 7]
    assert data.num_unreadable("train") == 1
    with pytest.raises(Refused, match=r"1.png cannot be read .*DecompressionBombWarning"):
        levels(folder(tmp_path, unreadable_is_fatal=True))


def test_a_bomb_in_a_text_of_a_png_is_unreadable(tmp_path: Path) -> None:
    grey(tmp_path / "a.png", 7)
    whole = (tmp_path / "a.png").read_bytes()
    body = b"zTXtx\0\0" + zlib.compress(bytes(10**8))
    text = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "a.png").write_bytes(whole[:33] + text + whole[33:])  # after the header
    with pytest.raises(UnreadableError, match="too large"):
        decoded(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_an_animation_is_its_first_frame(suffix: str, tmp_path: Path) -> None:
    first, second, third = (Image.new("L", (4, 4), level) for level in (50, 100, 150))
    lossless = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second, third], **lossless)
    with Image.open(tmp_path / f"a.{suffix}") as whole:
        assert whole.n_frames == 3
    assert colours(decoded(tmp_path / f"a.{suffix}")) == {(50, 50, 50)}


@pytest.mark.parametrize("bad", [0, -3, [], [4], [4, 0], [4, 4, 4]])
def test_impossible_sizes_are_refused(bad: Any) -> None:
    with pytest.raises(Refused, match=r"data.image_size="):
        height_and_width(bad)


def test_sizes_are_one_number_or_two() -> None:
    assert height_and_width(64) == (64, 64)
    assert height_and_width([48, 64]) == (48, 64)


def test_two_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"data.channels=2 must be 1"):
        folder(tmp_path, channels=2)


def test_the_listing_is_sorted_and_leaves_out_what_is_no_image(tmp_path: Path) -> None:
    for i, name in enumerate(["b/2.PNG", "a/9.jpeg", "a/10.png", "c.bmp"]):
        grey(tmp_path / name, i)
    for name in ("a/notes.txt", ".hidden/1.txt", "a/._9.jpeg", "labels.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    grey(tmp_path / ".thumbnails" / "1.png", 9)
    assert folder(tmp_path).files == ["a/10.png", "a/9.jpeg", "b/2.PNG", "c.bmp"]


def test_linked_folders_are_listed_once(tmp_path: Path) -> None:
    grey(tmp_path / "elsewhere" / "1.png", 5)
    grey(tmp_path / "root" / "2.png", 6)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "round").symlink_to(tmp_path / "root")
    assert folder(tmp_path / "root").files == ["2.png", "link/1.png"]


def test_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    grey(tmp_path / "a.png", 5)
    (tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"\xff.png"))
    assert levels(folder(tmp_path)) == [5]


def test_folders_at_the_first_level_are_classes(tmp_path: Path) -> None:
    for i, name in enumerate(["cat/1.png", "cat/deep/2.png", "dog/3.png"]):
        grey(tmp_path / name, i)
    data = folder(tmp_path)
    assert data.facts.class_names == ("cat", "dog")
    assert data.load("train")[range(3)][1].tolist() == [0, 0, 1]
    grey(tmp_path / "stray.png", 3)
    data = folder(tmp_path)
    assert data.facts.class_names == ()
    assert data.load("train")[range(4)][1].tolist() == [-1] * 4


def test_one_folder_is_no_class(tmp_path: Path) -> None:
    grey(tmp_path / "images" / "1.png", 0)
    assert folder(tmp_path).facts.class_names == ()


def test_facts_and_batches_agree(tmp_path: Path) -> None:
    for level in (0, 255):
        grey(tmp_path / f"{level}.png", level, (20, 30))
    data = folder(tmp_path, image_size=[6, 8], channels=1)
    batch = data.batch("train", [0, 1])
    assert batch.images.shape == (2, *data.facts.shape) == (2, 1, 6, 8)
    assert (batch.images[0] == -1).all()
    assert (batch.images[1] == 1).all()
    assert (data.facts.num_levels, data.facts.name) == (256, tmp_path.name)


def test_an_empty_selection_is_an_empty_batch(tmp_path: Path) -> None:
    grey(tmp_path / "a.png", 1)
    assert folder(tmp_path).batch("train", []).images.shape == (0, 3, 4, 4)


def test_held_out_images_never_train(tmp_path: Path) -> None:
    for i in range(20):
        grey(tmp_path / f"{i:02}.png", i)
    data = folder(tmp_path, held_out=6)
    assert len(data.load("test")) == 6
    assert sorted(levels(data, "train") + levels(data, "test")) == list(range(20))
    assert "14 images train and 6 test" in data.facts.note
    assert levels(folder(tmp_path, held_out=6, seed=1), "test") == levels(data, "test")


def test_with_nothing_held_out_the_test_split_is_the_training_images(tmp_path: Path) -> None:
    grey(tmp_path / "a.png", 1)
    data = folder(tmp_path)
    assert levels(data, "test") == levels(data, "train")
    assert "the test split is the same images" in data.facts.note


@pytest.mark.parametrize("held_out", [-1, 2, 3])
def test_an_impossible_split_is_refused(held_out: int, tmp_path: Path) -> None:
    for i in range(2):
        grey(tmp_path / f"{i}.png", i)
    with pytest.raises(Refused, match=rf"data.held_out={held_out}"):
        _ = folder(tmp_path, held_out=held_out).facts


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"pass data.root=FOLDER"):
        folder(None)
    with pytest.raises(Refused, match=r"there is no folder .*nowhere"):
        _ = folder(tmp_path / "nowhere").facts
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(Refused, match="there are no images in"):
        _ = folder(tmp_path).facts


def spoilt(root: Path) -> None:
    """Images 0 to 5, of which 2, 3 and 5 are unreadable."""
    for i in range(6):
        grey(root / f"{i}.png", i)
    for i in (2, 3, 5):
        (root / f"{i}.png").write_bytes(b"broken")


def test_the_next_readable_image_stands_in_whoever_asks(tmp_path: Path) -> None:
    spoilt(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = folder(tmp_path)
        assert levels(data) == [0, 1, 4, 4, 4, 0]
        assert levels(data) == [0, 1, 4, 4, 4, 0]
        backwards = folder(tmp_path).load("train")[[5, 4, 3, 2, 1, 0]][0][:, 0, 0, 0].tolist()
    assert backwards == [0, 4, 4, 4, 1, 0]
    named = [str(warning.message) for warning in caught[:3]]
    assert all(f"{i}.png cannot be read" in text for i, text in zip((2, 3, 5), named, strict=True))
    assert len(caught) == 6  # once a file and data set


def test_the_label_is_that_of_the_image_that_stands_in(tmp_path: Path) -> None:
    grey(tmp_path / "a" / "0.png", 0)
    grey(tmp_path / "b" / "1.png", 1)
    (tmp_path / "a" / "0.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="stands in"):
        batch = folder(tmp_path).batch("train", [0])
    assert (batch.labels.tolist(), batch.number.tolist()) == ([1], [0])


@pytest.mark.filterwarnings("ignore:.*cannot be read")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_counted_over_all_workers(num_workers: int, tmp_path: Path) -> None:
    spoilt(tmp_path)
    data = folder(tmp_path, num_workers=num_workers)
    seen = torch.cat([batch.images[:, 0, 0, 0] for batch in data.batches("train", 2)])
    assert ((seen + 1) * 127.5).round().long().tolist() == [0, 1, 4, 4, 4, 0]
    assert (data.num_unreadable("train"), data.num_unreadable("test")) == (3, 0)
    with pytest.warns(UserWarning, match="3 of the 6 train images"):
        data.teardown("fit")


def test_unreadable_images_are_fatal_on_request(tmp_path: Path) -> None:
    spoilt(tmp_path)
    with pytest.raises(Refused, match=r"2.png cannot be read"):
        levels(folder(tmp_path, unreadable_is_fatal=True))


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_a_folder_of_broken_images_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(Refused, match="none of the 2 images can be read"):
        folder(tmp_path).batch("train", [0])


def three(root: Path) -> None:
    for i in range(3):
        grey(root / f"{i}.png", i)


def test_a_file_that_vanishes_is_stood_in_for(tmp_path: Path) -> None:
    three(tmp_path)
    data = folder(tmp_path)
    assert data.load("train")[[1]][0].max() == 1
    (tmp_path / "1.png").unlink()
    with pytest.warns(UserWarning, match=r"1.png cannot be read \(FileNotFoundError"):
        assert data.load("train")[[1]][0].max() == 2
    assert data.num_unreadable("train") == 1


def test_a_file_that_vanishes_is_fatal_on_request(tmp_path: Path) -> None:
    three(tmp_path)
    data = folder(tmp_path, unreadable_is_fatal=True)
    data.load("train")
    (tmp_path / "1.png").unlink()
    with pytest.raises(Failed, match=r"1.png cannot be read \(FileNotFoundError.*data.unreadable_is_fatal=false"):
        data.load("train")[[0, 1, 2]]


def rewritten(path: Path) -> None:
    """Another image, of another size."""
    grey(path, 200, (9, 9))


def regrown(path: Path) -> None:
    """Another image of the same time."""
    before = path.stat().st_mtime_ns
    rewritten(path)
    os.utime(path, ns=(before, before))


def touched(path: Path) -> None:
    """An image of the same size at another time."""
    os.utime(path, ns=(10**18, 10**18))


def exchanged(path: Path) -> None:
    """Another image that comes whole, under the same name."""
    grey(path.with_name("new.bmp"), 200)
    path.with_name("new.bmp").rename(path)


@pytest.mark.parametrize("change", [rewritten, regrown, touched, exchanged])
def test_a_file_that_changes_is_stood_in_for_from_then_on(change: Callable[[Path], None], tmp_path: Path) -> None:
    three(tmp_path)
    data = folder(tmp_path)
    assert levels(data) == [0, 1, 2]
    before = (tmp_path / "1.png").read_bytes(), (tmp_path / "1.png").stat().st_mtime_ns
    change(tmp_path / "1.png")
    with pytest.warns(UserWarning, match=r"1.png cannot be read \(it has changed since"):
        assert levels(data) == [0, 2, 2]
    (tmp_path / "1.png").write_bytes(before[0])
    os.utime(tmp_path / "1.png", ns=(before[1], before[1]))
    assert levels(data) == [0, 2, 2]
    assert data.num_unreadable("train") == 1


def test_a_file_that_changes_is_fatal_on_request(tmp_path: Path) -> None:
    three(tmp_path)
    data = folder(tmp_path, unreadable_is_fatal=True)
    assert levels(data) == [0, 1, 2]
    rewritten(tmp_path / "1.png")
    with pytest.raises(Failed, match=r"1.png cannot be read \(it has changed since this run first read it\)"):
        levels(data)


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_a_change_is_seen_whichever_worker_read_the_file_before(tmp_path: Path) -> None:
    three(tmp_path)
    data = folder(tmp_path, num_workers=2)
    seen = data.batches("train", 1, [1, 0, 0, 0, 0, 1])  # the first one, and by the other worker, once one was taken
    assert next(seen).images.max() < -0.98
    rewritten(tmp_path / "1.png")
    rest = torch.cat([batch.images[:, 0, 0, 0] for batch in seen])
    assert ((rest + 1) * 127.5).round().tolist() == [0, 0, 0, 0, 2]
    assert data.num_unreadable("train") == 1


def test_what_is_no_file_is_unreadable_without_waiting_for_it(tmp_path: Path) -> None:
    """A pipe would keep its reader waiting for a writer."""
    three(tmp_path)
    (tmp_path / "1.png").unlink()
    os.mkfifo(tmp_path / "1.png")
    with pytest.warns(UserWarning, match="no regular file"):
        assert levels(folder(tmp_path)) == [0, 2, 2]


def test_a_run_goes_on_with_the_files_that_it_began_with(tmp_path: Path) -> None:
    three(tmp_path)
    state = folder(tmp_path).state_dict()
    folder(tmp_path).load_state_dict(state)
    grey(tmp_path / "3.png", 3)
    with pytest.raises(
        Refused, match=r"begun with other data .*: 3 files.* then, 4 files.* now\): bring its files back"
    ):
        folder(tmp_path).load_state_dict(state)
    (tmp_path / "0.png").unlink()  # as many as before
    with pytest.raises(Refused, match="begun with other data"):
        folder(tmp_path).load_state_dict(state)


@pytest.mark.parametrize(("count", "held_out"), [(3, 1), (1, 0)])
def test_fewer_images_than_a_batch_train_and_validate(
    count: int, held_out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(count):
        grey(tmp_path / "images" / f"{i}.png", 80 * i, (8, 8))
    data = ["data=image_folder", "data.image_size=8", "data.channels=1", "data.num_workers=0"]
    data += [f"data.root={tmp_path}/images", f"data.held_out={held_out}"]
    run(tmp_path / "run", *UNSCORED, *data)
    log = read(tmp_path / "run" / "metrics.csv")
    assert set(log["train/loss"]) == {1, 3, 5}
    assert set(log["val/loss"]) == {2, 5}


def test_a_run_goes_on_with_a_copy_of_its_folder_and_not_with_files_that_have_changed(tmp_path: Path) -> None:
    for i in range(4):
        grey(tmp_path / "images" / f"{i}.png", 20 * i)
    first = folder(tmp_path / "images")
    first.setup("fit")
    shutil.copytree(tmp_path / "images", tmp_path / "copy", copy_function=shutil.copyfile)  # at another time
    folder(tmp_path / "copy").load_state_dict(first.state_dict())
    grey(tmp_path / "images" / "2.png", 250, (40, 40))
    with pytest.raises(Refused, match="begun with other data") as refusal:
        folder(tmp_path / "images").load_state_dict(first.state_dict())
    assert "\n" not in str(refusal.value)
