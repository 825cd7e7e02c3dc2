"""Runs that are killed and gone on with, and what has to be equal in the end."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from time import sleep
from typing import Any

import torch
from forked import Job, Moment, start, wait_for

SHORT = [  # a run of a second or two, in which much happens
    "model=tiny",
    "logger=[]",
    "metric=[fid_random]",
    "optimized_metric=fid_random",
    "sampler.num_steps=4",
    "lr_schedule=warmup",
    "lr_schedule.num_steps=5",
    "trainer.max_steps=16",
    "trainer.log_every_n_steps=2",
    "trainer.val_check_interval=4",
    "trainer.limit_val_batches=3",
    "data.batch_size=8",
    "callbacks.checkpoint.every_n_steps=3",
    "callbacks.evaluation.every_n_steps=5",
    "callbacks.evaluation.num_images=10",
    "callbacks.evaluation.batch_size=5",
    "callbacks.samples.every_n_steps=8",
    "callbacks.samples.num_images=4",
]
ONE, TWO = ["trainer=cpu", "trainer.precision=32-true"], ["trainer=ddp_cpu", "trainer.precision=32-true"]
RICH = [
    "timestep=loss_aware",
    "timestep.history=2",
    "schedule.num_steps=8",
    "trainer.accumulate_grad_batches=2",
    "trainer.precision=bf16-mixed",
    "model.class_conditional=true",
]


def whole(cwd: Path, *arguments: str, ranks: int = 1, **environment: str) -> Path:
    """The folder of a run that nothing interrupts."""
    start(cwd, *SHORT, *arguments, "name=whole", ranks=ranks, **environment).done()
    return only(cwd / "runs/whole")


def only(folder: Path) -> Path:
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def killed_at(cwd: Path, moment: Moment, *arguments: str, ranks: int = 1) -> None:
    """Start, or go on with, a run that ends at a moment; its other ranks are killed then too."""
    job = start(cwd, *SHORT, *arguments, "name=killed", "resume=auto", ranks=ranks, moment=moment)
    end = Job(job.ranks[:1], job.told).wait()[0]
    job.kill()
    job.wait()
    assert end in (-9, -25), job.told.read_text()  # SIGKILL, or SIGXFSZ where a file was cut off


def killed_in(cwd: Path, arguments: Sequence[str], random: Random, lines: range, ranks: int = 1) -> bool:
    """Start, or go on with, a run; kill it a random while after its log has a random number of lines.

    Half of the times a process that reads images outlives it, as it does where one process is killed by hand.
    False if the run was quicker.
    """
    job = start(cwd, *SHORT, *arguments, "name=killed", "resume=auto", ranks=ranks)
    chosen = random.choice(lines)
    wait_for(lambda: logged(cwd) >= chosen, job)
    sleep(random.uniform(0, 0.2))
    alone = random.random() < 0.5
    for rank in job.ranks if alone else ():
        rank.kill()
    if not alone:
        job.kill()
    ends = {rank.join(60) or rank.exitcode for rank in job.ranks}
    assert ends <= {0, -9}, job.told.read_text()
    return ends == {-9}


def finished(cwd: Path, *arguments: str, ranks: int = 1, **environment: str) -> Path:
    """The folder of the run that was killed, once it has gone on to its end."""
    start(cwd, *SHORT, *arguments, "name=killed", "resume=auto", ranks=ranks, **environment).done()
    return only(cwd / "runs/killed")


def logged(cwd: Path) -> int:
    """How many lines the log of the one run under `runs/killed` has."""
    return sum(path.read_bytes().count(b"\n") for path in cwd.glob("runs/killed/*/metrics.csv"))


def content(folder: Path, name: str = "last.ckpt") -> dict[str, Any]:
    """A checkpoint, less what tells where the run lies, who reads its images and how long its log is."""
    found: dict[str, Any] = torch.load(folder / "checkpoints" / name, weights_only=True)
    del found["ddpm"]["config"]["name"]
    del found["ddpm"]["config"]["data"]["num_workers"]
    del found["callbacks"]["SaveLast"]
    return found


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Where two nested things differ; tensors in any bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [at]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{at}: {set(a) ^ set(b)}"]
        return [text for key in a for text in differences(a[key], b[key], f"{at}.{key}")]
    if isinstance(a, list | tuple) and len(a) == len(b):
        return [text for k, pair in enumerate(zip(a, b, strict=True)) for text in differences(*pair, f"{at}[{k}]")]
    return [] if a == b else [f"{at}: {a} {b}"]


def rows(folder: Path) -> list[str]:
    """The lines of the run's own log, less its times: when, and how fast."""
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return [f"{step} {name} {value}" for step, _, name, value in lines if not name.startswith("speed")]


def assert_equal(folder: Path, expected: Path) -> None:
    """Two runs are the same: weights, averages, optimiser, counts, best so far, scores, rows and pictures."""
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
        assert differences(content(folder, name), content(expected, name)) == [], name
    assert rows(folder) == rows(expected)
    pictures = [{path.name: path.read_bytes() for path in (run / "samples").iterdir()} for run in (folder, expected)]
    assert pictures[0] == pictures[1]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    ]
