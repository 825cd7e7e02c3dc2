import numpy as np
import pytest
import torch
from yamls import names, node, schedule

from ddpm.errors import Refused
from ddpm.instantiate import make
from ddpm.schedule import NoiseSchedule, cosine, linear, quadratic
from ddpm.types import times


def t_of(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def papers(name: str, T: int) -> np.ndarray:
    """The papers' betas, in numpy float64, as their text has them."""
    lo, hi, steps = 1e-4, 0.02, np.arange(1, T + 1)
    if name == "cosine":
        f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], 0.999)
    ramp = (steps - 1) / (T - 1)
    warm = {"warmup10": int(0.1 * T), "warmup50": int(0.5 * T)}.get(name, T)
    return {
        "linear": lo + (hi - lo) * ramp,
        "quadratic": (lo**0.5 + (hi**0.5 - lo**0.5) * ramp) ** 2,
        "constant": np.full(T, hi),
        "warmup10": np.where(steps <= warm, lo + (hi - lo) * (steps - 1) / (warm - 1), hi),
        "warmup50": np.where(steps <= warm, lo + (hi - lo) * (steps - 1) / (warm - 1), hi),
        "jsd": 1.0 / (T - steps + 1),
        "sigmoid": lo + (hi - lo) / (1 + np.exp(-(-6 + 12 * ramp))),
    }[name]


@pytest.mark.parametrize("T", [1000, 4000])
@pytest.mark.parametrize("name", sorted(set(names("schedule")) - {"custom"}))
def test_tables_are_the_papers(name, T):
    betas = papers(name, T)
    ours = NoiseSchedule(make(node("schedule", name, num_steps=T), "schedule"))
    t = torch.arange(1, T + 1)
    alpha_bar = np.cumprod(1 - betas)
    before = np.concatenate(([1.0], alpha_bar[:-1]))
    np.testing.assert_allclose(ours.beta(t, t - 1), betas, rtol=1e-10)
    np.testing.assert_allclose(ours.alpha_bar(t), alpha_bar, rtol=1e-10)
    np.testing.assert_allclose(ours.noise_var(t), 1 - alpha_bar, rtol=1e-10)
    np.testing.assert_allclose(ours.beta_tilde(t, t - 1), betas * (1 - before) / (1 - alpha_bar), rtol=1e-9)


@pytest.mark.parametrize(
    ("betas", "golden"),
    [
        (
            linear(num_steps=1000, beta_1=1e-4, beta_T=0.02, rescale=False),
            (4.035829765e-05, 5.453187661e-05, 0.01999998353),
        ),
        (
            quadratic(num_steps=1000, beta_1=1e-4, beta_T=0.02),
            (7.334124596e-04, 5.065600427e-05, 0.01999970043),
        ),
        (
            linear(num_steps=4000, beta_1=1e-4, beta_T=0.02, rescale=True),
            (4.246652276e-05, 1.280362861e-05, 0.004999998933),
        ),
        (
            cosine(num_steps=1000, offset=0.008, beta_max=0.999),
            (2.428766907e-09, 2.178949615e-05, 0.9989975761),
        ),
    ],
)
def test_golden_values(betas, golden):
    s, T = NoiseSchedule(betas), len(betas)
    got = (s.alpha_bar(t_of(T)), s.beta_tilde(t_of(2), t_of(1)), s.beta_tilde(t_of(T), t_of(T - 1)))
    np.testing.assert_allclose(torch.cat(got), golden, rtol=1e-8)


@pytest.mark.parametrize("name", names("schedule"))
def test_variance_is_preserved_between_any_two_times(name):
    s = schedule(name, 12)
    for t in range(1, s.num_steps + 1):
        for r in range(t):
            through = s.alpha(t_of(t), t_of(r)) * s.noise_var(t_of(r)) + s.beta(t_of(t), t_of(r))
            assert torch.allclose(through, s.noise_var(t_of(t)), rtol=1e-12)


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


def test_too_few_steps_are_refused():
    with pytest.raises(Refused, match="at least 2"):
        linear(num_steps=1, beta_1=1e-4, beta_T=0.02, rescale=False)
