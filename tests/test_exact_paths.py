"""Other ways to compute the same numbers: bf16 autocast and torch.compile change no bit of any table, and the
loss by less than 1 %."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from yamls import names, node, one, schedule

from ddpm.diffusion import GaussianDiffusion
from ddpm.instantiate import make
from ddpm.objective import Objective
from ddpm.prediction import posterior_coefficients
from ddpm.schedule import NoiseSchedule
from ddpm.types import times

FIXED = [one("sigma", name) for name in ("beta", "beta_tilde", "interpolated")]


def tables(s: NoiseSchedule, t: Tensor, r: Tensor) -> list[Tensor]:
    """All that is ever read off a schedule for steps from t to r."""
    of_x_0, of_x_t = posterior_coefficients(s, t, r)
    plain = [s.alpha_bar(t), s.noise_var(t), s.snr(t), s.alpha(t, r), s.beta(t, r), s.beta_tilde(t, r)]
    log_vars = [sigma.log_var(s, t, r, None) for sigma in FIXED]
    return [*plain, of_x_0, of_x_t, s.log_beta_tilde(t, r), *log_vars]


def steps(s: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """Single steps and strides: t, and the time that each leads to."""
    t = torch.arange(1, s.num_steps + 1)
    return torch.cat((t, t)), torch.cat((t - 1, t // 2))


def setting(name: str) -> tuple[Objective, GaussianDiffusion, Tensor, Tensor, Tensor]:
    """An objective, a small U-Net with all weights drawn, and what it is asked: x_0, t, eps."""
    torch.manual_seed(0)
    objective = one("objective", name)
    sigma = one("sigma", "learned_range" if objective.only_for_learned else "beta")
    network = make(node("model", "tiny"), "model", shape=(1, 8, 8), num_classes=0, learned=sigma.learned)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    diffusion = GaussianDiffusion(network, schedule("linear"), sigma, one("prediction", "epsilon"), 17).eval()
    x_0 = torch.randint(0, 17, (20, 1, 8, 8)) / 8 - 1
    return objective, diffusion, x_0, times(torch.arange(1, 21), x_0), torch.randn_like(x_0)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("name", names("schedule"))
def test_autocast_leaves_every_table_as_it_is(name):
    s = schedule(name)
    expected = tables(s, *steps(s))
    with autocast():
        for table, same in zip(tables(s, *steps(s)), expected, strict=True):
            assert torch.equal(table, same)


@pytest.mark.parametrize("name", names("objective"))
def test_autocast_changes_the_loss_by_less_than_a_percent(name):
    objective, *asked = setting(name)
    expected = objective(*asked).mean()
    with autocast():
        loss = objective(*asked)
    assert loss.dtype == torch.float32
    assert 0 < (loss.mean() - expected).abs() < 0.01 * expected  # not 0: the network did compute in bf16


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["tables_stay", "losses_stay"])
def test_compiling(claim):
    """In a process of its own: the compiler cannot see through the checks that the tests put around us."""
    code = f"import test_exact_paths; test_exact_paths.{claim}()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def compiled(function):
    torch.compiler.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def tables_stay() -> None:
    for name in ("linear", "cosine", "jsd"):
        s = schedule(name)
        for table, same in zip(compiled(tables)(s, *steps(s)), tables(s, *steps(s)), strict=True):
            assert torch.equal(table, same), name


def losses_stay() -> None:
    for name in names("objective"):
        objective, *asked = setting(name)
        loss, expected = compiled(objective)(*asked).mean(), objective(*asked).mean()
        loss.backward()
        assert (loss - expected).abs() < 0.01 * expected, name
