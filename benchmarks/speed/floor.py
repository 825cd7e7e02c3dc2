"""What cannot be spared: the convolutions and matrix products of a step, done alone.

Each is recorded as it reaches the device, in the precision and the memory layout that it has there, and is
repeated in its place and order on tensors of the same shapes and strides: forward, and in training the
gradients of inputs and weights. Where all weights lie in channels_last so does every map, also one that a GPU
would copy first: what a step copies is not among what cannot be spared.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from benchmarks.speed import ours, scores
from benchmarks.speed.pace import Pace
from benchmarks.speed.peer import autocast
from benchmarks.speed.worker import Spec, Task, switch

aten = torch.ops.aten


@dataclass(frozen=True)
class Large:
    """What a peak is reached with."""

    matrix: int
    channels: int
    side: int
    batch: int


LARGE = {"cpu": Large(2048, 256, 32, 8), "cuda": Large(8192, 256, 64, 128)}
OF_CPU = {
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
}
COUNTED = OF_CPU | set(flop_registry)  # PyTorch's counter of operations knows all but the CPU's attention


@dataclass(frozen=True)
class Layout:
    """A tensor without its numbers."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def filled(self, device: torch.device) -> Tensor:
        """Such a tensor of small noise; strided as it was, also where it overlaps itself."""
        reach = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        numbers = torch.randn(reach, device=device).mul_(0.1).to(self.dtype)
        return numbers.as_strided(self.shape, self.stride)

    @property
    def channels_last(self) -> bool:
        outline = torch.empty_strided(self.shape, self.stride, device="meta")
        return len(self.shape) == 4 and outline.is_contiguous(memory_format=torch.channels_last)

    def to_channels_last(self) -> "Layout":
        """The same; of what is no map, itself."""
        if len(self.shape) != 4:
            return self
        outline = torch.empty(self.shape, memory_format=torch.channels_last, device="meta")
        return Layout(self.shape, outline.stride(), self.dtype)


WEIGHT = {aten.convolution: 1, aten.convolution_backward: 2}  # which of the arguments it is
BEHIND = 5  # so many arguments behind it stands whether the convolution is a transposed one


@dataclass(frozen=True)
class Recorded:
    """An operation and its arguments; tensors of floating-point numbers as their layouts."""

    operation: Any
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]

    @property
    def weight(self) -> Layout | None:
        """Of a convolution."""
        place = WEIGHT.get(self.operation.overloadpacket)
        return None if place is None else self.arguments[place]

    @property
    def parameter(self) -> bool:
        """Has it a weight that is the network's own? Those of transposed convolutions are computed in each step."""
        return self.weight is not None and not self.arguments[WEIGHT[self.operation.overloadpacket] + BEHIND]

    def to_channels_last(self) -> "Recorded":
        """A convolution with its tensors in that order; anything else as it is."""
        if self.weight is None:
            return self
        laid = [value.to_channels_last() if isinstance(value, Layout) else value for value in self.arguments]
        return Recorded(self.operation, tuple(laid), self.options)


Step = Callable[[], Any]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes note of the convolutions and matrix products that run within it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorded: list[Recorded] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func.overloadpacket in COUNTED:
            self.recorded.append(Recorded(func, *tree_map(layout, (tuple(args), options))))
        return func(*args, **options)


def layout(value: Any) -> Any:
    """The layout of a tensor; what holds no floating-point numbers (states of generators) stays what it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return Layout(value.shape, value.stride(), value.dtype)
    return value


def recorded(step: Step) -> list[Recorded]:
    """The convolutions and matrix products of a step, in their order."""
    recorder = Recorder()
    with recorder:
        step()
    calls = recorder.recorded
    if all(call.weight.channels_last for call in calls if call.weight and call.parameter):
        return [call.to_channels_last() for call in calls]
    return calls


def repeatable(calls: Iterable[Recorded], device: torch.device) -> Step:
    """All of them, one after the other. Calls share their tensors where these are alike."""
    pool: dict[tuple[Layout, int], Tensor] = {}
    bound = [_bound(call, pool, device) for call in calls]

    @torch.no_grad()
    def run() -> None:
        for operation in bound:
            operation()

    return run


def _bound(call: Recorded, pool: dict[tuple[Layout, int], Tensor], device: torch.device) -> Step:
    taken: dict[Layout, int] = {}

    def tensor(value: Any) -> Any:
        if not isinstance(value, Layout):
            return value
        key = value, taken.setdefault(value, 0)
        taken[value] += 1
        if key not in pool:
            pool[key] = value.filled(device)
        return pool[key]

    arguments, options = tree_map(tensor, (call.arguments, dict(call.options)))
    return partial(call.operation, *arguments, **options)


class Contender:
    """The bare step of each task, and what the machine reaches in large products and convolutions."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.dtype = torch.bfloat16 if spec.setting.precision == "bf16" else torch.float32
        self.size = LARGE[spec.device.type]
        switch(spec.setting.precision, best=True)

    def tasks(self) -> Mapping[str, Task]:
        steps: dict[str, Callable[[], Step]] = {
            "sample_step": self.sampling,
            "ddim50": lambda: self.sampling(50),
            "train_step": self.training,
            "train_loop": self.training,
            "epoch": self.training,
            "classifier": lambda: self.scoring(scores.classifier),
            "inception": lambda: self.scoring(scores.inception),
            "matmul": self.matmul,
            "conv3x3": self.conv3x3,
        }
        return {name: partial(run, make) for name, make in steps.items()}

    def facts(self) -> dict[str, Any]:
        """The operations of a step of the two peaks."""
        size = self.size
        convolution = 2 * 9 * size.channels**2 * size.batch * size.side**2
        return {"operations": {"matmul": 2 * size.matrix**3, "conv3x3": convolution}}

    def sampling(self, steps: int = 1) -> Step:
        """The network forward."""
        network, (x, time) = self.network().eval(), self.batch(self.spec.problem.sample_batch)

        @torch.no_grad()
        def forward() -> None:
            with autocast(self.spec):
                network(x, time)

        return repeatable(recorded(forward) * steps, self.spec.device)

    def training(self) -> Step:
        """The network forward and backward."""
        network, (x, time) = self.network().train(), self.batch(self.spec.problem.train_batch)

        def both() -> None:
            with autocast(self.spec):
                loss = network(x, time).float().square().mean()
            loss.backward()

        return repeatable(recorded(both), self.spec.device)

    def scoring(self, kind: Callable[..., Any]) -> Step:
        with scores.ready(self.spec, kind, self.spec.problem.images(kind.__name__)) as extract:
            return repeatable(recorded(extract), self.spec.device)

    def matmul(self) -> Step:
        """A large product of square matrices."""
        n = self.size.matrix
        left, right = (torch.randn(n, n, device=self.spec.device).to(self.dtype) for _ in range(2))
        return lambda: left @ right

    def conv3x3(self) -> Step:
        """A convolution of as many channels as the network's, on larger images, in channels_last."""
        size = self.size
        shapes = (size.batch, size.channels, size.side, size.side), (size.channels, size.channels, 3, 3)
        tensors = (torch.randn(shape, device=self.spec.device).to(self.dtype) for shape in shapes)
        x, weight = (tensor.to(memory_format=torch.channels_last) for tensor in tensors)
        return lambda: functional.conv2d(x, weight, padding=1)

    def network(self) -> nn.Module:
        return ours.Contender(self.spec).network(str(self.spec.device))

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, *self.spec.problem.shape, device=self.spec.device)
        return x, torch.zeros(count, dtype=torch.long, device=self.spec.device)


def run(make: Callable[[], Step], pace: Pace) -> None:
    """Step after step of what is made."""
    step = make()
    pace.begin()
    while True:
        step()
        pace.tick()
