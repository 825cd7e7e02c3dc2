import math

import numpy as np
import pytest
import torch
from exact import gaussian, point
from yamls import names, one, schedule

from ddpm.errors import Refused
from ddpm.likelihood import at_time, bound, prior, term
from ddpm.prediction import posterior_coefficients
from ddpm.sigma import Beta, BetaTilde, Sigma
from ddpm.types import times


class Exact(Sigma):
    """The variance of the true reverse step for data ~ N(m, v): that of x_0 given x_t comes on top."""

    learned = False

    def __init__(self, v):
        self.v = v

    def log_var(self, schedule, t, s, v):
        of_x_0, _ = posterior_coefficients(schedule, t, s)
        snr = schedule.snr(t)
        return (schedule.beta_tilde(t, s) + of_x_0**2 / (1 / self.v + snr)).log()


def expected_bound(d, m, v):
    """E of the bound with a continuous decoder, in bits, by Gauss-Hermite quadrature, exact for quadratics."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    nodes, weights = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    grid, T = torch.cartesian_prod(nodes, nodes), d.num_steps
    weight = torch.cartesian_prod(weights, weights).prod(1)
    x_0, eps = (part.repeat(T, 1) for part in (m + v**0.5 * grid[:, :1], grid[:, 1:]))
    t = times(torch.arange(1, T + 1).repeat_interleave(16), x_0)
    x_t = d.q(x_0, t, t * 0).sample(eps)
    p = d.p(d(x_t, t), x_t, t, t - 1, clip=False)
    terms = torch.where(t == 1, -p.log_prob(x_0), d.posterior(x_0, x_t, t, t - 1).kl(p))
    return (weight * (terms.reshape(T, 16).sum(0) / math.log(2) + prior(d, x_0[:16]))).sum().item()


def entropy(v):
    return 0.5 * math.log2(2 * math.pi * math.e * v)


@pytest.mark.parametrize("prediction", names("prediction"))
@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_with_the_exact_variance_the_bound_is_the_entropy(name, prediction):
    m, v, s = 0.2, 0.25, schedule(name, 30)
    d = gaussian(s, m, v, Exact(v), one("prediction", prediction))
    a = s.alpha_bar(torch.tensor([30])).item()
    mismatch = 0.5 * (a * (m**2 + v - 1) - math.log(1 + a * (v - 1))) / math.log(2)  # of q(x_T) and N(0, 1)
    assert expected_bound(d, m, v) - entropy(v) == pytest.approx(mismatch, abs=1e-6)


@pytest.mark.parametrize(("sigma", "gap"), [(Beta(), 0.0016), (BetaTilde(), 0.658)])
def test_the_gap_of_each_sigma_on_a_gaussian(sigma, gap):
    """In bits, linear T = 1000, data ~ N(0, 1/4): the known gap with beta_1 as the variance of the first step,
    and what it costs that beta_tilde_2 stands in for it."""
    from test_sampler import schedule_1000

    s, v, one_ = schedule_1000(), 0.25, torch.tensor([1])
    beta_1, stand_in = s.beta(one_, one_ - 1).item(), s.beta_tilde(one_ + 1, one_).item()
    error = 1 / (1 / v + s.snr(one_).item())  # Var(x_0 | x_1)
    cost = 0.5 * (math.log(stand_in / beta_1) + error * (1 / stand_in - 1 / beta_1)) / math.log(2)
    got = expected_bound(gaussian(s, 0.0, v, sigma), 0.0, v) - entropy(v)
    assert got - cost == pytest.approx(gap, abs=5e-4)


@pytest.mark.parametrize("sigma", ["beta", "beta_tilde", "interpolated"])
def test_terms_agree_with_an_independent_float64_bound(sigma):
    """Eq. 5 written out with the paper's products, in numpy."""
    s, x_0 = schedule("linear", 8), torch.tensor([[17.0, 200.0], [0.0, 255.0]]).double() / 127.5 - 1
    d = gaussian(s, 0.1, 0.5, one("sigma", sigma))
    g = torch.Generator().manual_seed(0)
    eps = torch.randn(9, 2, 2, generator=g, dtype=torch.float64)
    got = bound(d, x_0, lambda t: eps[t], clip=False)
    ab = s.alpha_bar(torch.arange(9)).numpy()
    for t in range(2, 9):
        beta = 1 - ab[t] / ab[t - 1]
        tilde = beta * (1 - ab[t - 1]) / (1 - ab[t])
        var = {"beta": beta, "beta_tilde": tilde, "interpolated": (beta * tilde) ** 0.5}[sigma]
        x_t = ab[t] ** 0.5 * x_0.numpy() + (1 - ab[t]) ** 0.5 * eps[t].numpy()
        gain = ab[t] ** 0.5 * 0.5 / (ab[t] * 0.5 + 1 - ab[t])
        estimate = 0.1 + gain * (x_t - ab[t] ** 0.5 * 0.1)
        c = ab[t - 1] ** 0.5 * beta / (1 - ab[t])
        kl = 0.5 * (np.log(var / tilde) - 1 + (tilde + c**2 * (x_0.numpy() - estimate) ** 2) / var)
        np.testing.assert_allclose(got.kl[t - 1], kl.mean(1) / math.log(2), rtol=1e-9)
    assert torch.allclose(got.total, got.rate + got.distortion)
    assert torch.equal(got.distortion, got.kl[0])


def test_the_prior_term_at_the_ends_of_the_range():
    """Golden values of L_T for linear T = 1000, in bits/dim."""
    from test_sampler import schedule_1000

    d = point(schedule_1000(), 0.0)
    x = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    np.testing.assert_allclose(prior(d, x), [2.911e-05, 5.875e-10], rtol=1e-3)


def test_errors_of_x_0_and_eps_are_those_of_the_estimate():
    d = point(schedule("linear", 8), 0.5)
    x_0, eps = torch.full((2, 3), 0.25), torch.randn(2, 3)
    t = times(4, x_0)
    _, x_0_mse, eps_mse = at_time(d, x_0, t, eps, clip=True)
    assert torch.allclose(x_0_mse, torch.full((2,), 0.0625))
    assert torch.allclose(eps_mse, 0.0625 * d.schedule.snr(t).flatten().float())


def test_data_without_levels_have_no_bound():
    d = point(schedule("linear", 8), 0.5)
    d.num_levels = None
    x = torch.zeros(1, 2)
    with pytest.raises(Refused, match="levels"):
        term(d, d(x, times(1, x)), x, x, times(1, x), clip=True)
