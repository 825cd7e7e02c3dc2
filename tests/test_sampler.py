from itertools import product

import numpy as np
import pytest
import torch
from exact import gaussian, moments, point
from yamls import names, node, one, schedule

from ddpm.analytic import eps_power
from ddpm.diffusion import clipped
from ddpm.errors import Refused
from ddpm.instantiate import make
from ddpm.prediction import posterior_coefficients
from ddpm.sampler import DDIM, Ancestral, Heun, Spacing
from ddpm.sigma import Analytic, Beta, BetaTilde, Interpolated
from ddpm.types import times

SPACINGS = [spacing.value for spacing in Spacing]
NO_SIGNAL = {"jsd"}  # refused with epsilon-prediction


def ancestral(n, spacing="trailing", clip=False):
    return Ancestral(num_steps=n, spacing=spacing, clip=clip)


def ddim(n, eta, spacing="trailing", clip=False):
    return DDIM(num_steps=n, spacing=spacing, clip=clip, eta=eta)


def heun(n, spacing="trailing", clip=False):
    return Heun(num_steps=n, spacing=spacing, clip=clip)


def exactly(s, x, t):
    """Mean and variance of q(x_t | x_0 = x)."""
    t = torch.tensor([t])
    return s.alpha_bar(t).sqrt().item() * x, s.noise_var(t).item()


@pytest.mark.parametrize("name", sorted(set(names("schedule")) - NO_SIGNAL))
@pytest.mark.parametrize("n", [3, 7, 10])
@pytest.mark.parametrize("rule", ["beta_tilde", "heun", 0.0, 0.3, 1.0])
def test_on_a_point_every_step_gives_q(name, n, rule):
    """Ancestral with beta_tilde, DDIM of every eta, and Heun, at any stride."""
    s = schedule(name, 10)
    sampler = {"beta_tilde": ancestral, "heun": heun}[rule](n) if isinstance(rule, str) else ddim(n, rule)
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


@pytest.mark.parametrize(("name", "spacing"), product(["linear", "cosine"], SPACINGS))
@pytest.mark.parametrize("sigma", [Beta(), BetaTilde(), Interpolated(fraction=0.3)])
def test_on_a_gaussian_ancestral_follows_the_linear_recursion(sigma, name, spacing):
    m, v, s = 0.3, 0.25, schedule(name, 1000)
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


@pytest.mark.parametrize(("name", "spacing"), product(["linear", "cosine"], SPACINGS))
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_on_a_gaussian_ddim_follows_the_linear_recursion(eta, name, spacing):
    m, v, s = -0.2, 0.25, schedule(name, 1000)
    sampler, mean, var = ddim(20, eta, spacing), 0.0, 1.0
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


@pytest.mark.parametrize(("name", "spacing"), product(["linear", "cosine"], SPACINGS))
def test_on_a_gaussian_heun_follows_the_linear_recursion(name, spacing):
    """x/a moves by the mean of the slopes eps at both ends of a step in b/a, each linear in x. The network says
    velocity: of eps in float64 comes x_0 to no more than 1e-16/a, and a step from a = 5e-5 makes 1e-9 of it."""
    m, v, s = -0.2, 0.25, schedule(name, 1000)
    sampler, mean, var = heun(20, spacing), 0.0, 1.0
    d = gaussian(s, m, v, prediction=one("prediction", "velocity"))

    def factors_of(t):  # of x - a m in eps and in x_0 - m
        a, b2 = s.alpha_bar(torch.tensor([t])).sqrt().item(), s.noise_var(torch.tensor([t])).item()
        return a, b2**0.5, b2**0.5 / (a * a * v + b2), a * v / (a * a * v + b2)

    for (time, got_mean, got_var), t in zip(moments(sampler, d, 0.0, 1.0), sampler.times(1000), strict=False):
        (a, b, slope, gain), (a_s, b_s, slope_s, _) = factors_of(t), factors_of(max(time, 1))
        a_s, b_s = (a_s, b_s) if time else (1.0, 0.0)
        euler = a_s * gain + b_s * slope  # of x - a m: the mean of the data moves with the process
        of_x = euler + (b_s - a_s / a * b) / 2 * (slope_s * euler - slope) if time else euler
        mean, var = a_s * m + of_x * (mean - a * m), of_x**2 * var
        assert got_mean == pytest.approx(mean, abs=1e-10)
        assert got_var == pytest.approx(var, abs=1e-10)


@pytest.mark.parametrize(("sampler", "order"), [(lambda n: ddim(n, 0.0), 1), (lambda n: heun(n), 2)])
def test_the_ode_is_solved_to_the_order_of_the_method(sampler, order):
    """Against the exact flow on N(m, v) from the first to the last time but one, where the step is not cut short."""
    m, v, s = 0.3, 0.25, schedule_1000()
    errors = []
    for n in (50, 100, 200):
        final = [(time, mean) for time, mean, _ in moments(sampler(n), gaussian(s, m, v), 2.0, 0.0) if time >= 200]
        end, got = final[-1]
        assert end == 200
        T, S = torch.tensor([1000]), torch.tensor([end])
        (a, b2), (a_s, b2_s) = ((s.alpha_bar(t).item() ** 0.5, s.noise_var(t).item()) for t in (T, S))
        exact = a_s * m + ((a_s**2 * v + b2_s) / (a**2 * v + b2)) ** 0.5 * (2.0 - a * m)
        errors.append(abs(got - exact))
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 0.8 * 2**order < coarse / fine < 1.25 * 2**order


def test_inversion_finds_the_noise_twice_as_well_with_twice_the_steps():
    m, v, s = 0.3, 0.25, schedule_1000()
    a, b2 = s.alpha_bar(torch.tensor([1000])).item() ** 0.5, s.noise_var(torch.tensor([1000])).item()
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1)
    x_0 = m + (v / (a * a * v + b2)) ** 0.5 * (x_T - a * m)  # the exact flow
    errors = [(ddim(n, 0.0).invert(gaussian(s, m, v), x_0) - x_T).abs().mean().item() for n in (10, 20, 40, 80)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert coarse / fine == pytest.approx(2, rel=0.06)


@pytest.mark.parametrize("name", sorted(set(names("schedule")) - NO_SIGNAL))
@pytest.mark.parametrize("n", [3, 7, 10])
def test_on_a_gaussian_ancestral_with_the_analytic_sigma_gives_q(name, n):
    m, v, s = -0.3, 0.25, schedule(name, 10)
    start = ancestral(n).times(10)[0]
    a, b2 = s.alpha_bar(torch.tensor([start])).item() ** 0.5, s.noise_var(torch.tensor([start])).item()
    noise = s.noise_var(torch.arange(11))
    power = noise / (s.alpha_bar(torch.arange(11)) * v + noise)  # E eps_theta^2 on N(m, v)
    sigma = Analytic(num_images=1, batch_size=1, cache="", eps_power=power)
    for time, mean, var in moments(ancestral(n), gaussian(s, m, v, sigma), a * m, a * a * v + b2):
        alpha_bar = s.alpha_bar(torch.tensor([time])).item()
        assert mean == pytest.approx(alpha_bar**0.5 * m, abs=1e-10)
        assert time == 0 or var == pytest.approx(alpha_bar * v + 1 - alpha_bar, abs=1e-10)


def test_the_analytic_sigma_lies_between_the_bounds_whatever_the_noise_of_its_estimate():
    s = schedule_1000()
    power = torch.rand(1001, generator=torch.Generator().manual_seed(0)) * 1.5
    sigma = Analytic(num_images=1, batch_size=1, cache="", eps_power=power)
    for stride in (1, 50, 500):
        t = torch.arange(stride, 1001, stride)
        variance, (of_x_0, _) = sigma.log_var(s, t, t - stride, None).exp(), posterior_coefficients(s, t, t - stride)
        assert (variance <= (s.beta_tilde(t, t - stride) + of_x_0**2) * (1 + 1e-9)).all()
        assert (variance >= s.log_beta_tilde(t, t - stride).exp() * (1 - 1e-9)).all()


def test_the_analytic_sigma_is_estimated_from_what_the_network_says():
    torch.manual_seed(0)
    s, v = schedule("linear", 10), 0.25
    x_0, noise = 0.5 * torch.randn(20_000, 1), torch.randn(11, 20_000, 1)
    noise_var = s.noise_var(torch.arange(11))
    exact = noise_var / (s.alpha_bar(torch.arange(11)) * v + noise_var)
    assert torch.allclose(eps_power(gaussian(s, 0.0, v), x_0, lambda t: noise[t])[1:], exact[1:], atol=0.05)


@pytest.mark.parametrize("clip", [0.5, 0.9])
def test_dynamic_thresholding_rescales_what_is_too_large_and_nothing_else(clip):
    x = torch.randn(4, 3, 8, 8) * torch.tensor([0.05, 1, 3, 30]).reshape(4, 1, 1, 1)
    out = clipped(x, clip)
    assert out.abs().max() <= 1
    assert torch.equal(out[0], x[0])
    for image, before in zip(out[2:], x[2:], strict=True):
        r = np.quantile(before.abs().numpy(), clip)
        assert np.allclose(image.numpy(), np.clip(before.numpy() / r, -1, 1), atol=1e-5)
    d = gaussian(schedule("linear", 10), 2.0, 4.0, BetaTilde())
    start = 3 * torch.randn(2, 64)
    assert Ancestral(num_steps=5, spacing="trailing", clip=clip)(d, start, lambda s: start * 0).abs().max() <= 1


@pytest.mark.parametrize(
    ("sampler", "sigma", "var"),
    [  # known values for x_0 ~ N(0, 1), linear, T = 1000
        (ancestral(20), Beta(), 0.971),
        (ancestral(20), BetaTilde(), 0.711),
        (ddim(20, 0.0), Beta(), 0.830),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                (ancestral(None), Beta(), 0.9999),
                (ancestral(None), BetaTilde(), 0.9911),
                (ddim(None, 0.0), Beta(), 0.9963),
            )
        ),
    ],
)
def test_known_variances_of_unit_noise(sampler, sigma, var):
    *before, (_, _, got) = moments(sampler, gaussian(schedule_1000(), 0.0, 1.0, sigma), 0.0, 1.0)
    assert got == pytest.approx(var, abs=5e-4 if sampler.num_steps else 5e-5)
    if sampler.num_steps and isinstance(sigma, Beta) and not sampler.has_own_sigma:
        assert [round(v, 3) for time, _, v in before if time == 50] == [1.0]


@pytest.mark.parametrize(
    ("sampler", "sigma", "var"),
    [  # and for one point, at s = 50, where .02898 is right
        (ancestral(20), Beta(), 0.0897),
        (ancestral(20), BetaTilde(), 0.02898),
        (ddim(20, 0.0), Beta(), 0.02898),
        (ddim(20, 0.5), Beta(), 0.02898),
        (ddim(20, 1.0), Beta(), 0.02898),
    ],
)
def test_known_variances_on_the_way_to_a_point(sampler, sigma, var):
    s = schedule_1000()
    start = exactly(s, 0.0, 1000)
    (got,) = (v for time, _, v in moments(sampler, point(s, 0.0, sigma), *start) if time == 50)
    assert got == pytest.approx(var, abs=5e-5 if var > 0.05 else 5e-6)


def schedule_1000():
    from ddpm.schedule import NoiseSchedule

    return NoiseSchedule(make(node("schedule", "linear"), "schedule"))


@pytest.mark.parametrize("clip", [False, True, 0.5, 0.9])
@pytest.mark.parametrize(("t", "s"), [(10, 9), (10, 4), (3, 1), (2, 0)])
def test_ddim_with_eta_one_is_ancestral_with_beta_tilde(clip, t, s):
    d = gaussian(schedule("linear", 10), 0.5, 4.0, BetaTilde())
    x, eps = torch.randn(2, 64, 3, dtype=torch.float64)
    args = (d, 2 * x, times(t, x), times(s, x), eps)
    ours, theirs = ancestral(5, clip=clip).step(*args), ddim(5, 1.0, clip=clip).step(*args)
    for one_, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one_, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", names("sampler"))
@pytest.mark.parametrize("prediction", names("prediction"))
def test_every_sampler_walks_every_prediction_to_the_point(name, prediction):
    s = schedule("linear", 10)
    sampler = make(node("sampler", name, num_steps=4), "sampler")
    d = point(s, 0.25, prediction=one("prediction", prediction))
    noise = torch.randn(11, 2, 3)
    assert torch.allclose(sampler(d, noise[10], lambda time: noise[time]), torch.full((2, 3), 0.25), atol=1e-4)


@pytest.mark.parametrize(("spacing", "n"), product(SPACINGS, [2, 7, 20, 50, 333, 1000]))
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
