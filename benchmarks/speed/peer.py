"""What the peers share: their settings, and their data, which lie on the device already.

Of this framework nothing is imported that would cost them memory.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from typing import TypeVar

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.speed.levels import levels
from benchmarks.speed.pace import Pace
from benchmarks.speed.worker import Spec
from ddpm.data.stream import split_indices

Network = TypeVar("Network", bound=nn.Module)
HELD_OUT = 297  # of the 1,797 digits, as ddpm.data.digits splits them


def prepared(network: Network, spec: Spec) -> Network:
    """On the device, in the memory format of the setting, compiled where that asks for it."""
    memory_format = torch.channels_last if spec.setting.channels_last else torch.contiguous_format
    network = network.to(spec.device).to(memory_format=memory_format)
    for mode in spec.setting.compiled:
        network.compile(mode=mode)
    return network


def to_sample(network: Network, spec: Spec) -> Network:
    """The same to draw with: where it computes in bf16 at its best, the weights are, too."""
    if spec.setting.best and spec.setting.precision == "bf16":
        network = network.to(torch.bfloat16)
    return prepared(network, spec).eval()


def autocast(spec: Spec) -> AbstractContextManager[None]:
    """Mixed precision, where the setting has it."""
    if spec.setting.precision != "bf16":
        return nullcontext()
    return torch.autocast(spec.device.type, torch.bfloat16)


def pictures(spec: Spec) -> Tensor:
    """The training images that ours are, in [-1, 1]: of noise, or digits."""
    if spec.problem.shape[0] == 3:
        return levels("train") / 127.5 - 1
    pixels = torch.from_numpy(load_digits().data).float()
    train, _ = split_indices(len(pixels), HELD_OUT)
    return pixels[train].reshape(-1, *spec.problem.shape) / 8 - 1


def one_batch(spec: Spec) -> Iterator[Tensor]:
    """The first batch of the training images, again and again."""
    return repeat(pictures(spec)[: spec.problem.train_batch].to(spec.device))


def epochs(spec: Spec) -> Iterator[Tensor]:
    """Shuffled batches of all training images, through PyTorch's own loader; the last of a pass is short."""
    loader = DataLoader(TensorDataset(pictures(spec)), batch_size=spec.problem.train_batch, shuffle=True)
    while True:
        for (batch,) in loader:
            yield batch.to(spec.device)


def tick(pace: Pace, images: Tensor, spec: Spec) -> None:
    """The end of a step, which counts as much as its batch is of a whole one."""
    pace.tick(len(images) / spec.problem.train_batch)
