import math
from functools import cache
from itertools import product

import numpy as np
import papers
import pytest
import torch
from exact import gaussian, point
from sklearn.datasets import load_digits
from torch import nn
from yamls import names, node, one, schedule, sigma_of

from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import Refused
from ddpm.instantiate import make
from ddpm.likelihood import at_time, bound, prior, term
from ddpm.prediction import posterior_coefficients
from ddpm.schedule import NoiseSchedule
from ddpm.sigma import Analytic, Beta, BetaTilde, Learned, LearnedRange, Sigma
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


@pytest.mark.parametrize(("sigma", "gap"), [(Beta(), 0.0016), (BetaTilde(), 0.658)])
def test_the_gap_of_each_sigma_on_a_gaussian(sigma, gap):
    """In bits, linear T = 1000, data ~ N(0, 1/4): the known gap with beta_1 as the variance of the first step,
    and what it costs that beta_tilde_2 stands in for it."""
    s, v, one_ = NoiseSchedule(make(node("schedule", "linear"), "schedule")), 0.25, torch.tensor([1])
    beta_1, stand_in = s.beta(one_, one_ - 1).item(), s.beta_tilde(one_ + 1, one_).item()
    error = 1 / (1 / v + s.snr(one_).item())  # Var(x_0 | x_1)
    cost = 0.5 * (math.log(stand_in / beta_1) + error * (1 / stand_in - 1 / beta_1)) / math.log(2)
    got = expected_bound(gaussian(s, 0.0, v, sigma), 0.0, v) - entropy(v)
    assert got - cost == pytest.approx(gap, abs=5e-4)


def tiny_model(prediction, sigma, s, trained):
    """A small U-Net with all weights drawn, or one that has seen some digits (its v may go unused)."""
    kind = sigma_of(sigma, s.num_steps)
    network = trained_network(prediction) if trained else drawn_network(kind.learned)
    return GaussianDiffusion(network, s, kind, one("prediction", prediction), 17).eval()


def unet(learned):
    torch.manual_seed(0)
    return make(node("model", "tiny"), "model", shape=(1, 8, 8), num_classes=0, learned=learned)


@cache
def drawn_network(learned):
    network = unet(learned)
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    return network


@cache
def trained_network(prediction):
    d = GaussianDiffusion(unet(True), schedule("linear", 12), LearnedRange(), one("prediction", prediction), 17)
    objective, optimizer = one("objective", "hybrid"), torch.optim.Adam(d.parameters(), lr=4e-3)
    x_0 = digits(12)
    for _ in range(20):
        optimizer.zero_grad()
        objective(d, x_0, times(torch.randperm(12) + 1, x_0), torch.randn_like(x_0)).mean().backward()
        optimizer.step()
    return d.network


@cache
def digits(count):
    return torch.from_numpy(load_digits().images[:count]).float()[:, None] / 8 - 1


def heard(d, x_0, clip):
    """The terms and errors of one image at every t, in one batch, and what the network was shown and said
    meanwhile: (x_t, output, v) in float64, v being 0 where there is none."""
    T, said = d.num_steps, []
    hook = d.network.register_forward_hook(lambda _, shown, out: said.append((shown[0], out)))
    batch = x_0.expand(T, *x_0.shape[1:])
    eps = torch.randn(batch.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = at_time(d, batch, times(torch.arange(1, T + 1), batch), eps, clip)
    hook.remove()
    ((x_t, out),) = said
    mean, v = out.chunk(2, dim=1) if out.shape != x_t.shape else (out, torch.zeros_like(out))
    return got, eps.double().numpy(), [part.double().numpy() for part in (x_t, mean, v)]


def check_every_term(d, table, prediction, sigma, clip):
    x_0 = digits(1)
    (kl, x_0_mse, eps_mse), eps, (x_t, output, v) = heard(d, x_0, clip)
    x = x_0.double().numpy()
    a, b = (table[key].reshape(-1, 1, 1, 1) ** 0.5 for key in ("alpha_bar", "noise_var"))
    np.testing.assert_allclose(x_t, a * x + b * eps, atol=1e-6)
    expected, error = [], []
    for t in range(1, d.num_steps + 1):
        row = slice(t - 1, t)
        estimated = papers.estimate(prediction, table, t, x_t[row], output[row], clip)
        log_var = papers.log_variance(sigma, table, t, v[row])
        meant = papers.estimate(prediction, table, t, x_t[row], output[row], clip and prediction != "mean")
        expected += papers.term(table, t, x, meant, log_var, 17).tolist()
        error += papers.flat_mean((x - estimated) ** 2).tolist()
    np.testing.assert_allclose(kl, expected, rtol=1e-5)
    np.testing.assert_allclose(x_0_mse, error, rtol=1e-5)
    np.testing.assert_allclose(eps_mse, table["snr"] * error, rtol=1e-5)


@pytest.mark.parametrize(("prediction", "sigma"), product(names("prediction"), papers.SIGMAS))
@pytest.mark.parametrize("trained", [False, True])
def test_every_term_agrees_with_the_papers_in_float64(prediction, sigma, trained):
    """Whatever a network in float32 says: Eq. 5 and 13 in numpy make the same bits of it."""
    betas = make(node("schedule", "linear", num_steps=12, beta_T=0.5), "schedule")
    table, d = papers.tables(betas.numpy()), tiny_model(prediction, sigma, NoiseSchedule(betas), trained)
    for clip in (False, True):
        check_every_term(d, table, prediction, sigma, clip)


@pytest.mark.parametrize(("prediction", "name"), [*product(names("prediction"), ["linear"]), ("velocity", "cosine")])
def test_every_term_of_a_thousand_steps_agrees_too(prediction, name):
    """Where the two means of L_{t-1} agree to three digits, and beta with beta_tilde to six."""
    betas = make(node("schedule", name), "schedule")
    d = tiny_model(prediction, "beta", NoiseSchedule(betas), trained=False)
    check_every_term(d, papers.tables(betas.numpy()), prediction, "beta", clip=False)


@pytest.mark.parametrize("clip", [False, True])
def test_the_bound_is_the_sum_of_its_terms(clip):
    betas = make(node("schedule", "linear", num_steps=12, beta_T=0.5), "schedule")
    d, x_0 = tiny_model("epsilon", "learned_range", NoiseSchedule(betas), trained=True), digits(3)
    eps = torch.randn(13, *x_0.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = bound(d, x_0, lambda t: eps[t], clip)
        rows = [at_time(d, x_0, times(t, x_0), eps[t], clip) for t in range(1, 13)]
    for part, expected in zip((got.kl, got.x_0_mse, got.eps_mse), zip(*rows, strict=True), strict=True):
        assert torch.equal(part, torch.stack(expected))
    np.testing.assert_allclose(got.prior, papers.prior(papers.tables(betas.numpy()), x_0.double().numpy()), rtol=1e-5)
    np.testing.assert_allclose(got.total, got.prior + got.kl.double().sum(0), rtol=1e-6)
    assert torch.allclose(got.total, got.rate + got.distortion)
    assert torch.equal(got.distortion, got.kl[0])


@pytest.mark.parametrize(
    ("name", "T", "golden"),
    [
        ("linear", 1000, (2.911e-05, 5.875e-10)),
        ("quadratic", 1000, (5.292e-04, 1.941e-07)),
        ("constant", 1000, (1.214e-09, 0)),
        ("warmup10", 1000, (3.328e-09, 0)),
        ("warmup50", 1000, (1.880e-07, 0)),
        ("jsd", 1000, (0, 0)),
        ("linear", 4000, (3.063e-05, 6.505e-10)),
        ("cosine", 1000, (1.752e-09, 0)),
        ("cosine", 4000, (1.095e-10, 0)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_prior_term_at_the_ends_of_the_range(name, T, golden, dtype):
    """Golden values of L_T at x_0 = 1 and x_0 = 0, in bits/dim, to their last digit."""
    betas = make(node("schedule", name, num_steps=T, rescale=True), "schedule")
    x_0 = torch.tensor([[1.0], [0.0]], dtype=dtype)
    np.testing.assert_allclose(prior(point(NoiseSchedule(betas), 0.0), x_0), golden, rtol=3e-4, atol=1e-13)


class Says(nn.Module):
    """One number as the prediction and one as the log-variance, whatever it sees."""

    def __init__(self, mean, v):
        super().__init__()
        self.mean, self.v = (nn.Parameter(torch.tensor(value)) for value in (mean, v))

    def forward(self, x, time):
        return torch.cat((self.mean.expand_as(x), self.v.expand_as(x)), dim=1)


@pytest.mark.parametrize("decoder", names("decoder"))
@pytest.mark.parametrize("v", [-1e4, -710.0, -100.0, -30.0, 0.0, 100.0])
@pytest.mark.parametrize("mean", [0.0, 1.0, -3.0, 1e6])
def test_the_loss_of_the_first_step_is_finite_however_far_and_however_narrow(decoder, v, mean):
    """And so is its gradient: the KL that is not meant at t = 1 has no part in it."""
    d = GaussianDiffusion(Says(mean, v), schedule("linear", 8), Learned(), one("prediction", "x0"), 17)
    d = d.with_decoder(one("decoder", decoder))
    x_0 = digits(2)
    x_t, t = torch.randn_like(x_0), times(1, x_0)
    loss = term(d, d(x_t, t), x_0, x_t, t, clip=False)
    loss.sum().backward()
    assert all(number.isfinite().all() for number in (loss, d.network.mean.grad, d.network.v.grad))


def test_the_bound_takes_the_models_decoder():
    d, x_0 = point(schedule("linear", 8), 0.9), torch.full((1, 3), -1.0)
    eps = torch.zeros(9, 1, 3)
    exact, tanh = (bound(d.with_decoder(one("decoder", name)), x_0, lambda t: eps[t]) for name in ("exact", "tanh"))
    assert tanh.distortion.item() == pytest.approx(-math.log2(1e-12))
    assert exact.distortion > 1000
    assert torch.equal(tanh.rate, exact.rate)


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
