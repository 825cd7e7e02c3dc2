"""What the peers share: their settings, and their data, which lie on the device already."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.speed.synthetic import Synthetic
from benchmarks.speed.worker import Spec
from ddpm.data.digits import Digits
from ddpm.data.image_data import ImageData

Network = TypeVar("Network", bound=nn.Module)


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


def data(spec: Spec) -> ImageData:
    """The images that our own training sees."""
    kind = Synthetic if spec.problem.shape[0] == 3 else Digits
    return kind(root=None, batch_size=1, num_workers=0, flip=False, seed=0)


def one_batch(spec: Spec) -> Iterator[Tensor]:
    """The first batch of the training images, in [-1, 1], again and again."""
    return repeat(data(spec).batch("train", range(spec.problem.train_batch)).images.to(spec.device))


def epochs(spec: Spec) -> Iterator[Tensor]:
    """Shuffled batches of all training images, through PyTorch's own loader."""
    known = data(spec)
    images = known.batch("train", range(len(known.load("train")))).images
    loader = DataLoader(TensorDataset(images), batch_size=spec.problem.train_batch, shuffle=True)
    while True:
        for (batch,) in loader:
            yield batch.to(spec.device)
