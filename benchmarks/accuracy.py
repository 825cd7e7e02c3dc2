"""Does a fast setting learn what float32 does? `python -m benchmarks.accuracy trainer.precision=bf16-mixed`.

Trains with the setting, and in float32 with every convolution PyTorch's own (on a GPU without TF32), from the same
seeds: the same initial weights, images, times and noise. The training loss, in windows of steps, may then differ
between the two by no more than it does between the seeds in float32. Printed are both, for each window. Both run in
one process. `--with` adds overrides to all runs:

    python -m benchmarks.accuracy trainer.precision=32-true --steps 20 --window 5 \
        --with model=ddpm_cifar10 data=cifar10 data.root=DATA data.batch_size=8
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm.callbacks.run_log import FILE, read

TRAIN = Path(__file__).parents[1] / "train.py"
EXACT = ["trainer.precision=32-true"]
DIRECT = """
import runpy, sys, torch
from ddpm.model.winograd import direct
torch.backends.cudnn.allow_tf32 = False
del sys.argv[0]
with direct():
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
BARE = ["callbacks=[]", "logger=[]", "metric=[]", "optimized_metric=null", "trainer.log_every_n_steps=1"]


def losses(python: Sequence[str], overrides: Sequence[str], steps: int, window: int) -> NDArray[np.float64]:
    """The training loss of a run by an interpreter with these options, the mean of each window of steps."""
    with tempfile.TemporaryDirectory() as folder:
        asked = [*BARE, f"trainer.max_steps={steps}", *overrides, f"runs={folder}", "name=run"]
        subprocess.run([sys.executable, *python, TRAIN, *asked], check=True, stdout=subprocess.DEVNULL)
        history = read(next(Path(folder).glob(f"run/*/{FILE}")))["train/loss"]
    every = np.array([history[step] for step in sorted(history)])
    return every[: steps // window * window].reshape(-1, window).mean(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", nargs="+", help="overrides that make it fast")
    parser.add_argument("--with", dest="common", nargs="+", default=[], help="overrides of all runs")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--window", type=int, default=50, help="steps that are averaged")
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


def main() -> int:
    """Print the windows; 1 if the setting is further from float32 than one seed from another."""
    asked = arguments()
    seeds = range(asked.seeds)
    exact, fast = (
        np.array([losses(way, [*asked.common, *setting, f"seed={k}"], asked.steps, asked.window) for k in seeds])
        for way, setting in ((["-c", DIRECT], EXACT), ([], asked.setting))
    )
    away, spread = np.abs(fast - exact).max(0), np.ptp(exact, axis=0)
    print("   steps up to   float32   |setting - float32|, the most   seeds apart")
    for k, row in enumerate(zip(exact.mean(0), away, spread, strict=True)):
        print("{:14d} {:9.5f} {:31.2g} {:13.2g}".format((k + 1) * asked.window, *row))
    within = bool(away.mean() <= spread.mean())  # by one window, chance might decide
    told = "within" if within else "NOT within"
    print(f"in the mean {away.mean():.2g}, {told} the {spread.mean():.2g} between {asked.seeds} seeds")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
