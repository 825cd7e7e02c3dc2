"""Runs that are killed and gone on with, and what has to be equal in the end."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from signal import SIGUSR1
from time import sleep
from typing import Any

import torch
from forked import Job, Moment, start, wait_for

from ddpm.runs import status

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


WITHIN = {  # what may follow a step: the moment of a signal there, and the step before, which no checkpoint was due at
    "a validation": (Moment("ddpm.module.DiffusionModule.validation_step", 4, number=SIGUSR1), 7),
    "a measurement": (Moment("ddpm.evaluation.Evaluation.see_samples", 3, number=SIGUSR1), 14),
    "the last picture": (Moment("ddpm.callbacks.samples.SampleGrid.draw", number=SIGUSR1), 15),
    "the last measurement": (Moment("ddpm.evaluation.Evaluation.see_samples", number=SIGUSR1), 15),
}


def stopped_at(cwd: Path, moment: Moment, *arguments: str, ranks: int = 1, **environment: str) -> str:
    """Start, or go on with, a run whose rank 0 is sent SIGUSR1 at a moment, and which ends by that. What it says."""
    job = start(cwd, *SHORT, *arguments, "name=killed", "resume=auto", ranks=ranks, moment=moment, **environment)
    assert job.wait() == [128 + SIGUSR1, *[0] * (ranks - 1)], job.told.read_text()
    told = job.told.read_text()
    assert "Traceback" not in told, told
    return told


def killed(cwd: Path, arguments: Sequence[str], seed: object, kills: int, lines: int, ranks: int = 1) -> None:
    """Start a run and go on with it, until it was killed so often, at random moments of the first so many lines of its
    log. Fails where it ends too often before it can be killed."""
    random, done, tries = Random(str(seed)), 0, 0
    while done < kills:
        assert tries < 4 * kills, "it ends before it can be killed"
        soon = range(done * lines // (kills + 1), (done + 1) * lines // (kills + 1))
        step = killed_in(cwd, arguments, random, soon, ranks)
        done, tries = done + (step is not None), tries + 1
        print(f"{seed}, try {tries}: " + ("too early or too late" if step is None else f"killed after step {step}"))


def killed_in(cwd: Path, arguments: Sequence[str], random: Random, lines: range, ranks: int) -> int | None:
    """Start, or go on with, a run; kill it a random while after its log has a random number of lines.

    Half of the times a process that reads images outlives it, as it does where one process is killed by hand. The last
    step that it logged; None unless this start has logged one, and the run is not finished.
    """
    begun = set(lines_of(cwd))
    job = start(cwd, *SHORT, *arguments, "name=killed", "resume=auto", ranks=ranks)
    chosen = random.choice(lines)
    wait_for(lambda: logged(cwd) >= chosen and not begun.issuperset(lines_of(cwd)), job)
    sleep(random.uniform(0, 0.2))
    alone = random.random() < 0.5
    for rank in job.ranks if alone else ():
        rank.kill()
    if not alone:
        job.kill()
    ends = {rank.join(60) or rank.exitcode for rank in job.ranks}
    assert ends <= {0, -9}, job.told.read_text()
    new = [line for line in lines_of(cwd) if line not in begun]
    is_finished = [status(path.parent)["state"] for path in cwd.glob("runs/killed/*/status.json")] == ["finished"]
    return int(new[-1].split(",")[0]) if ends == {-9} and new and not is_finished else None


def finished(cwd: Path, *arguments: str, ranks: int = 1, **environment: str) -> Path:
    """The folder of the run that was killed, once it has gone on to its end."""
    start(cwd, *SHORT, *arguments, "name=killed", "resume=auto", ranks=ranks, **environment).done()
    return only(cwd / "runs/killed")


def logged(cwd: Path) -> int:
    """How many lines the log of the one run under `runs/killed` has."""
    return len(lines_of(cwd))


def lines_of(cwd: Path) -> list[str]:
    """Its whole lines below the header, no two of which are the same: they tell the time."""
    lines = [line for path in cwd.glob("runs/killed/*/metrics.csv") for line in path.read_text().splitlines(True)]
    return [line for line in lines[1:] if line.endswith("\n")]


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
