"""Image i of a seed is a function of i, not of the batch it is made in."""

import pytest
import torch
from compose import composed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from ddpm.build import build_diffusion, build_sampler
from ddpm.data.facts import Facts
from ddpm.images import to_uint8
from ddpm.model.layers import Upsample
from ddpm.sampling import SamplingModule, draw, noise_of
from ddpm.trainer import build_trainer

SHAPE = (3, 16, 16)


@pytest.fixture(scope="module")
def model():
    config = composed("model=tiny", "model.channel_mult=[1,2]", "sampler.num_steps=4")
    torch.manual_seed(0)
    diffusion = build_diffusion(config, Facts("x", SHAPE, 256, (), "")).eval()
    for parameter in diffusion.parameters():  # the last layers begin at nearly nothing
        torch.nn.init.normal_(parameter, std=0.1)
    return diffusion, build_sampler(config, diffusion)


def drawn(model, indices, batch_size):
    diffusion, sampler = model
    with torch.no_grad():
        return torch.cat([draw(diffusion, sampler, batch, SHAPE, 0) for batch in indices.split(batch_size)])


def test_the_noise_is_bit_equal_whatever_is_asked_for_with_it():
    all_ = noise_of(0, torch.arange(64), SHAPE)
    for asked in (torch.tensor([5]), torch.tensor([63, 5, 2]), torch.arange(7)):
        for time in (0, 1, 1000):
            assert torch.equal(noise_of(0, asked, SHAPE)(time), all_(time)[asked])


@pytest.mark.parametrize("batch_size", [1, 7])
def test_pixels_are_equal_to_rounding_for_every_batch_size(model, batch_size):
    whole, parts = (to_uint8(drawn(model, torch.arange(64), size)).int() for size in (64, batch_size))
    apart = (whole - parts).abs()
    assert apart.max() <= 1
    assert (apart > 0).double().mean() <= 1e-3
    assert whole.double().std() > 20  # they are pictures


class Casts(TorchDispatchMode):
    """Counts the casts of some tensors."""

    def __init__(self, tensors):
        super().__init__()
        self.places, self.counted = {tensor.data_ptr() for tensor in tensors}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counted += func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.places
        return func(*args, **kwargs or {})


def test_weights_are_cast_to_bf16_once_for_all_steps_of_a_batch(model):
    diffusion, sampler = model
    computed = {id(part.conv) for part in diffusion.modules() if isinstance(part, Upsample)}  # from their weights
    convolutions = [
        part.weight for part in diffusion.modules() if isinstance(part, torch.nn.Conv2d) and id(part) not in computed
    ]
    module = SamplingModule(diffusion, sampler, shape=SHAPE, seed=0, label=None, guidance=1.0)
    trainer = build_trainer(composed("trainer=cpu", "trainer.precision=bf16-mixed"))
    assert len(sampler.times(diffusion.num_steps)) > 2
    with Casts(convolutions) as casts:
        trainer.predict(module, DataLoader(torch.arange(2), batch_size=2))
    assert casts.counted == len(convolutions)
