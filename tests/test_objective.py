import pytest
import torch
from torch import nn
from yamls import names, one, schedule

from ddpm.diffusion import GaussianDiffusion
from ddpm.likelihood import term
from ddpm.objective import Bound, Hybrid, MinSNR, Simple
from ddpm.prediction import Epsilon
from ddpm.sigma import Beta, LearnedRange
from ddpm.types import times

PREDICTIONS = names("prediction")


class Affine(nn.Module):
    """A network with a mean head and a variance head that can be told apart."""

    def __init__(self, learned: bool):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.v = nn.Parameter(torch.tensor(0.1, dtype=torch.float64)) if learned else None

    def forward(self, x, time):
        mean = self.mean * x
        return mean if self.v is None else torch.cat((mean, self.v.expand_as(x)), dim=1)


def setting(prediction=None, learned=False):
    s = schedule("linear", 10)
    d = GaussianDiffusion(Affine(learned), s, LearnedRange() if learned else Beta(), prediction or Epsilon(), 256)
    g = torch.Generator().manual_seed(0)
    x_0 = torch.randint(0, 256, (10, 6), generator=g).double() / 127.5 - 1
    eps = torch.randn(10, 6, generator=g, dtype=torch.float64)
    return d, x_0, times(torch.arange(1, 11), x_0), eps


def x_t_of(d, x_0, t, eps):
    return d.q(x_0, t, t * 0).sample(eps)


def test_l_simple_is_the_mean_squared_error_of_eps():
    d, x_0, t, eps = setting()
    error = eps - 0.3 * x_t_of(d, x_0, t, eps)
    assert torch.allclose(Simple()(d, x_0, t, eps), error.square().mean(1))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_the_error_of_x_0_whatever_is_predicted(prediction):
    d, x_0, t, eps = setting(one("prediction", prediction))
    x_t = x_t_of(d, x_0, t, eps)
    error = (x_0 - d.x_0(d(x_t, t), x_t, t, clip=False)).square().mean(1)
    weight = d.schedule.snr(t).flatten().clamp(max=5)
    assert torch.allclose(MinSNR(gamma=5.0)(d, x_0, t, eps), weight * error, rtol=1e-6)


def test_l_vlb_is_the_bound_of_the_papers_terms():
    d, x_0, t, eps = setting()
    x_t = x_t_of(d, x_0, t, eps)
    expected = term(d, d(x_t, t), x_0, x_t, t, clip=False)
    assert torch.allclose(Bound(times_num_steps=False)(d, x_0, t, eps), expected)
    assert torch.allclose(Bound(times_num_steps=True)(d, x_0, t, eps), 10 * expected)


def test_l_hybrid_is_l_simple_plus_lambda_times_the_whole_bound():
    d, x_0, t, eps = setting(learned=True)
    simple, bound = Simple()(d, x_0, t, eps), Bound(times_num_steps=True)(d, x_0, t, eps)
    assert torch.allclose(Hybrid(bound_weight=0.001)(d, x_0, t, eps), simple + 0.001 * bound)


def gradients(objective):
    d, x_0, t, eps = setting(learned=True)
    objective(d, x_0, t, eps).mean().backward()
    return d.network.mean.grad, d.network.v.grad


def test_in_hybrid_the_bound_trains_v_alone_and_simple_the_mean_alone():
    hybrid_mean, hybrid_v = gradients(Hybrid(bound_weight=0.001))
    simple_mean, simple_v = gradients(Simple())
    bound_mean, bound_v = gradients(Bound(times_num_steps=True))
    assert simple_v == 0
    assert bound_mean.abs() > 0
    assert torch.allclose(hybrid_mean, simple_mean)
    assert torch.allclose(hybrid_v, 0.001 * bound_v)
    assert bound_v.abs() > 0


@pytest.mark.parametrize("name", names("objective"))
def test_every_yaml_says_truly_whether_it_trains_sigma(name):
    objective = one("objective", name)
    d, x_0, t, eps = setting(learned=True)
    objective(d, x_0, t, eps).mean().backward()
    assert (d.network.v.grad != 0) == objective.trains_sigma
    assert d.network.mean.grad != 0
