import pytest
import torch
from yamls import names, one

from ddpm.errors import Refused
from ddpm.timestep import LossAware, Stratified

T = 12


def filled(seed=0, uniform=0.1):
    timestep = LossAware(history=3, uniform=uniform, num_steps=T)
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


@pytest.mark.parametrize("u", [0.0, 0.37, 0.999])
@pytest.mark.parametrize("batch_size", [1, 7, T, 128])
def test_stratified_times_cover_the_unit_interval_once_a_batch(u, batch_size):
    """Each of N strata has exactly one u, and all of them come from one number."""
    index, shift = Stratified().spread(torch.arange(batch_size), batch_size)
    assert index.unique().tolist() == [0]
    t, weights = Stratified().times((u + shift + 1e-9) % 1, 1000 * batch_size)
    assert sorted(((t - 1) // 1000).tolist()) == list(range(batch_size))
    assert weights.unique().tolist() == [1]


@pytest.mark.parametrize("uniform", [0.001, 0.1, 1.0])
def test_loss_aware_weights_are_unbiased(uniform):
    """t has the share (c_{t-1}, c_t) of the unit interval, whose width times the weight is 1/T: the weighted
    expectation of whatever the losses are is their mean over uniform t, exactly."""
    timestep = filled(uniform=uniform)
    ends = timestep.probabilities().cumsum(0)
    starts = torch.cat((torch.zeros(1, dtype=torch.float64), ends[:-1]))
    assert torch.allclose(ends[-1], torch.ones((), dtype=torch.float64), rtol=1e-14, atol=0)
    one = torch.ones_like(ends)
    (first, weights), (last, same) = (timestep.times(u, T) for u in (starts, torch.nextafter(ends, 0 * one)))
    assert first.tolist() == last.tolist() == list(range(1, T + 1))
    assert torch.equal(weights, same)
    assert torch.allclose((ends - starts) * weights, one / T, rtol=1e-12, atol=0)
    assert uniform == 1 or weights.max() > 1.5 * weights.min()


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
