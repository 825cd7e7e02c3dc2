import math
from itertools import product

import numpy as np
import papers
import pytest
import torch
from exact import gaussian, moments, point
from yamls import names, node, one, schedule

from ddpm.diffusion import GaussianDiffusion, Output
from ddpm.errors import Refused
from ddpm.instantiate import make
from ddpm.likelihood import bound
from ddpm.prediction import Epsilon, posterior_coefficients
from ddpm.sampler import DDIM, Ancestral, Heun
from ddpm.schedule import NoiseSchedule, linear, zero_terminal_snr
from ddpm.sigma import BetaTilde
from ddpm.types import times

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def t_of(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def of_paper(name: str, T: int, **changes) -> NoiseSchedule:
    return NoiseSchedule(make(node("schedule", name, num_steps=T, **changes), "schedule"))


def ours(s: NoiseSchedule) -> dict[str, torch.Tensor]:
    """Every table of tests/papers.py, as our code computes it."""
    t = torch.arange(1, s.num_steps + 1)
    of_x_0, of_x_t = posterior_coefficients(s, t, t - 1)
    return {
        "beta": s.beta(t, t - 1),
        "alpha_bar": s.alpha_bar(t),
        "noise_var": s.noise_var(t),
        "beta_tilde": s.beta_tilde(t, t - 1),
        "snr": s.snr(t),
        "of_x_0": of_x_0,
        "of_x_t": of_x_t,
        "inverse_root": 1 / s.alpha_bar(t).sqrt(),
    }


@pytest.mark.parametrize("T", [1000, 4000])
@pytest.mark.parametrize("name", papers.SCHEDULES)
def test_tables_are_the_papers(name, T):
    expected = papers.tables(papers.betas(name, T))
    for device in DEVICES:
        for key, table in ours(of_paper(name, T).to(device)).items():
            np.testing.assert_allclose(table.cpu(), expected[key], rtol=1e-12, err_msg=key)


def as_read(d: GaussianDiffusion, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tables as they act on float32 images, which is all that training and sampling see of them."""
    t = times(torch.arange(1, d.num_steps + 1), x)
    zero, s = torch.zeros_like(x), t - 1
    return {
        "beta": d.q(zero, t, s).sample(x).square(),
        "alpha_bar": d.q(x, t, t * 0).mean.square(),
        "noise_var": d.q(zero, t, t * 0).sample(x).square(),
        "beta_tilde": d.posterior(zero, zero, t, s).sample(x).square(),
        "snr": d.schedule.snr(t).to(x),
        "of_x_0": d.posterior(x, zero, t, s).mean,
        "of_x_t": d.posterior(zero, x, t, s).mean,
        "inverse_root": d.x_0(Output(zero, None), x, t, clip=False),
    }


@pytest.mark.parametrize("T", [1000, 4000])
@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
@pytest.mark.parametrize("name", papers.SCHEDULES)
def test_the_model_reads_the_papers_tables_in_float32_after_any_cast(name, cast, T):
    expected = papers.tables(papers.betas(name, T))
    for device in DEVICES:
        d = GaussianDiffusion(torch.nn.Linear(1, 1), of_paper(name, T), BetaTilde(), Epsilon(), 256)
        read = as_read(getattr(d, cast)().to(device), torch.ones(T, 1, device=device))
        for key, table in read.items():
            assert table.dtype == torch.float32
            # a difference of log-variances is 5e-7, and squares double it; beta_tilde_1 = 0 has a stand-in; the
            # last 1/sqrt(alpha_bar) may be infinite
            kept = slice(1 if key == "beta_tilde" else 0, None if np.isfinite(expected[key][-1]) else -1)
            np.testing.assert_allclose(table.flatten().cpu()[kept], expected[key][kept], rtol=1e-6, err_msg=key)


GOLDEN = {  # beta_1, beta_T, alpha_bar_1, alpha_bar_T, beta_tilde_2, beta_tilde_T, 1/sqrt(alpha_bar_T)
    ("linear", 1000): (1e-4, 0.02, 0.9999, 4.035829765e-05, 5.453187661e-05, 0.01999998353, 157.41),
    ("quadratic", 1000): (1e-4, 0.02, 0.9999, 7.334124596e-04, 5.065600427e-05, 0.01999970043, 36.9255),
    ("constant", 1000): (0.02, 0.02, 0.98, 1.682967357e-09, 1.010101010e-02, 0.02, 24376),
    ("warmup10", 1000): (1e-4, 0.02, 0.9999, 4.613686682e-09, 7.506860716e-05, 0.02, 14722.3),
    ("warmup50", 1000): (1e-4, 0.02, 0.9999, 2.606135134e-07, 5.831584833e-05, 0.01999999989, 1958.85),
    ("jsd", 1000): (0.001, 1.0, 0.999, 0.0, None, None, math.inf),
    ("linear", 4000): (2.5e-5, 0.005, 0.999975, 4.246652276e-05, 1.280362861e-05, 0.004999998933, 153.453),
    ("cosine", 1000): (4.128422482e-05, 0.999, 0.9999587158, 2.428766907e-09, 2.178949615e-05, 0.9989975761, 20291.2),
    ("cosine", 4000): (9.865818814e-06, 0.999, 0.9999901342, 1.517980469e-10, 5.007683395e-06, 0.9989998485, 81164.6),
}


@pytest.mark.parametrize(("name", "T"), GOLDEN)
def test_golden_values(name, T):
    """To the last digit that is given: ten, and for 1/sqrt(alpha_bar_T) five or six."""
    table = {key: value.tolist() for key, value in ours(of_paper(name, T, rescale=True)).items()}
    beta, alpha_bar, beta_tilde = table["beta"], table["alpha_bar"], table["beta_tilde"]
    got = (beta[0], beta[-1], alpha_bar[0], alpha_bar[-1], beta_tilde[1], beta_tilde[-1])
    for value, golden in zip(got, GOLDEN[name, T], strict=False):
        assert golden is None or value == pytest.approx(golden, rel=6e-10, abs=0)
    assert table["inverse_root"][-1] == pytest.approx(GOLDEN[name, T][-1], rel=3e-5)


def test_golden_values_on_the_way():
    linear, cosine = (ours(of_paper(name, 1000)) for name in ("linear", "cosine"))
    assert linear["alpha_bar"][500].item() == pytest.approx(0.0777967, abs=5e-8)  # at t = 501
    assert cosine["alpha_bar"][500].item() == pytest.approx(0.4922852, abs=5e-8)
    np.testing.assert_allclose(cosine["beta"][-4:], [0.437497, 0.555554, 0.749999, 0.999], atol=5e-7)
    for T in (1000, 4000):
        assert (of_paper("cosine", T).beta(t_of(T - 1), t_of(T - 2)) < 0.999).all()  # one step is capped, no more


@pytest.mark.parametrize("name", names("schedule"))
def test_variance_is_preserved_between_any_two_times(name):
    s = schedule(name, 12)
    for t in range(1, s.num_steps + 1):
        for r in range(t):
            through = s.alpha(t_of(t), t_of(r)) * s.noise_var(t_of(r)) + s.beta(t_of(t), t_of(r))
            assert torch.allclose(through, s.noise_var(t_of(t)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", names("schedule"))
def test_time_zero_is_clean_and_every_factor_is_finite(name):
    s = schedule(name)
    t = torch.arange(1, s.num_steps + 1)
    assert s.alpha_bar(t_of(0)) == 1
    assert s.noise_var(t_of(0)) == 0
    for factor in (
        s.alpha(t, t - 1),
        s.beta(t, t - 1),
        s.beta_tilde(t, t - 1),
        s.log_beta_tilde(t, t - 1),
        s.snr(t),
    ):
        assert torch.isfinite(factor).all()
    assert s.log_beta_tilde(t_of(1), t_of(0)) == s.beta_tilde(t_of(2), t_of(1)).log()


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
def test_no_cast_touches_the_table(cast):
    s = schedule("linear", 1000)
    table = s.log_alpha_bar.clone()
    holder = torch.nn.ModuleList([s, torch.nn.Linear(1, 1)])
    getattr(holder, cast)()
    assert s.log_alpha_bar.dtype == torch.float64
    assert torch.equal(s.log_alpha_bar, table)
    assert not s.state_dict()


def test_times_have_the_dimensions_of_the_images():
    x = torch.zeros(3, 2, 4, 4)
    assert times(5, x).shape == (3, 1, 1, 1)
    assert times(t_of(1, 2, 3), x).flatten().tolist() == [1, 2, 3]


@pytest.mark.parametrize("betas", [[0.1], [0.1, -0.1], [1.0, 0.5], [0.1, 1.1], [0.1, float("nan")], [0.0, 0.1]])
def test_impossible_betas_are_refused(betas):
    with pytest.raises(Refused):
        NoiseSchedule(torch.tensor(betas))


@pytest.mark.parametrize(("name", "change"), [("quadratic", {"beta_1": -1e-4}), ("cosine", {"offset": -1.0})])
def test_numbers_that_have_no_root_or_no_angle_are_refused_by_name(name, change):
    (key,) = change
    with pytest.raises(Refused, match=rf"schedule\.{key}"):
        make(node("schedule", name, **change), "schedule")


def test_too_few_steps_are_refused():
    with pytest.raises(Refused, match="at least 2"):
        linear(num_steps=1, beta_1=1e-4, beta_T=0.02, rescale=False)


@pytest.mark.parametrize("T", [20, 1000])
@pytest.mark.parametrize("name", names("schedule"))
def test_zero_terminal_snr_is_the_papers_rescaling(name, T):
    """Lin et al. (2024), Algorithm 1, in numpy; the last alpha_bar is 0, the first one as before, and what
    ends at 0 already stays."""
    betas = make(node("schedule", name, num_steps=T), "schedule")
    rescaled = zero_terminal_snr(betas)
    s, t = NoiseSchedule(rescaled), torch.arange(1, len(betas) + 1)
    root = np.sqrt(np.cumprod(1 - betas.numpy()))
    papers = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    np.testing.assert_allclose(s.alpha_bar(t), papers, rtol=1e-10)
    assert s.alpha_bar(t)[-1] == 0
    assert s.snr(t)[-1] == 0
    assert rescaled[0] == betas[0]
    assert torch.allclose(zero_terminal_snr(rescaled), rescaled, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", names("schedule"))
def test_from_zero_terminal_snr_every_factor_of_any_step_is_finite(name):
    s = NoiseSchedule(zero_terminal_snr(make(node("schedule", name), "schedule")))
    T = torch.full((s.num_steps,), s.num_steps)
    for t, r in ((T, torch.arange(s.num_steps)), (torch.arange(1, s.num_steps + 1), torch.arange(s.num_steps))):
        fixed = [one("sigma", sigma).log_var(s, t, r, None) for sigma in ("beta", "beta_tilde", "interpolated")]
        factors = [s.alpha(t, r), s.beta(t, r), s.beta_tilde(t, r), s.log_beta_tilde(t, r), s.snr(t), s.noise_var(t)]
        for factor in (*fixed, *factors, *posterior_coefficients(s, t, r)):
            assert factor.isfinite().all()


@pytest.mark.parametrize("betas", [[0.1], [0.1, -0.1], [1.0, 0.5], [0.1, 1.1]])
def test_what_are_no_betas_are_not_rescaled(betas):
    with pytest.raises(Refused):
        zero_terminal_snr(torch.tensor(betas))


NOISELESS = sorted(set(names("prediction")) - {"epsilon"})  # which is refused


@pytest.mark.parametrize(("name", "prediction"), product(["linear", "cosine", "jsd"], NOISELESS))
@pytest.mark.parametrize("n", [3, 10])
def test_from_zero_terminal_snr_samplers_start_at_q_itself(name, prediction, n):
    """N(0, I) is q(x_T | x_0), so that on a point every step gives q from pure noise on."""
    s = NoiseSchedule(zero_terminal_snr(make(node("schedule", name, num_steps=10), "schedule")))
    d = point(s, 0.4, BetaTilde(), one("prediction", prediction))
    ways = {"num_steps": n, "spacing": "trailing", "clip": False}
    for sampler in (Ancestral(**ways), DDIM(**ways, eta=0.0), DDIM(**ways, eta=1.0), Heun(**ways)):
        for time, mean, var in moments(sampler, d, 0.0, 1.0):
            assert mean == pytest.approx(0.4 * s.alpha_bar(t_of(time)).sqrt().item(), abs=1e-10)
            assert var == pytest.approx(s.noise_var(t_of(time)).item(), abs=1e-10)


@pytest.mark.parametrize(("name", "prediction"), product(["linear", "cosine", "jsd"], NOISELESS))
@pytest.mark.parametrize("sigma", ["beta", "beta_tilde", "interpolated"])
def test_from_zero_terminal_snr_the_bound_is_finite_and_needs_no_prior(name, prediction, sigma):
    s = NoiseSchedule(zero_terminal_snr(make(node("schedule", name, num_steps=10), "schedule")))
    d = gaussian(s, 0.2, 0.25, one("sigma", sigma), one("prediction", prediction))
    x_0 = torch.linspace(-1, 1, 256, dtype=torch.float64).reshape(4, -1)
    noise = torch.randn(11, *x_0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    terms = bound(d, x_0, lambda t: noise[t])
    assert terms.prior.tolist() == [0] * 4
    assert terms.total.isfinite().all()
    assert (terms.kl[1:] >= 0).all()
