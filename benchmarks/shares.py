"""Where the time of a step goes: `python -m benchmarks.shares train_step ddpm_cifar10`.

A few steps of a task of `make bench` under torch.profiler, after one that does not count. Printed is the share of each
kind of operator in the time that all take by themselves, on a GPU of its kernels' time.
"""

import argparse
import io
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import profile

from benchmarks.speed import pace
from benchmarks.speed.ours import Contender
from benchmarks.speed.pace import Over
from benchmarks.speed.plan import Problem, Setting, cifar10, digits
from benchmarks.speed.worker import Spec

KINDS = {  # an operator is of the first kind of which a word is in its name
    "convolutions by Winograd": ("conv3x3",),
    "convolutions": ("conv",),
    "attention": ("attention", "softmax"),
    "matrix products": ("addmm", "bmm", "aten::mm"),
    "GroupNorm": ("group_norm",),
    "SiLU": ("silu",),
    "padding": ("constant_pad",),
    "optimiser, clipping, average": ("_fused_adam", "_foreach", "linalg_vector_norm", "lerp", "zero_grad"),
    "Python between operators": ("Optimizer.step", "DataLoader"),  # the first has the whole step within
    "random numbers": (
        "bernoulli",
        "random_",
        "aten::ge",
        "aten::where",
        "bitwise",
        "__rshift__",
        "aten::log",
        "aten::cos",
        "aten::sin",
    ),
    "copies": ("copy_", "aten::cat", "aten::clone"),
    "elementwise": ("aten::add", "aten::mul", "aten::div", "aten::sub", "aten::sum", "aten::fill_"),
}
TASKS = ("train_step", "sample_step", "ddim50", "epoch")


class Shutter(pace.Pace):
    """A clock that has the profiler look at so many steps after the first, and then ends the task."""

    def __init__(self, steps: int) -> None:
        self.steps, self.left, self.told = steps, steps + 1, profile()

    def begin(self) -> None:
        """Nothing is waited for."""

    def tick(self, share: float = 1.0) -> None:
        self.left -= 1
        if self.left in (self.steps, 0) and torch.cuda.is_available():
            torch.cuda.synchronize()
        if self.left == self.steps:
            self.told.start()
        if self.left == 0:
            self.told.stop()
            raise Over


def shares(problem: Problem, task: str, precision: str, device: torch.device, steps: int) -> dict[str, float]:
    """The share of each kind, which add up to 1, the largest first."""
    pace.CURRENT = shutter = Shutter(steps)
    with suppress(Over), redirect_stdout(io.StringIO()):
        Contender(Spec(problem, Setting("eager", precision), device, precision)).tasks()[task](shutter)
    spent: Counter[str] = Counter()
    for operator in shutter.told.events():
        if operator.device_type == DeviceType.CPU:  # kernels count where they were called
            on_device = operator.self_device_time_total if device.type == "cuda" else operator.self_cpu_time_total
            spent[kind(ours_or(operator).name)] += on_device
    return {name: value / spent.total() for name, value in spent.most_common()}


def ours_or(operator: FunctionEvent) -> FunctionEvent:
    """Our convolution, or the backward of it, that it is a part of; else itself."""
    above = operator
    while above and "conv3x3" not in above.name:
        above = above.cpu_parent
    return above or operator


def kind(operator: str) -> str:
    """Of an operator, by its name."""
    return next((name for name, words in KINDS.items() if any(word in operator for word in words)), "the rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    large = torch.cuda.is_available()
    problems: Mapping[str, Problem] = {
        "ddpm_cifar10": cifar10(128, 256) if large else cifar10(8, 16),
        "digits": digits(),
    }
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("model", choices=problems)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--steps", type=int, default=5)
    asked = parser.parse_args()
    device = torch.device("cuda" if large else "cpu")
    for name, share in shares(problems[asked.model], asked.task, asked.precision, device, asked.steps).items():
        print(f"{name:30} {share:7.1%}")


if __name__ == "__main__":
    main()
