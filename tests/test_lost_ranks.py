"""When a rank is lost the others end, and say why."""

import filecmp
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from forked import start, wait_for
from processes import ROOT, SMALL
from test_clusters import agents

SECONDS = 15
TWO = [*(text for text in SMALL if not text.startswith("trainer.accelerator")), "logger=[]", "trainer=ddp_cpu"]
LONG = ["trainer.max_steps=100000", "trainer.val_check_interval=100000", "callbacks.checkpoint.every_n_steps=2"]
LONG += ["callbacks.samples.every_n_steps=100000", "callbacks.evaluation.every_n_steps=100000"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one step, and where it lies."""
    cwd = tmp_path_factory.mktemp("trained")
    small = [text for text in SMALL if not text.startswith(("callbacks", "trainer.max_steps"))]
    start(cwd, *small, "logger=[]", "callbacks=[checkpoint]", "optimized_metric=null", "trainer.max_steps=1").done()
    (folder,) = (cwd / "runs/ddpm").iterdir()
    return cwd, folder


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_training_ends_with_a_rank_and_its_folder_says_why(tmp_path, victim):
    job = start(tmp_path, *TWO, *LONG, ranks=2)
    assert wait_for(lambda: list(tmp_path.glob("runs/ddpm/*/checkpoints/last.ckpt")), job), job.told.read_text()
    os.kill(job.ranks[victim].pid, signal.SIGKILL)
    codes = job.wait(SECONDS)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1, job.told.read_text()
    assert f"error: rank {victim} was lost" in job.told.read_text()
    assert "Traceback" not in job.told.read_text()
    (file,) = tmp_path.glob("runs/ddpm/*/status.json")
    told = json.loads(file.read_text())
    assert told["state"] == ("failed" if victim == 1 else "running")  # which a table tells as killed
    assert victim == 0 or "rank 1 was lost" in told["reason"]


@pytest.mark.slow
def test_a_rank_that_draws_without_asking_the_others_ends_too_and_any_ranks_draw_the_rest(trained, tmp_path):
    asked = [f"checkpoint={trained[1]}", "num_images=61", "batch_size=2", "sampler.num_steps=20", "npz=true"]
    lost = tmp_path / "lost_1"
    job = start(tmp_path, *asked, f"out={lost}", "trainer=ddp_cpu", verb="sample", ranks=2)
    assert wait_for(lambda: len(list(lost.rglob("0000*.png"))) > 3, job), job.told.read_text()
    os.kill(job.ranks[1].pid, signal.SIGKILL)
    assert job.wait(SECONDS) == [1, -signal.SIGKILL], job.told.read_text()
    assert "error: rank 1 was lost" in job.told.read_text()
    assert not (lost / "samples.npz").exists()
    shutil.copytree(lost, tmp_path / "lost_2")
    for out, ranks in (("lost_1", 1), ("lost_2", 2), ("whole", 1)):
        trainer = "trainer=cpu" if ranks == 1 else "trainer=ddp_cpu"
        start(tmp_path, *asked, f"out={out}", trainer, verb="sample", ranks=ranks).done()
    names = pictures(tmp_path / "whole")
    assert len(names) == 63
    for again in (lost, tmp_path / "lost_2"):
        assert pictures(again) == names
        assert filecmp.cmpfiles(again, tmp_path / "whole", names, shallow=False)[0] == names


def pictures(drawing: Path) -> list[str]:
    """The files of a drawing, its overview's too."""
    return sorted(str(path.relative_to(drawing)) for path in drawing.rglob("*.[pn]*"))


def processes_in(cwd: Path) -> dict[int, bool]:
    """The living processes that work in a folder, and whether each is a rank of a verb."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # not a process, or it has ended
            if entry.name.isdigit() and (entry / "cwd").readlink() == cwd:
                told = (entry / "cmdline").read_bytes()
                alive = (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
                found |= (
                    {int(entry.name): b"train.py" in told and b"torch.distributed.run" not in told} if alive else {}
                )
    return found


def told_to(pid: int, name: str) -> str:
    """A number in a process' environment."""
    told = dict(item.partition(b"=")[::2] for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return told.get(name.encode(), b"0").decode()


def launchers() -> dict[str, list[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    return {"lightning": [], "torchrun": torchrun}


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["0", "1"])
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_no_process_is_left_behind_whoever_started_the_ranks(tmp_path, launcher, victim):
    command = [sys.executable, *launchers()[launcher], str(ROOT / "train.py")]
    with (tmp_path / "told").open("w") as told:
        process = subprocess.Popen(
            [*command, *TWO, *LONG, "data.num_workers=2", "logger=wandb"],
            cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}, stdout=told, stderr=told,
        )  # fmt: skip
    try:
        while not list(tmp_path.glob("runs/ddpm/*/checkpoints/last.ckpt")):
            assert process.poll() is None, (tmp_path / "told").read_text()
            time.sleep(0.2)
        ranks = [
            pid for pid, is_rank in processes_in(tmp_path).items() if is_rank and told_to(pid, "LOCAL_RANK") == victim
        ]
        os.kill(min(ranks), signal.SIGKILL)  # the others of this rank are its loader workers
        end = time.monotonic() + SECONDS
        while (left := processes_in(tmp_path)) and time.monotonic() < end:
            process.poll()
            time.sleep(0.1)
        assert not left, (tmp_path / "told").read_text()
        assert f"error: rank {victim} was lost" in (tmp_path / "told").read_text()
        assert process.wait() != 0
    finally:
        for pid in processes_in(tmp_path):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def two_nodes(cwd):
    """The agents of two nodes whose run has left its first checkpoint; at the end nothing of them is left."""
    processes = agents(cwd, "trainer.max_steps=100000")
    try:
        while not list(cwd.glob("runs/nodes/*/checkpoints/last.ckpt")):
            assert all(process.poll() is None for process in processes), (cwd / "told_0").read_text()
            time.sleep(0.2)
        yield processes
    finally:
        for pid in processes_in(cwd):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("node", ["0", "1"])
def test_a_signal_to_one_node_ends_both_and_neither_has_succeeded(tmp_path, node):
    """Who started them would else not start the other one again."""
    with two_nodes(tmp_path) as processes:
        (rank,) = [
            pid for pid, is_rank in processes_in(tmp_path).items() if is_rank and told_to(pid, "GROUP_RANK") == node
        ]
        os.kill(rank, signal.SIGTERM)
        assert all(process.wait(60) for process in processes)
        assert "stopped by SIGTERM" in (tmp_path / "told_0").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_two_nodes_end_with_an_agent(tmp_path, lost):
    """As where one machine of two goes down: nobody waits for it."""
    with two_nodes(tmp_path) as processes:
        processes[lost].kill()
        end = time.monotonic() + SECONDS
        while (left := processes_in(tmp_path)) and time.monotonic() < end:
            for process in processes:
                process.poll()
            time.sleep(0.1)
        assert not left, (tmp_path / "told_0").read_text() + (tmp_path / "told_1").read_text()
