import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ddpm.gaussian import Gaussian, wide


def random_gaussian(seed: int) -> Gaussian:
    g = torch.Generator().manual_seed(seed)
    return Gaussian(torch.randn(4, 3, generator=g).double(), torch.randn(4, 3, generator=g).double())


def test_kl_is_that_of_the_normal():
    p, q = random_gaussian(0), random_gaussian(1)
    normal = [Normal(g.mean, (g.log_var / 2).exp()) for g in (p, q)]
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


def test_where_takes_rows_of_either_with_gradients_of_the_taken_alone():
    """Also where what is not taken overflows."""
    mean = torch.tensor([[1.0], [2.0]], dtype=torch.float64, requires_grad=True)
    log_var = torch.tensor([[-1e4], [0.5]], dtype=torch.float64, requires_grad=True)
    standard = Gaussian(torch.zeros_like(mean), torch.zeros_like(log_var))
    taken = Gaussian(mean, log_var).where(torch.tensor([[False], [True]]), standard)
    standard.kl(taken).sum().backward()
    assert standard.kl(taken)[0] == 0
    assert mean.grad.flatten().tolist() == [0, pytest.approx(2 * math.exp(-0.5))]
    assert log_var.grad[0] == 0


def test_wide_is_float64():
    assert wide(torch.ones(1)).dtype == wide(torch.ones(1).bfloat16()).dtype == torch.float64
