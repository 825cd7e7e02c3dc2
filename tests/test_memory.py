"""What grows with the number of images is on the disk."""

import os
from pathlib import Path

import pytest
from PIL import Image
from processes import start
from running import UNSCORED, run

SIDE = 64


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose images take memory."""
    cwd = tmp_path_factory.mktemp("pictures")
    (cwd / "images").mkdir()
    for i in range(4):
        Image.new("RGB", (SIDE, SIDE), (60 * i, 20, 200)).save(cwd / f"images/{i}.png")
    data = ["data=image_folder", f"data.root={cwd}/images", f"data.image_size={SIDE}", "data.held_out=1"]
    return run(cwd / "run", *UNSCORED, *data, "data.num_workers=0", "trainer.max_steps=1")


def peak(folder: Path, cwd: Path, num_images: int) -> int:
    """The most bytes that drawing so many images has held in memory."""
    asked = [f"checkpoint={folder}", f"out=of_{num_images}", f"num_images={num_images}", "batch_size=50", "npz=true"]
    process = start("sample", cwd, *asked, "sampler.num_steps=1", "trainer=cpu")
    told = process.stdout.read()
    _, ended, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(ended)
    assert process.returncode == 0, told
    return 1024 * used.ru_maxrss


@pytest.mark.slow
def test_drawing_more_images_takes_no_more_memory(of_pictures, tmp_path):
    few, many = (peak(of_pictures, tmp_path, count) for count in (200, 6_200))
    assert many - few < 6_000 * 3 * SIDE**2 / 3  # bytes, of which kept images would take three times as many
    assert (tmp_path / "of_6200/samples.npz").stat().st_size == pytest.approx(6_200 * 3 * SIDE**2, rel=0.01)
