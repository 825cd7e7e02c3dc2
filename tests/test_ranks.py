"""Two processes walk the whole way, and see what one process sees."""

import json
import shutil
import socket
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from compose import composed
from forked import start
from processes import ROOT, SMALL, verb
from running import UNSCORED
from test_meeting import ended, nodes

from ddpm.callbacks.run_log import read
from ddpm.errors import Refused
from ddpm.trainer import build_trainer

STILL = [
    "logger=[]",
    "name=two",
    "model.dropout=0.0",
    "lr_schedule=warmup",
    "optimizer.eps=0.01",
]  # no signs of rounding
AWARE = ["timestep=loss_aware", "timestep.history=1", "schedule.num_steps=10"]  # soon full, and then in use
METRICS = ["fid_classifier", "inception_score_classifier", "kid_classifier", "precision_recall_classifier"]
METRICS += ["share_nearer_pixels", "bits_per_dim", "bits_per_dim_train"]
FEW = ["metric.bits_per_dim.num_times=2", "metric.bits_per_dim_train.num_times=null"]  # the second exactly
FEW += ["metric.bits_per_dim_train.num_images=5", "metric.bits_per_dim_train.batch_size=2"]
SHORT = [text for text in SMALL if not text.startswith("trainer.accelerator")]


def timesteps(folder):
    """What loss_aware has learnt in a run."""
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return {key.removeprefix("timestep."): value for key, value in state.items() if key.startswith("timestep.")}


def both(name, cwd, *arguments):
    """Two ranks, started as torchrun does, where Lightning's own start of the second one takes long. What they said."""
    job = start(cwd, *arguments, "trainer=ddp_cpu", verb=name, ranks=2)
    job.done()
    return job.told.read_text()


def test_two_ranks_train_validate_sample_evaluate_and_resume_like_one(home):
    two = [*SHORT, *STILL]
    verb("train", home, *two, *AWARE, "trainer=ddp_cpu")
    (folder,) = (home / "runs/two").iterdir()
    longer = [text for text in two if "max_steps" not in text]
    both("train", home, *longer, *AWARE, f"resume={folder}", "trainer.max_steps=8")
    assert (folder / "samples/step_0000008.png").is_file()

    whole = [text for text in SMALL if "max_steps" not in text]
    verb("train", home, *whole, *STILL, *AWARE, "trainer.max_steps=8", "name=one")
    (alone,) = (home / "runs/one").iterdir()
    ours, theirs = read(folder / "metrics.csv"), read(alone / "metrics.csv")
    scores = [name for name in theirs if name.startswith("score/")]
    assert len(scores) > 2
    for name in ("train/loss", "val/loss", *scores):
        for step, value in theirs[name].items():
            assert ours[name][step] == pytest.approx(value, rel=1e-3), name
    learnt, expected = (timesteps(run) for run in (folder, alone))
    assert torch.equal(learnt["counts"], expected["counts"])
    assert learnt["counts"].min() > 1
    assert torch.allclose(learnt["losses"], expected["losses"], rtol=1e-3)

    drawn = [f"checkpoint={folder}", "num_images=7", "batch_size=2", "sampler.num_steps=5", "npz=true"]
    told = both("sample", home, *drawn, "out=by_two")
    assert [line.split(" (")[0] for line in told.splitlines() if "images/s" in line] == ["image 3 of 7", "image 7 of 7"]
    verb("sample", home, *drawn, "out=by_one", "trainer=cpu")
    for name in (*(f"{k:06d}.png" for k in range(7)), "samples.npz"):
        assert (home / "by_two" / name).read_bytes() == (home / "by_one" / name).read_bytes()

    asked = [f"checkpoint={folder}", "num_images=20", "batch_size=8", "sampler.num_steps=5"]
    asked += [*FEW, f"metric=[{','.join(METRICS)}]"]
    both("evaluate", home, *asked)
    by_two = (folder / "checkpoints/results.jsonl").read_text()
    assert len(list((folder / "checkpoints/terms").glob("*/0*-0*.npz"))) == 3
    shutil.rmtree(folder / "checkpoints/terms")  # or one rank would not measure
    verb("evaluate", home, *asked, "trainer=cpu")
    by_one = (folder / "checkpoints/results.jsonl").read_text()
    one, two_ = (json.loads(text)["scores"] for text in (by_one, by_two))
    assert one == pytest.approx(two_, rel=1e-6)
    assert set(METRICS) < one.keys()
    assert len(list((folder / "checkpoints/nearest").glob("*.png"))) == 1


@pytest.mark.parametrize("steps", [8, pytest.param(6, marks=pytest.mark.slow)])  # 6: rank 0 has none left to do
def test_ranks_that_see_different_checkpoints_are_refused(steps, brief_run, tmp_path):
    """Two machines whose folders of runs are their own: the second one would begin anew."""
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        place.mkdir()
    start(tmp_path, "--version").wait()  # what the processes import takes long
    shutil.copytree(brief_run, places[0] / "run")
    last = places[0] / "run/checkpoints/last.ckpt"
    before = [path.read_bytes() for path in (last, last.parents[1] / "config.yaml", last.parents[1] / "metrics.csv")]
    alone = [text for text in UNSCORED if not text.startswith(("trainer.accelerator", "trainer.max_steps"))]
    job = nodes(
        tmp_path / "told", places, "train", *alone, "trainer=ddp_cpu", "resume=run", f"trainer.max_steps={steps}"
    )
    assert ended(job) == [
        "error: the ranks find other checkpoints in run, of the steps 0, 6; give a folder that all nodes share "
        "(runs=FOLDER or resume=FOLDER)."
    ]
    after = [path.read_bytes() for path in (last, last.parents[1] / "config.yaml", last.parents[1] / "metrics.csv")]
    assert after == before
    assert not list(places[1].rglob("*.ckpt"))


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "train"}
SLURM |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.mark.parametrize(
    ("environment", "trainer", "refusal"),
    [
        (TORCHRUN | {"WORLD_SIZE": "2"}, "cpu", "torchrun has started 2 processes, and the trainer is of 1;"),
        (TORCHRUN | {"WORLD_SIZE": "3"}, "ddp_cpu", "torchrun has started 3 processes, and the trainer is of 2;"),
        (TORCHRUN | {"WORLD_SIZE": "1"}, "cpu", None),
        (TORCHRUN | {"WORLD_SIZE": "2"}, "ddp_cpu", None),
        ({"WORLD_SIZE": "2"}, "cpu", None),  # a variable of somebody else's
        (SLURM, "ddp_cpu", "`--ntasks-per-node=4` does not match"),
    ],
)
def test_as_many_processes_are_started_as_the_trainer_asks_for(environment, trainer, refusal, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    expected = pytest.raises(Refused, match=refusal) if refusal else nullcontext()
    with expected:
        build_trainer(composed(f"trainer={trainer}"))


@pytest.mark.slow
def test_torchrun_ranks_agree_on_a_folder(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    arguments = [*SHORT, *STILL, "trainer=ddp_cpu", "name=torchrun"]
    for _ in range(2):
        done = subprocess.run(
            [*command, str(ROOT / "train.py"), *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    folders = sorted((tmp_path / "runs/torchrun").iterdir(), key=lambda path: len(path.name))
    assert len(folders) == 2
    a, b = (torch.load(f / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for f in folders)
    assert all(torch.equal(a[key], b[key]) for key in a)
