import pytest
import torch
from yamls import names, one, schedule

from ddpm.errors import Refused
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


@pytest.mark.parametrize("sigma", [Beta(), BetaTilde(), Interpolated(fraction=0.7)])
def test_the_first_entry_is_the_authors(sigma):
    """fixedlarge and fixedsmall of Ho et al.'s code both begin with beta_tilde_2."""
    s = schedule("linear", 1000)
    one_, zero = torch.tensor([[1]]), torch.tensor([[0]])
    assert sigma.log_var(s, one_, zero, None).exp().item() == pytest.approx(s.beta_tilde(one_ + 1, one_).item())


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
