"""The verbs as a user runs them: real processes, one thread each."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
SMALL = [  # a run of seconds
    "model=tiny",
    "sampler.num_steps=5",
    "lr_schedule.num_steps=2",
    "trainer.max_steps=6",
    "trainer.log_every_n_steps=2",
    "trainer.val_check_interval=3",
    "trainer.limit_val_batches=2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "data.batch_size=16",
    "callbacks.checkpoint.every_n_steps=3",
    "callbacks.samples.num_images=4",
    "callbacks.evaluation.num_images=20",
    "callbacks.evaluation.batch_size=8",
]


def start(name: str, cwd: Path, *arguments: str, own_group: bool = False, **environment: str) -> subprocess.Popen[str]:
    """Start a verb in a folder, if asked at the head of a group of processes, all of which one signal reaches."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / f"{name}.py"), *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "COLUMNS": "200"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=own_group,
    )


def verb(name: str, cwd: Path, *arguments: str, ok: bool = True, **environment: str) -> str:
    """Run a verb in a folder; its whole output. Asserts that it ended as it should.

    In a process that is forked from one which has imported everything, as a start costs ten seconds; `typed` runs it
    from the beginning.
    """
    import forked

    with TemporaryDirectory() as elsewhere:
        job = forked.start(cwd, *arguments, verb=name, told=Path(elsewhere) / "told.txt", **environment)
        codes = job.wait(400)
        told = job.told.read_text()
    assert (codes == [0]) == ok, told
    return told


def typed(name: str, cwd: Path, *arguments: str, ok: bool = True, **environment: str) -> str:
    """The same by an interpreter of its own, as a user starts it."""
    with start(name, cwd, *arguments, **environment) as process:
        try:
            told, _ = process.communicate(timeout=400)
        finally:
            process.kill()
    assert (process.returncode == 0) == ok, told
    return told
