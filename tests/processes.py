"""The verbs as a user runs them: real processes, one thread each."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALL = [  # a run of seconds
    "model=tiny",
    "sampler.num_steps=5",
    "lr_schedule.num_steps=2",
    "trainer.max_steps=6",
    "trainer.log_every_n_steps=2",
    "trainer.val_check_interval=3",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "data.batch_size=16",
    "callbacks.checkpoint.every_n_steps=3",
    "callbacks.samples.num_images=4",
    "callbacks.evaluation.num_images=20",
    "callbacks.evaluation.batch_size=8",
]


def start(name: str, cwd: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a verb in a folder."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / f"{name}.py"), *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "COLUMNS": "200"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def verb(name: str, cwd: Path, *arguments: str, ok: bool = True, **environment: str) -> str:
    """Run a verb in a folder; its whole output. Asserts that it ended as it should."""
    process = start(name, cwd, *arguments, **environment)
    with process:
        try:
            told, _ = process.communicate(timeout=400)
        finally:
            process.kill()
    assert (process.returncode == 0) == ok, told
    return told
