import numpy as np
import papers
import pytest
import torch
from yamls import names, node, one, schedule, sigma_of

from ddpm.errors import Refused
from ddpm.instantiate import make
from ddpm.schedule import NoiseSchedule
from ddpm.sigma import Beta, BetaTilde, Interpolated, LearnedRange

SCHEDULES = names("schedule")


def all_times(s):
    t = torch.arange(1, s.num_steps + 1).reshape(-1, 1)
    return t, t - 1


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sigma", [Beta(), BetaTilde(), Interpolated(fraction=0.3)])
def test_fixed_sigmas_lie_between_beta_tilde_and_beta(sigma, name):
    s = schedule(name)
    t, before = all_times(s)
    log_var = sigma.log_var(s, t, before, None)
    assert (log_var >= s.log_beta_tilde(t, before) - 1e-12).all()
    assert (log_var[1:] <= s.beta(t, before)[1:].log() + 1e-12).all()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sigma", papers.SIGMAS)
def test_log_variances_are_the_papers_from_the_first_entry_on(sigma, name):
    """At t = 1 fixedlarge and fixedsmall of Ho et al.'s code both have beta_tilde_2, and so has the lower end of
    Nichol & Dhariwal's range, whose upper end is beta_1."""
    betas = make(node("schedule", name, num_steps=50), "schedule")
    table, s = papers.tables(betas.numpy()), NoiseSchedule(betas)
    t, before = all_times(s)
    v = torch.linspace(-1, 1, 3, dtype=torch.float64).expand(s.num_steps, 3)
    got = sigma_of(sigma, s.num_steps).log_var(s, t, before, v).expand_as(v).numpy()
    for time, row in enumerate(got, start=1):
        np.testing.assert_allclose(row, papers.log_variance(sigma, table, time, v[0].numpy()), rtol=1e-12, atol=1e-12)
    if sigma not in ("learned", "analytic"):
        assert np.exp(got[0, 0]) == pytest.approx(table["beta_tilde"][1], rel=1e-12)
    if sigma == "learned_range":
        assert np.exp(got[0, 2]) == pytest.approx(table["beta"][0], rel=1e-12)


def test_learned_range_spans_from_beta_tilde_to_beta():
    s = schedule("linear")
    t, before = all_times(s)
    v = torch.ones(s.num_steps, 3, dtype=torch.float64)
    large, small = (LearnedRange().log_var(s, t, before, sign * v) for sign in (1, -1))
    assert torch.allclose(large, s.beta(t, before).log().expand_as(v))
    assert torch.allclose(small, s.log_beta_tilde(t, before).expand_as(v))


@pytest.mark.parametrize("name", [n for n in names("sigma") if n.startswith("learned")])
def test_a_learned_sigma_wants_a_second_output(name):
    s = schedule("linear")
    t, before = all_times(s)
    with pytest.raises(Refused, match="second output"):
        one("sigma", name).log_var(s, t, before, None)


def test_a_fraction_outside_the_unit_interval_is_refused():
    with pytest.raises(Refused, match="fraction"):
        Interpolated(fraction=1.5)
