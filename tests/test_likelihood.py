import math
from functools import cache
from itertools import product

import numpy as np
import papers
import pytest
import torch
from exact import point
from sklearn.datasets import load_digits
from torch import nn
from yamls import names, node, one, schedule, sigma_of

from ddpm.diffusion import GaussianDiffusion
from ddpm.instantiate import make
from ddpm.likelihood import at_time, bound, prior, term
from ddpm.schedule import NoiseSchedule
from ddpm.sigma import Learned, LearnedRange
from ddpm.types import times


@cache
def process(name, T):
    """A schedule, and the papers' tables of it."""
    betas = make(node("schedule", name, num_steps=T, **({"beta_T": 0.5} if T < 1000 else {})), "schedule")
    return NoiseSchedule(betas), papers.tables(betas.numpy())


def tiny_model(prediction, sigma, name, T, trained):
    """A small U-Net with all weights drawn, or one that has learned a digit (its v may go unused)."""
    kind = sigma_of(sigma, T)
    network = trained_network(prediction, name, T) if trained else drawn_network(kind.learned)
    return GaussianDiffusion(network, process(name, T)[0], kind, one("prediction", prediction), 17).eval()


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
def trained_network(prediction, name, T):
    """One whose loss on one digit, at the same times and with the same noise, is below half of what it was."""
    d = GaussianDiffusion(unet(True), process(name, T)[0], LearnedRange(), one("prediction", prediction), 17).eval()
    objective, optimizer = one("objective", "hybrid"), torch.optim.Adam(d.parameters(), lr=2e-2)
    x_0 = digits(1).expand(12, 1, 8, 8)

    def loss(u, eps):
        t = ((torch.arange(12) + u) / 12 * T).long() + 1
        return objective(d, x_0, times(t, x_0), eps).mean()

    held = torch.rand(12), torch.randn_like(x_0)
    first = loss(*held).item()
    for _ in range(50):
        optimizer.zero_grad()
        loss(torch.rand(12), torch.randn_like(x_0)).backward()
        optimizer.step()
    assert loss(*held).item() < first / 2
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
    np.testing.assert_allclose(kl, expected, rtol=1e-5, atol=1e-16)  # of a mass that is 1 but for rounding
    np.testing.assert_allclose(x_0_mse, error, rtol=1e-5)
    np.testing.assert_allclose(eps_mse, table["snr"] * error, rtol=1e-5)


SIZES = [("linear", 12), *(pytest.param(name, 1000, marks=pytest.mark.slow) for name in ("linear", "cosine"))]


@pytest.mark.parametrize(("prediction", "sigma"), product(names("prediction"), papers.SIGMAS))
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("name", "T"), SIZES)
def test_every_term_agrees_with_the_papers_in_float64(prediction, sigma, trained, name, T):
    """Whatever a network in float32 says: Eq. 5 and 13 in numpy make the same bits of it."""
    d = tiny_model(prediction, sigma, name, T, trained)
    for clip in (False, True):
        check_every_term(d, process(name, T)[1], prediction, sigma, clip)


@pytest.mark.parametrize(("prediction", "name"), [*product(names("prediction"), ["linear"]), ("velocity", "cosine")])
def test_every_term_of_a_thousand_steps_agrees_too(prediction, name):
    """Where the two means of L_{t-1} agree to three digits, and beta with beta_tilde to six."""
    d = tiny_model(prediction, "beta", name, 1000, trained=False)
    check_every_term(d, process(name, 1000)[1], prediction, "beta", clip=False)


@pytest.mark.parametrize("clip", [False, True])
def test_the_bound_is_the_sum_of_its_terms(clip):
    d, x_0 = tiny_model("epsilon", "learned_range", "linear", 12, trained=True), digits(3)
    eps = torch.randn(13, *x_0.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = bound(d, x_0, lambda t: eps[t], clip)
        rows = [at_time(d, x_0, times(t, x_0), eps[t], clip) for t in range(1, 13)]
    for part, expected in zip((got.kl, got.x_0_mse, got.eps_mse), zip(*rows, strict=True), strict=True):
        assert torch.equal(part, torch.stack(expected))
    np.testing.assert_allclose(got.prior, papers.prior(process("linear", 12)[1], x_0.double().numpy()), rtol=1e-5)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("T", [1000, 4000])
@pytest.mark.parametrize("name", papers.SCHEDULES)
def test_the_prior_term_of_any_image_is_the_papers(name, T, dtype):
    """Where next to nothing is left of x_0, that of x_0 = 0 is alpha_bar_T^2, which 1 - alpha_bar_T does not keep."""
    table, betas = papers.tables(papers.betas(name, T)), make(node("schedule", name, num_steps=T), "schedule")
    flat = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1).expand(3, 1, 8, 8)
    x_0 = torch.cat((flat, digits(5))).to(dtype)
    got = prior(point(NoiseSchedule(betas), 0.0), x_0)
    lost = 4 * np.finfo(np.float64).eps * table["alpha_bar"][-1]
    np.testing.assert_allclose(got, papers.prior(table, x_0.double().numpy()), rtol=1e-5, atol=lost)


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
    assert torch.allclose(x_0_mse.float(), torch.full((2,), 0.0625))
    assert torch.allclose(eps_mse.double(), 0.0625 * d.schedule.snr(t).flatten())
