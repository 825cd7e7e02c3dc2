"""Faults of data in real runs: workers that are killed, and fewer images than ranks."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from processes import SMALL, start, verb
from test_data_folder import grey

PLACELESS = [text for text in SMALL if not text.startswith("trainer.accelerator")]
FOLDER = [
    *("data=image_folder", "data.root=images", "data.image_size=8", "data.channels=1", "data.batch_size=4"),
    *("logger=[]", "metric=[fid_random]", "optimized_metric=null", "~callbacks.evaluation"),
]


def images(root: Path, count: int) -> None:
    for i in range(count):
        grey(root / "images" / f"{i}.png", 20 * i, (8, 8))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_ends_in_one_message_and_can_go_on(tmp_path: Path) -> None:
    images(tmp_path, 9)
    asked = [*SMALL, *FOLDER, "data.num_workers=2", "trainer.val_check_interval=100000", "name=x"]
    endless = [*asked, "trainer.max_steps=1000000", "lr_schedule=warmup"]
    run = start("train", tmp_path, *endless)
    try:
        last = tmp_path / "runs" / "x"
        while not list(last.glob("*/checkpoints/last.ckpt")):
            assert run.poll() is None, run.communicate()[0]
            time.sleep(0.2)
        workers = children(run.pid)
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        told, _ = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 1
    assert told.count("a process that reads images died") == 1
    assert "Traceback" not in told
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    (folder,) = last.iterdir()
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], "died" in status["reason"]) == ("failed", True)


@pytest.mark.slow
def test_fewer_images_than_ranks_train_and_are_refused_where_ranks_must_meet(tmp_path: Path) -> None:
    images(tmp_path, 1)
    asked = [*PLACELESS, *FOLDER, "trainer=ddp_cpu", "data.num_workers=0", "name=x"]
    told = verb("train", tmp_path, *asked, ok=False)
    assert told.count("1 test images are too few for 2 ranks: choose fewer trainer.devices") == 1
    assert "Traceback" not in told
    verb("train", tmp_path, *asked, "trainer.limit_val_batches=0")
    (folder,) = [path.parent.parent for path in tmp_path.glob("runs/x/*/checkpoints/last.ckpt")]
    told = verb(
        *("evaluate", tmp_path, f"checkpoint={folder}", "trainer=ddp_cpu", "num_images=2", "batch_size=1"),
        *("sampler.num_steps=2", "metric=[bits_per_dim]", "metric.bits_per_dim.num_times=2"),
    )
    scores = json.loads((folder / "checkpoints" / "results.jsonl").read_text())["scores"]
    assert any("bits_per_dim" in name for name in scores), told
