"""What training draws is a function of (seed, step, position), and the network sees what the papers say."""

from itertools import islice

import pytest
import torch
from tiny import tiny_trainer
from torch import nn
from torch.utils.data import DataLoader
from yamls import names, one, schedule

from ddpm.data.facts import Batch
from ddpm.data.stream import TrainBatches
from ddpm.diffusion import GaussianDiffusion
from ddpm.module import DiffusionModule
from ddpm.noise import Stream, normal
from ddpm.objective import Simple
from ddpm.prediction import Epsilon
from ddpm.sigma import Beta
from ddpm.types import times

B, SEED, T = 24, 5, 240  # T: so fine that 10 times fall into each of B strata


class Recorder(nn.Module):
    """A network that keeps what it saw in training and in validation."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.saw = {True: [], False: []}

    def forward(self, x, time):
        self.saw[self.training].append((x.detach().clone(), time + 1))
        return self.scale * x


def module(timestep="stratified", input_perturbation=0.0):
    diffusion = GaussianDiffusion(Recorder(), schedule("linear", T), Beta(), Epsilon(), 256)
    return DiffusionModule(
        diffusion,
        Simple(),
        one("timestep", timestep, num_steps=T),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        lr_factor=lambda step: 1.0,
        seed=SEED,
        batch_size=B,
        label_dropout=0.0,
        input_perturbation=input_perturbation,
        card={},
    )


def parts(step, ranks, accumulation):
    """The numbers of the images that each micro-batch of each rank sees in a step, rank by rank."""
    for rank in range(ranks):
        shares = {"rank": rank, "world_size": ranks, "accumulation": accumulation}
        yield from islice(TrainBatches(global_batch=B, first_step=lambda: step, **shares), accumulation)


def drawn(m, numbers):
    return m.draw_times(numbers // B, numbers % B)


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 1), (1, 4), (2, 1), (2, 3), (4, 2), (B, 1)])
def test_stratified_times_cover_the_unit_interval_once_a_global_batch(ranks, accumulation):
    m, firsts = module(), set()
    for step in range(8):
        t = torch.cat([drawn(m, part)[0] for part in parts(step, ranks, accumulation)])
        assert sorted(((t - 1) // (T // B)).tolist()) == list(range(B))
        firsts.add(t.min().item())
    assert len(firsts) > 3  # each step has a number of its own


@pytest.mark.parametrize("timestep", names("timestep"))
@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 4), (2, 3), (4, 2)])
def test_any_ranks_and_micro_batches_draw_and_learn_the_same(timestep, ranks, accumulation, tmp_path):
    """Also after loss_aware has learnt, from losses that were gathered rank by rank."""
    alone, together = module(timestep), module(timestep)
    alone.trainer = together.trainer = tiny_trainer(tmp_path, 1)
    for m in (alone, together):
        m.timestep.update(torch.arange(1, T + 1).repeat(10), torch.arange(10.0 * T))
    for step in range(3):
        numbers = torch.arange(step * B, (step + 1) * B)
        shares = list(parts(step, ranks, accumulation))
        order = torch.cat(shares) - step * B
        t, weights = drawn(alone, numbers)
        for whole, cut in zip((t, weights), zip(*(drawn(together, part) for part in shares), strict=True), strict=True):
            assert torch.equal(whole[order], torch.cat(cut))
        losses = torch.rand(B, generator=torch.Generator().manual_seed(step))
        for m, cut in ((alone, [numbers]), (together, shares)):
            m.show_losses([(k, t[k], losses[k], losses[k].mean()[None]) for k in (part % B for part in cut)])
        for key, value in alone.timestep.state_dict().items():
            assert torch.equal(value, together.timestep.state_dict()[key])


def trained(tmp_path, input_perturbation, steps=2):
    """What the network saw in training and in validation, in a real run over two micro-batches a step."""
    m = module(input_perturbation=input_perturbation)
    images = torch.rand(steps * B, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    every = Batch(images, torch.full((steps * B,), -1), torch.arange(steps * B))
    batches = [Batch(*(x[k : k + B // 2] for x in every)) for k in range(0, steps * B, B // 2)]
    loader = DataLoader(batches, batch_size=None)
    trainer = tiny_trainer(tmp_path, steps, accumulate_grad_batches=2, val_check_interval=4, limit_val_batches=4)
    trainer.fit(m, loader, loader)
    training, validation = (map(torch.cat, zip(*m.diffusion.network.saw[k], strict=True)) for k in (True, False))
    return m.diffusion.schedule, every, training, validation


def noisy(s, images, t, eps):
    """a x_0 + b eps."""
    t = times(t, images)
    return s.alpha_bar(t).sqrt().to(images) * images + s.noise_var(t).sqrt().to(images) * eps


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_the_network_sees_the_perturbed_x_t_in_training_alone(gamma, tmp_path):
    s, every, (x_t, t), (val_x_t, val_t) = trained(tmp_path, gamma)
    step, position = every.number // B, every.number % B
    eps, xi = (normal(SEED, stream, position, step, (1, 4, 4)) for stream in (Stream.TRAIN_EPS, Stream.PERTURBATION))
    assert torch.allclose(x_t, noisy(s, every.images, t, eps + gamma * xi), atol=1e-6)
    assert torch.allclose(x_t, noisy(s, every.images, t, eps), atol=1e-6) == (gamma == 0)
    eps = normal(0, Stream.VALIDATION_EPS, every.number, 0, (1, 4, 4))
    assert torch.allclose(val_x_t, noisy(s, every.images, val_t, eps), atol=1e-6)


def test_no_perturbation_draws_nothing_and_changes_no_bit(tmp_path):
    position, eps = torch.arange(B), torch.zeros(B, 1, 4, 4)
    assert module().extra_noise(position * 0, position, eps) is None
    extra = module(input_perturbation=0.25).extra_noise(position * 0, position, eps)
    assert torch.equal(extra, 0.25 * normal(SEED, Stream.PERTURBATION, position, 0, (1, 4, 4)))
    s, every, (x_t, t), _ = trained(tmp_path, 0.0)
    d, t = GaussianDiffusion(nn.Identity(), s, Beta(), Epsilon(), 256), times(t, every.images)
    eps = normal(SEED, Stream.TRAIN_EPS, every.number % B, every.number // B, (1, 4, 4))
    assert torch.equal(x_t, d.q(every.images, t, t * 0).sample(eps))
