import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ddpm.gaussian import Gaussian
from ddpm.images import from_levels


def random_gaussian(seed: int) -> Gaussian:
    g = torch.Generator().manual_seed(seed)
    return Gaussian(torch.randn(4, 3, generator=g).double(), torch.randn(4, 3, generator=g).double())


def test_log_prob_and_kl_are_those_of_the_normal():
    p, q = random_gaussian(0), random_gaussian(1)
    normal = [Normal(g.mean, (g.log_var / 2).exp()) for g in (p, q)]
    x = torch.linspace(-3, 3, 12).double().reshape(4, 3)
    assert torch.allclose(p.log_prob(x), normal[0].log_prob(x))
    assert torch.allclose(p.kl(q), kl_divergence(*normal))


def test_kl_keeps_its_accuracy_between_near_equals():
    p = Gaussian(torch.zeros(1), torch.tensor([0.0]))
    q = Gaussian(torch.tensor([1e-6]), torch.tensor([1e-5]))
    exact = 0.5 * (math.expm1(-1e-5) + 1e-5 + 1e-12 * math.exp(-1e-5))
    assert p.kl(q).item() == pytest.approx(exact, rel=2e-2)  # 1 - 1 in float32 would leave nothing
    assert p.kl(p).item() == 0


def test_a_sample_is_mean_plus_sigma_eps():
    p = random_gaussian(2)
    eps = torch.ones_like(p.mean)
    assert torch.allclose(p.sample(eps), p.mean + (p.log_var / 2).exp())


@pytest.mark.parametrize("num_levels", [17, 256])
@pytest.mark.parametrize("log_var", [-20.0, -9.0, -3.0, 2.0])
@pytest.mark.parametrize("mean", [-40.0, -1.0, -0.3, 0.99, 7.0])
def test_the_decoder_is_a_distribution_over_the_levels(num_levels, log_var, mean):
    x = from_levels(torch.arange(num_levels), num_levels)
    p = Gaussian(torch.full_like(x, mean), torch.tensor(log_var))
    log_prob = p.discretized_log_prob(x, num_levels)
    assert torch.isfinite(log_prob).all()
    assert log_prob.double().exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("num_levels", [17, 256])
def test_the_decoder_is_right_far_out_in_the_tails(num_levels):
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 300
    x = from_levels(torch.arange(num_levels), num_levels).double()
    std, half = 0.05, 1 / (num_levels - 1)
    got = Gaussian(torch.zeros_like(x), torch.tensor(2 * math.log(std)).double()).discretized_log_prob(x, num_levels)
    for value, log_prob in list(zip(x.tolist(), got.tolist(), strict=True))[1:-1]:
        mass = mpmath.ncdf((value + half) / std) - mpmath.ncdf((value - half) / std)
        assert log_prob == pytest.approx(float(mpmath.log(mass)), rel=1e-4)


def test_the_decoder_has_finite_gradients_everywhere():
    x = from_levels(torch.arange(256), 256)
    mean = torch.full_like(x, 30.0).requires_grad_()
    log_var = torch.full_like(x, -40.0).requires_grad_()
    Gaussian(mean, log_var).discretized_log_prob(x, 256).sum().backward()
    assert torch.isfinite(mean.grad).all()
    assert torch.isfinite(log_var.grad).all()
