from itertools import product

import pytest
import torch
from exact import gaussian, moments, point
from yamls import names, node, one, schedule

from ddpm.errors import Refused
from ddpm.instantiate import make
from ddpm.prediction import posterior_coefficients
from ddpm.sampler import DDIM, Ancestral, Spacing
from ddpm.sigma import Beta, BetaTilde
from ddpm.types import times

SPACINGS = [spacing.value for spacing in Spacing]
NO_SIGNAL = {"jsd"}  # refused with epsilon-prediction


def ancestral(n, spacing="trailing", clip=False):
    return Ancestral(num_steps=n, spacing=spacing, clip=clip)


def ddim(n, eta, spacing="trailing", clip=False):
    return DDIM(num_steps=n, spacing=spacing, clip=clip, eta=eta)


def exactly(s, x, t):
    """Mean and variance of q(x_t | x_0 = x)."""
    t = torch.tensor([t])
    return s.alpha_bar(t).sqrt().item() * x, s.noise_var(t).item()


@pytest.mark.parametrize("name", sorted(set(names("schedule")) - NO_SIGNAL))
@pytest.mark.parametrize("n", [3, 7, 10])
@pytest.mark.parametrize("rule", ["beta_tilde", 0.0, 0.3, 1.0])
def test_on_a_point_every_step_gives_q(name, n, rule):
    """Ancestral with beta_tilde, and DDIM of every eta, at any stride."""
    s = schedule(name, 10)
    sampler = ancestral(n) if rule == "beta_tilde" else ddim(n, rule)
    for time, mean, var in moments(sampler, point(s, 0.4, BetaTilde()), *exactly(s, 0.4, sampler.times(10)[0])):
        m, v = exactly(s, 0.4, time)
        assert mean == pytest.approx(m, abs=1e-10)
        assert var == pytest.approx(v, abs=1e-10)


@pytest.mark.parametrize("name", sorted(set(names("schedule")) - NO_SIGNAL))
@pytest.mark.parametrize("n", [3, 10])
def test_on_unit_noise_ancestral_with_beta_stays_unit_noise(name, n):
    s = schedule(name, 10)
    for time, mean, var in moments(ancestral(n), gaussian(s, 0.0, 1.0, Beta()), 0.0, 1.0):
        assert mean == pytest.approx(0, abs=1e-12)
        assert time == 0 or var == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize(("sigma", "spacing"), product([Beta(), BetaTilde()], SPACINGS))
def test_on_a_gaussian_ancestral_follows_the_linear_recursion(sigma, spacing):
    m, v, s = 0.3, 0.25, schedule("linear", 1000)
    sampler = ancestral(20, spacing)
    visited = sampler.times(1000)
    mean, var = 0.0, 1.0
    for (time, got_mean, got_var), t in zip(
        moments(sampler, gaussian(s, m, v, sigma), 0.0, 1.0), visited, strict=False
    ):
        T, S = torch.tensor([t]), torch.tensor([time])
        a, noise = s.alpha_bar(T).sqrt().item(), s.noise_var(T).item()
        of_x_0, of_x_t = (c.item() for c in posterior_coefficients(s, T, S))
        gain = a * v / (a * a * v + noise)
        mean = of_x_0 * (m + gain * (mean - a * m)) + of_x_t * mean
        noise_var = sigma.log_var(s, T, S, None).exp().item() if time else 0.0
        var = (of_x_0 * gain + of_x_t) ** 2 * var + noise_var
        assert got_mean == pytest.approx(mean, abs=1e-10)
        assert got_var == pytest.approx(var, abs=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_on_a_gaussian_ddim_follows_the_linear_recursion(eta):
    m, v, s = -0.2, 0.25, schedule("linear", 1000)
    sampler, mean, var = ddim(20, eta), 0.0, 1.0
    visited = sampler.times(1000)
    for (time, got_mean, got_var), t in zip(moments(sampler, gaussian(s, m, v), 0.0, 1.0), visited, strict=False):
        T, S = torch.tensor([t]), torch.tensor([time])
        a, b2, a_s = s.alpha_bar(T).sqrt().item(), s.noise_var(T).item(), s.alpha_bar(S).sqrt().item()
        gain, variance = a * v / (a * a * v + b2), eta**2 * s.beta_tilde(T, S).item()
        along = ((1 - a_s**2 - variance) / b2) ** 0.5
        of_x = a_s * gain + along * (1 - a * gain)
        mean = (a_s - along * a) * (m - gain * a * m) + of_x * mean
        var = of_x**2 * var + variance
        assert got_mean == pytest.approx(mean, abs=1e-10)
        assert got_var == pytest.approx(var, abs=1e-10)


@pytest.mark.parametrize(
    ("sampler", "sigma", "var"),
    [  # known values for x_0 ~ N(0, 1), linear, T = 1000, 20 steps
        (ancestral(20), Beta(), 0.971),
        (ancestral(20), BetaTilde(), 0.711),
        (ddim(20, 0.0), Beta(), 0.830),
    ],
)
def test_known_variances_of_few_steps(sampler, sigma, var):
    *_, (_, _, got) = moments(sampler, gaussian(schedule_1000(), 0.0, 1.0, sigma), 0.0, 1.0)
    assert got == pytest.approx(var, abs=1e-3)


def schedule_1000():
    from ddpm.schedule import NoiseSchedule

    return NoiseSchedule(make(node("schedule", "linear"), "schedule"))


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("t", "s"), [(10, 9), (10, 4), (3, 1), (2, 0)])
def test_ddim_with_eta_one_is_ancestral_with_beta_tilde(clip, t, s):
    d = gaussian(schedule("linear", 10), 0.5, 4.0, BetaTilde())
    x, eps = torch.randn(2, 64, 3, dtype=torch.float64)
    args = (d, 2 * x, times(t, x), times(s, x), eps)
    ours, theirs = ancestral(5, clip=clip).step(*args), ddim(5, 1.0, clip=clip).step(*args)
    for one_, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one_, other, atol=1e-10)


@pytest.mark.parametrize("name", names("sampler"))
@pytest.mark.parametrize("prediction", names("prediction"))
def test_every_sampler_walks_every_prediction_to_the_point(name, prediction):
    s = schedule("linear", 10)
    sampler = make(node("sampler", name, num_steps=4), "sampler")
    d = point(s, 0.25, prediction=one("prediction", prediction))
    noise = torch.randn(11, 2, 3)
    assert torch.allclose(sampler(d, noise[10], lambda time: noise[time]), torch.full((2, 3), 0.25), atol=1e-4)


@pytest.mark.parametrize(("spacing", "n"), product(SPACINGS, [1, 7, 20, 50, 333, 1000]))
def test_spacings_descend_within_the_schedule(spacing, n):
    visited = ancestral(n, spacing).times(1000)
    assert visited[-1] == 0
    assert all(a > b for a, b in zip(visited, visited[1:], strict=False))
    assert 1 <= visited[-2] <= visited[0] <= 1000
    assert len(visited) == n + 1 or spacing == "quadratic"


def test_spacings_are_the_papers():
    def times_of(spacing):
        return ancestral(10, spacing).times(1000)[-2::-1]

    assert times_of("leading") == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]
    assert times_of("trailing") == [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
    assert times_of("linspace") == [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000]
    assert times_of("quadratic") == [1, 10, 40, 89, 159, 247, 356, 484, 633, 801]


def test_more_steps_than_the_model_has_are_refused():
    with pytest.raises(Refused, match="only 10 steps"):
        ancestral(11).times(10)
