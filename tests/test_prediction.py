import pytest
import torch
from yamls import names, one, schedule

from ddpm.types import times

PAIRS = [
    (prediction, name)
    for prediction in names("prediction")
    for name in names("schedule")
    if not (prediction == "epsilon" and name == "jsd")  # refused when built
]


def drawn(s):
    g = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, s.num_steps, 3, generator=g, dtype=torch.float64)
    t = times(torch.arange(1, s.num_steps + 1), x_0)
    return x_0, eps, t, s.alpha_bar(t).sqrt() * x_0 + s.noise_var(t).sqrt() * eps


@pytest.mark.parametrize(("prediction", "name"), PAIRS)
def test_the_target_is_a_bijection_with_x_0(prediction, name):
    s, p = schedule(name), one("prediction", prediction)
    x_0, eps, t, x_t = drawn(s)
    back = p.x_0(s, p.target(s, x_0, eps, t), x_t, t)
    assert torch.allclose(back, x_0, atol=1e-6)


@pytest.mark.parametrize(("prediction", "name"), PAIRS)
def test_the_squared_slope_carries_errors_of_x_0_to_errors_of_the_output(prediction, name):
    s, p = schedule(name), one("prediction", prediction)
    x_0, eps, t, x_t = drawn(s)
    output = p.target(s, x_0, eps, t)
    wrong = output + 0.1
    error = (p.x_0(s, wrong, x_t, t) - p.x_0(s, output, x_t, t)).square()
    assert torch.allclose(p.squared_slope(s, t) * error, torch.full_like(error, 0.01), rtol=1e-5)
