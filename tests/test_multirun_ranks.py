"""Sweeps: each job is a run of its own, on however many ranks and in whichever process; what is lost goes on."""

import csv
import os
import signal
import time
from contextlib import suppress
from operator import itemgetter
from pathlib import Path

import pytest
import slurm_stand_in
import torch
from forked import start as forked
from processes import SMALL, start, verb

from ddpm.runs import label, status, without_place

STILL = ["model.dropout=0.0", "lr_schedule=warmup", "optimizer.eps=0.01"]  # no signs of rounding
QUICK = [text for text in SMALL if not text.startswith(("callbacks", "trainer.accelerator"))]
QUICK += ["callbacks=[checkpoint]", "callbacks.checkpoint.every_n_steps=3", "logger=[]", "optimized_metric=null"]
TWO = [*QUICK, "trainer=ddp_cpu"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run_of(folder: Path, choice: str) -> Path:
    (found,) = [file.parent for file in folder.glob("*/status.json") if choice in status(file.parent)["overrides"]]
    return found


def holder(file: Path) -> int:
    """The process that holds a run's lock."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is not ours
            if any(link.readlink() == file for link in (entry / "fd").iterdir()):
                return int(entry.name)
    raise AssertionError(f"nobody holds {file}")


@pytest.mark.slow
def test_two_jobs_on_two_ranks_are_what_one_rank_makes_of_each(tmp_path):
    """Rank 1 composes its own job. Clipping, which binds in the first, loss averaging and the rate of learning mean
    the same on two ranks, on one, and on one that accumulates."""
    told = verb("train", tmp_path, "-m", "trainer.gradient_clip_val=0.001,10.0", *TWO, *STILL, "name=two")
    assert [row["state"] for row in table(tmp_path / "runs/two")] == ["finished", "finished"], told
    moved = []
    for norm, extra in ((0.001, []), (10.0, ["trainer.accumulate_grad_batches=2"])):
        choice = f"trainer.gradient_clip_val={norm}"
        forked(tmp_path, *QUICK, *STILL, *extra, "trainer=cpu", choice, f"name=one_{norm}").done()
        (alone,) = (tmp_path / f"runs/one_{norm}").iterdir()
        ours, theirs = weights(run_of(tmp_path / "runs/two", choice)), weights(alone)
        assert all(torch.allclose(ours[key], theirs[key], rtol=1e-3, atol=1e-6) for key in theirs)
        moved.append(torch.cat([value.flatten() for key, value in theirs.items() if key.startswith("diffusion")]))
    assert not torch.allclose(*moved, rtol=1e-3)  # the clipping did bind


@pytest.mark.slow
def test_a_failed_job_stops_no_other_and_the_same_sweep_goes_on_with_what_is_not_finished(tmp_path):
    asked = [*QUICK, "trainer=cpu", "name=sweep"]
    folder = tmp_path / "runs/sweep"
    in_the_way = folder / label(without_place([*asked, "seed=1"])) / "checkpoints"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()  # this job has nowhere to write
    sweep = ["-m", "seed=0,1,2", *asked, "resume=auto"]
    assert forked(tmp_path, *sweep).wait() == [1]
    assert [(row["seed"], row["state"]) for row in sorted(table(folder), key=itemgetter("seed"))] == [
        ("0", "finished"),
        ("1", "failed"),
        ("2", "finished"),
    ]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoints/last.ckpt")}
    assert len(before) == 2
    in_the_way.unlink()
    job = forked(tmp_path, *sweep)
    job.done()
    assert job.told.read_text().count("finished already") == 2
    assert [row["state"] for row in table(folder)] == ["finished"] * 3
    assert len(list(folder.glob("*/checkpoints/last.ckpt"))) == 3
    assert all(path.stat().st_mtime_ns == made for path, made in before.items())


LAUNCHERS = {
    "joblib": ["hydra.launcher.n_jobs=2", *QUICK, "trainer=cpu"],
    "submitit_local": ["hydra.launcher.tasks_per_node=2", *TWO],  # a task is a rank
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_job_stops_no_other_and_the_same_sweep_goes_on_with_it(tmp_path, launcher):
    asked = [text for text in LAUNCHERS[launcher] if "max_steps" not in text]
    sweep = [
        "-m",
        "seed=0,1,2",  # the last one waits for a place behind the first
        f"hydra/launcher={launcher}",
        *asked,
        "trainer.max_steps=60",
        "name=sweep",
        "resume=auto",
    ]
    process, folder = start("train", tmp_path, *sweep), tmp_path / "runs/sweep"
    while not list(folder.glob("*seed=0*/checkpoints/last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    victim = run_of(folder, "seed=0")
    os.kill(holder(victim / ".lock"), signal.SIGKILL)
    told, _ = process.communicate(timeout=400)
    assert process.returncode == 1
    assert "resume=auto goes on" in told
    ended = {row["seed"]: row["state"] for row in table(folder)}
    assert (ended["1"], ended["2"]) == ("finished", "finished"), told
    assert ended["0"] in ("killed", "failed")
    others = [run_of(folder, choice) / "checkpoints/last.ckpt" for choice in ("seed=1", "seed=2")]
    made = [other.stat().st_mtime_ns for other in others]
    verb("train", tmp_path, *sweep)
    assert {row["state"] for row in table(folder)} == {"finished"}
    assert [other.stat().st_mtime_ns for other in others] == made
    assert torch.load(victim / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 60


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_job_that_is_refused_beside_others_is_a_row_with_its_reason(tmp_path, launcher):
    sweep = ["-m", "sigma=beta,learned", f"hydra/launcher={launcher}", *LAUNCHERS[launcher], "name=sweep"]
    process = start("train", tmp_path, *sweep)
    told, _ = process.communicate(timeout=400)
    assert process.returncode == 1
    rows = {row["sigma"]: row for row in table(tmp_path / "runs/sweep")}
    assert {sigma: row["state"] for sigma, row in rows.items()} == {"beta": "finished", "learned": "refused"}, told
    assert "choose objective=hybrid or vlb" in rows["learned"]["reason"]
    assert "Traceback" not in told


@pytest.mark.slow
def test_slurm_runs_a_sweep_whose_tasks_are_ranks(tmp_path):
    path = slurm_stand_in.install(tmp_path / "bin")
    sweep = ["-m", "seed=0,1", "hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=2", *TWO, "name=sweep"]
    told = verb("train", tmp_path, *sweep, PATH=path)
    folder = tmp_path / "runs/sweep"
    assert [row["state"] for row in table(folder)] == ["finished"] * 2, told
    logs = [file.read_text() for file in (folder / ".submitit").rglob("*_log.out")]
    assert len(logs) == 4
    assert sum("MEMBER: 1/2" in log for log in logs) == sum("MEMBER: 2/2" in log for log in logs) == 2


@pytest.mark.slow
def test_a_sweep_of_evaluations_ends_in_its_table_whoever_runs_its_jobs(tmp_path):
    forked(tmp_path, *QUICK, "trainer=cpu").done()
    (folder,) = (tmp_path / "runs/ddpm").iterdir()
    asked = ["-m", f"checkpoint={folder}", "sampler.num_steps=4,5", "num_images=20", "batch_size=5"]
    asked += ["metric=[fid_classifier]"]
    for launcher, trainer in (("basic", "ddp_cpu"), ("joblib", "cpu")):
        verb("evaluate", tmp_path, *asked, f"hydra/launcher={launcher}", f"trainer={trainer}")
        with (folder / "checkpoints/evaluations.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        (folder / "checkpoints/evaluations.csv").unlink()
        assert [row["state"] for row in rows] == ["finished"] * 2
        assert all(float(row["fid_classifier"]) > 0 for row in rows)
    drawn = ["num_images=2,3", "batch_size=1", "sampler.num_steps=4", "trainer=ddp_cpu"]
    verb("sample", tmp_path, "-m", f"checkpoint={folder}", *drawn)
    pictures = {path.name: len(list(path.glob("0000*.png"))) for path in (tmp_path / "samples").iterdir()}
    assert sorted(pictures.values()) == [2, 3]
