"""The bound of Gaussian data with exact networks is the cross-entropy and the closed gap of the sigma."""

import math
from itertools import product

import numpy as np
import papers
import pytest
import torch
from exact import gaussian
from yamls import names, node, one

from ddpm.instantiate import make
from ddpm.likelihood import prior, term
from ddpm.prediction import posterior_coefficients
from ddpm.schedule import NoiseSchedule
from ddpm.sigma import Analytic, Beta, BetaTilde, Sigma
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


FINE = 2**26 + 1  # so many levels that a mass is a density times their distance; 1/4 and 3/4 are among them


def expected_bound(d, m, v):
    """E of the bound on the density of x_0 ~ N(m, v), in bits, by Gauss-Hermite quadrature of two points a
    dimension, which is exact for quadratics."""
    d.num_levels, T = FINE, d.num_steps
    grid = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 2)
    x_0, eps = (part.repeat(T, 1) for part in (m + v**0.5 * grid[:, :1], grid[:, 1:]))
    t = times(torch.arange(1, T + 1).repeat_interleave(4), x_0)
    x_t = d.q(x_0, t, t * 0).sample(eps)
    terms = term(d, d(x_t, t), x_0, x_t, t, clip=False).reshape(T, 4)
    return (terms.sum(0) + prior(d, x_0[:4])).mean().item() + math.log2(2 / (FINE - 1))


def entropy(v):
    return 0.5 * math.log2(2 * math.pi * math.e * v)


def cross_entropy(table, m, v):
    """The entropy of N(m, v), and what it costs that x_T is taken for N(0, 1): bits."""
    a = table["alpha_bar"][-1]
    return entropy(v) + 0.5 * (a * (m**2 + v - 1) - math.log1p(a * (v - 1))) / math.log(2)


def gap(table, sigma, v):
    """What a fixed sigma costs on N(m, v) with the exact mean, bits: KL of two Gaussians of one mean, with the true
    variance of the reverse step, u times sigma^2, and with sigma^2; summed over t."""
    error = 1 / (1 / v + table["snr"])  # Var(x_0 | x_t)
    true = table["beta_tilde"] + table["of_x_0"] ** 2 * error
    log_var = [papers.log_variance(sigma, table, t, np.zeros(())) for t in range(1, len(true) + 1)]
    log_u = np.log(true) - log_var
    return 0.5 * (np.expm1(log_u) - log_u).sum() / math.log(2)


GAUSSIANS = [(0.25, 0.25), (-0.5, 0.0625)]  # m -+ sqrt(v) lie on the fine levels
SETTINGS = [*product(papers.SCHEDULES, [30]), ("linear", 1000), ("cosine", 1000)]


def exact_model(name, T, m, v, sigma, prediction=None):
    """The exact network on N(m, v) under a schedule, and the papers' tables of that schedule."""
    betas = make(node("schedule", name, num_steps=T, **({"beta_T": 0.5} if T < 1000 else {})), "schedule")
    prediction = prediction or ("velocity" if name == "jsd" else "epsilon")
    return gaussian(NoiseSchedule(betas), m, v, sigma, one("prediction", prediction)), papers.tables(betas.numpy())


@pytest.mark.parametrize(("name", "T"), SETTINGS)
@pytest.mark.parametrize("prediction", names("prediction"))
def test_with_the_exact_variance_the_bound_is_the_cross_entropy(name, T, prediction):
    if (name, prediction) == ("jsd", "epsilon"):
        return  # refused when built
    for m, v in GAUSSIANS:
        d, table = exact_model(name, T, m, v, Exact(v), prediction)
        assert expected_bound(d, m, v) == pytest.approx(cross_entropy(table, m, v), abs=1e-6)


@pytest.mark.parametrize(("name", "T"), [setting for setting in SETTINGS if setting[0] != "jsd"])
def test_the_analytic_variance_of_the_exact_network_is_the_exact_one(name, T):
    for m, v in GAUSSIANS:
        d, table = exact_model(name, T, m, v, Exact(v), "epsilon")
        t = torch.arange(T + 1)
        power = d.schedule.noise_var(t) / (d.schedule.alpha_bar(t) * v + d.schedule.noise_var(t))
        d = d.with_sigma(Analytic(num_images=1, batch_size=1, cache="", eps_power=power))
        assert expected_bound(d, m, v) == pytest.approx(cross_entropy(table, m, v), abs=1e-6)


@pytest.mark.parametrize(("name", "T"), SETTINGS)
@pytest.mark.parametrize("sigma", ["beta", "beta_tilde", "interpolated"])
def test_with_a_fixed_variance_the_bound_is_the_cross_entropy_and_its_gap(name, T, sigma):
    for m, v in GAUSSIANS:
        d, table = exact_model(name, T, m, v, one("sigma", sigma))
        assert expected_bound(d, m, v) == pytest.approx(cross_entropy(table, m, v) + gap(table, sigma, v), abs=1e-6)
        assert gap(table, sigma, v) > 0


@pytest.mark.parametrize(("sigma", "gap", "digit"), [(Beta(), 0.0016, 1e-4), (BetaTilde(), 0.658, 1e-3)])
def test_the_gap_of_each_sigma_on_a_gaussian(sigma, gap, digit):
    """In bits, linear T = 1000, data ~ N(0, 1/4): the known gap with beta_1 as the variance of the first step,
    and what it costs that beta_tilde_2 stands in for it."""
    s, v, one_ = NoiseSchedule(make(node("schedule", "linear"), "schedule")), 0.25, torch.tensor([1])
    beta_1, stand_in = s.beta(one_, one_ - 1).item(), s.beta_tilde(one_ + 1, one_).item()
    error = 1 / (1 / v + s.snr(one_).item())  # Var(x_0 | x_1)
    cost = 0.5 * (math.log(stand_in / beta_1) + error * (1 / stand_in - 1 / beta_1)) / math.log(2)
    got = expected_bound(gaussian(s, 0.0, v, sigma), 0.0, v) - entropy(v)
    assert got - cost == pytest.approx(gap, abs=digit / 2)
