from itertools import product

import pytest
import torch
from torch import nn
from yamls import names, node, one, schedule

from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import Refused
from ddpm.instantiate import make
from ddpm.likelihood import term
from ddpm.objective import P2, Bound, Hybrid, MinSNR, Simple, TruncatedSNR, Weighted
from ddpm.prediction import Epsilon
from ddpm.schedule import NoiseSchedule, zero_terminal_snr
from ddpm.sigma import Beta, Learned, LearnedRange
from ddpm.types import times

PREDICTIONS = names("prediction")
WEIGHTED = [name for name in names("objective") if isinstance(one("objective", name), Weighted)]
EXACTLY = {"rtol": 1e-10, "atol": 0.0}


class Affine(nn.Module):
    """A network with a mean head and a variance head that can be told apart; it keeps what it saw."""

    def __init__(self, learned: bool):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.v = nn.Parameter(torch.tensor(0.1, dtype=torch.float64)) if learned else None

    def forward(self, x, time):
        self.saw = x
        mean = self.mean * x
        return mean if self.v is None else torch.cat((mean, self.v.expand_as(x)), dim=1)


class Blind(Affine):
    """The same, of an image that is always the same."""

    def forward(self, x, time):
        return super().forward(torch.full_like(x, 0.7), time)


def setting(prediction=None, sigma=None, s=None, network=Affine):
    """A diffusion, and an image for each of its times."""
    s, sigma = s or schedule("linear", 10), sigma or Beta()
    d = GaussianDiffusion(network(sigma.learned), s, sigma, prediction or Epsilon(), 256)
    g = torch.Generator().manual_seed(0)
    x_0 = torch.randint(0, 256, (s.num_steps, 2, 3), generator=g).double() / 127.5 - 1
    eps = torch.randn(x_0.shape, generator=g, dtype=torch.float64)
    return d, x_0, times(torch.arange(1, s.num_steps + 1), x_0), eps


def x_t_of(d, x_0, t, eps):
    return d.q(x_0, t, t * 0).sample(eps)


def mean(x):
    return x.mean((1, 2))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_l_simple_is_the_mean_over_dimensions_of_the_squared_error(prediction):
    d, x_0, t, eps = setting(one("prediction", prediction))
    x_t, a, b = x_t_of(d, x_0, t, eps), d.schedule.alpha_bar(t).sqrt(), d.schedule.noise_var(t).sqrt()
    papers = {"epsilon": eps, "x0": x_0, "velocity": a * eps - b * x_0, "mean": d.posterior(x_0, x_t, t, t - 1).mean}
    assert torch.allclose(Simple()(d, x_0, t, eps), mean((papers[prediction] - 0.3 * x_t).square()), **EXACTLY)


# Weights on the error of x_0


def schedules(T=None):
    """Of every kind, and each again with nothing of x_0 left at the end."""
    for name in names("schedule"):
        betas = make(node("schedule", name, **({"num_steps": T} if T else {})), "schedule")
        yield NoiseSchedule(betas)
        yield NoiseSchedule(zero_terminal_snr(betas))


def legal(prediction, s):
    """What build.py does not refuse."""
    return not prediction.needs_signal or s.alpha_bar(torch.tensor([s.num_steps])) > 0


@pytest.mark.parametrize(("name", "prediction"), product(WEIGHTED, PREDICTIONS))
def test_a_weight_is_that_of_the_error_of_x_0_whatever_is_predicted(name, prediction):
    objective, prediction = one("objective", name), one("prediction", prediction)
    for s in schedules(12):
        if legal(prediction, s):
            d, x_0, t, eps = setting(prediction, s=s)
            x_t = x_t_of(d, x_0, t, eps)
            error = mean((x_0 - d.x_0(d(x_t, t), x_t, t, clip=False)).square())
            assert torch.allclose(objective(d, x_0, t, eps), objective.weight(s, t).flatten() * error, **EXACTLY)


@pytest.mark.parametrize(("name", "prediction"), product(WEIGHTED, PREDICTIONS))
def test_weights_are_finite_in_float32_wherever_the_pair_is_legal(name, prediction):
    objective, prediction = one("objective", name), one("prediction", prediction)
    for s in filter(lambda s: legal(prediction, s), schedules()):
        d = GaussianDiffusion(nn.Identity(), s, Beta(), prediction, 256)
        weights = objective.carried(d, torch.arange(1, s.num_steps + 1)).float()
        assert weights.isfinite().all()
        assert (weights[:-1] > 0).all()


def test_min_snr_is_the_papers_for_each_of_its_predictions():
    """Hang et al. (2023), Sec. 3.4: min(SNR, gamma) on x_0, over SNR on eps, over SNR + 1 on the velocity."""
    s, t = schedule("linear", 10), torch.arange(1, 11)
    snr = s.alpha_bar(t) / (1 - s.alpha_bar(t))
    papers = {"x0": snr.clamp(max=5), "epsilon": (5 / snr).clamp(max=1), "velocity": snr.clamp(max=5) / (snr + 1)}
    for prediction, weight in papers.items():
        d, *_ = setting(one("prediction", prediction), s=s)
        assert torch.allclose(one("objective", "min_snr").carried(d, t), weight, **EXACTLY)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_p2_is_the_papers_weight_of_the_error_of_eps(gamma):
    """Choi et al. (2022): 1/(k + SNR)^gamma; with gamma = 0 nothing is left of it but L_simple."""
    d, x_0, t, eps = setting()
    error = mean((eps - 0.3 * x_t_of(d, x_0, t, eps)).square())
    ab = d.schedule.alpha_bar(t).flatten()
    for k in (1.0, 0.25):
        papers = error / (k + ab / (1 - ab)) ** gamma
        assert torch.allclose(P2(k=k, gamma=gamma)(d, x_0, t, eps), papers, **EXACTLY)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_truncated_snr_is_the_larger_of_the_errors_of_x_0_and_eps(prediction):
    """Salimans & Ho (2022), Sec. 4."""
    d, x_0, t, eps = setting(one("prediction", prediction))
    x_t = x_t_of(d, x_0, t, eps)
    x_0_hat = d.x_0(d(x_t, t), x_t, t, clip=False)
    eps_hat = (x_t - d.schedule.alpha_bar(t).sqrt() * x_0_hat) / d.schedule.noise_var(t).sqrt()
    larger = torch.maximum(mean((x_0 - x_0_hat).square()), mean((eps - eps_hat).square()))
    assert torch.allclose(one("objective", "truncated_snr")(d, x_0, t, eps), larger, **EXACTLY)


@pytest.mark.parametrize(
    ("objective", "values"),
    [(MinSNR, {"gamma": 0.0}), (P2, {"k": 0.0, "gamma": 1.0}), (P2, {"k": 1.0, "gamma": -1.0}),
     (TruncatedSNR, {"floor": -1.0}), (Hybrid, {"bound_weight": 0.0})],
)  # fmt: skip
def test_numbers_that_make_no_loss_are_refused(objective, values):
    with pytest.raises(Refused, match="objective"):
        objective(**values)


# The bound


@pytest.mark.parametrize(("prediction", "sigma"), product(PREDICTIONS, [Beta(), Learned(), LearnedRange()]))
def test_l_vlb_is_the_papers_term_or_exactly_T_times_it(prediction, sigma):
    d, x_0, t, eps = setting(one("prediction", prediction), sigma)
    x_t = x_t_of(d, x_0, t, eps)
    expected = term(d, d(x_t, t), x_0, x_t, t, clip=False)
    assert torch.equal(Bound(times_num_steps=False)(d, x_0, t, eps), expected)
    assert torch.equal(Bound(times_num_steps=True)(d, x_0, t, eps), 10 * expected)


@pytest.mark.parametrize(("prediction", "sigma"), product(PREDICTIONS, [Learned(), LearnedRange()]))
def test_l_hybrid_of_each_image_is_l_simple_and_a_thousandth_of_T_terms(prediction, sigma):
    d, x_0, t, eps = setting(one("prediction", prediction), sigma)
    simple, terms = Simple()(d, x_0, t, eps), Bound(times_num_steps=False)(d, x_0, t, eps)
    assert torch.allclose(one("objective", "hybrid")(d, x_0, t, eps), simple + 0.001 * 10 * terms, **EXACTLY)


def gradients(objective, prediction, sigma):
    """Of the mean head and of the variance head."""
    d, x_0, t, eps = setting(prediction, sigma)
    objective(d, x_0, t, eps).mean().backward()
    return d.network.mean.grad, d.network.v.grad


@pytest.mark.parametrize(("prediction", "sigma"), product(PREDICTIONS, [Learned(), LearnedRange()]))
def test_in_hybrid_the_bound_trains_v_alone_and_simple_the_mean_alone(prediction, sigma):
    at = (one("prediction", prediction), sigma)
    hybrid_mean, hybrid_v = gradients(one("objective", "hybrid"), *at)
    simple_mean, simple_v = gradients(Simple(), *at)
    bound_mean, bound_v = gradients(Bound(times_num_steps=True), *at)
    assert simple_v == 0
    assert bound_mean != 0
    assert bound_v != 0
    assert torch.equal(hybrid_mean, simple_mean)
    assert torch.allclose(hybrid_v, 0.001 * bound_v, **EXACTLY)


@pytest.mark.parametrize("name", names("objective"))
def test_every_yaml_says_truly_whether_it_trains_sigma(name):
    objective = one("objective", name)
    mean_grad, v_grad = gradients(objective, Epsilon(), LearnedRange())
    assert (v_grad != 0) == objective.trains_sigma
    assert mean_grad != 0


# Input perturbation


def test_the_network_sees_the_extra_noise_and_without_any_the_same_bits():
    """x_t = a x_0 + b (eps + gamma xi): affine, so that three points give the variance, b^2 (1 + gamma^2)."""
    d, x_0, t, eps = setting()
    Simple()(d, x_0, t, eps)
    assert torch.equal(d.network.saw, x_t_of(d, x_0, t, eps))
    zero, gamma = torch.zeros_like(x_0), 0.1
    seen = {}
    for name, (noise, xi) in {"at_0": (zero, zero), "of_eps": (zero + 1, zero), "of_xi": (zero, zero + 1)}.items():
        Simple()(d, x_0, t, noise, gamma * xi)
        seen[name] = d.network.saw
    slopes = [seen[name] - seen["at_0"] for name in ("of_eps", "of_xi")]
    assert torch.allclose(seen["at_0"], d.schedule.alpha_bar(t).sqrt() * x_0, **EXACTLY)
    variance = d.schedule.noise_var(t).expand_as(x_0) * (1 + gamma**2)
    assert torch.allclose(slopes[0].square() + slopes[1].square(), variance)


@pytest.mark.parametrize(("name", "prediction"), product(names("objective"), PREDICTIONS))
def test_a_network_that_does_not_look_has_the_same_loss_under_extra_noise(name, prediction):
    """Target, estimate of x_0 and bound are those of eps."""
    d, x_0, t, eps = setting(one("prediction", prediction), LearnedRange(), network=Blind)
    objective, extra = one("objective", name), 0.1 * torch.randn_like(x_0)
    assert torch.equal(objective(d, x_0, t, eps, extra), objective(d, x_0, t, eps))
