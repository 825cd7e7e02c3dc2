import pytest
import torch
from yamls import names, one

from ddpm.errors import Refused
from ddpm.timestep import LossAware, Stratified

T = 12


def filled(seed=0):
    timestep = LossAware(history=3, uniform=0.1, num_steps=T)
    losses = torch.rand(3 * T, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, T + 1).repeat(3)
    timestep.update(torch.arange(1, T + 1).repeat(3), losses)
    return timestep


def test_every_yaml_gives_times_from_1_to_T():
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    for name in names("timestep"):
        t, weights = one("timestep", name, num_steps=T).times(u, T)
        assert t.min() == 1
        assert t.max() == T
        assert torch.allclose(weights, torch.ones_like(weights))  # loss_aware starts as the uniform


def test_stratified_times_cover_the_unit_interval_once_a_batch():
    position = torch.arange(T)
    index, shift = Stratified().spread(position, T)
    assert index.unique().tolist() == [0]
    t, _ = Stratified().times((0.37 + shift) % 1, T)
    assert sorted(t.tolist()) == list(range(1, T + 1))


def test_loss_aware_weights_are_unbiased():
    timestep = filled()
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    t, weights = timestep.times(u, T)
    loss = t.double() ** 2
    assert (weights * loss).mean().item() == pytest.approx(
        (torch.arange(1, T + 1).double() ** 2).mean().item(), rel=1e-3
    )
    assert not torch.allclose(weights, torch.ones_like(weights))


def test_loss_aware_probabilities_are_the_papers():
    timestep = filled()
    root = timestep.losses.double().square().mean(1).sqrt()
    assert torch.allclose(timestep.probabilities(), 0.9 * root / root.sum() + 0.1 / T)


def test_loss_aware_is_uniform_until_every_history_is_full():
    timestep = LossAware(history=2, uniform=0.1, num_steps=T)
    timestep.update(torch.arange(1, T).repeat(2), torch.rand(2 * (T - 1)))
    assert torch.allclose(timestep.probabilities(), torch.full((T,), 1 / T, dtype=torch.float64))


def test_the_history_is_a_ring_in_the_order_of_the_batch():
    timestep = LossAware(history=3, uniform=0.1, num_steps=2)
    timestep.update(torch.tensor([1, 1, 2, 1, 1]), torch.tensor([1.0, 2.0, 9.0, 3.0, 4.0]))
    assert timestep.losses[0].tolist() == [4, 2, 3]
    assert timestep.losses[1].tolist() == [9, 0, 0]
    assert timestep.counts.tolist() == [4, 1]


def test_the_history_is_in_the_state():
    copy = LossAware(history=3, uniform=0.1, num_steps=T)
    copy.load_state_dict(filled(1).state_dict())
    assert torch.equal(copy.probabilities(), filled(1).probabilities())


def test_a_history_of_nothing_is_refused():
    with pytest.raises(Refused, match="history"):
        LossAware(history=0, uniform=0.1, num_steps=T)
