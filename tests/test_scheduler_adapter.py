"""diffusers' schedulers solve our process."""

import math

import pytest
import torch
from exact import gaussian
from test_sampler import ddim, heun, schedule_1000
from yamls import schedule

from ddpm.errors import Refused
from ddpm.sampler import Spacing
from ddpm.scheduler_adapter import Diffusers

M, V = 0.3, 0.25
DETERMINISTIC = [
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
    "EulerDiscreteScheduler",
    "DDIMScheduler",
]
SEVERAL_CALLS = {"HeunDiscreteScheduler", "PNDMScheduler"}  # a step
STOCHASTIC = ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "SASolverScheduler"]


def adapted(name, num_steps=20, spacing="trailing", clip=False, **options):
    return Diffusers(scheduler=name, num_steps=num_steps, spacing=spacing, clip=clip, options=options)


def drawn(sampler, count=6, of=gaussian, m=M, v=V):
    """From x_T in rows; the noise that enters x_s is a function of s and the row."""
    rows = torch.arange(count)[:, None]
    noise = lambda s: torch.sin(rows * 12.9898 + s * 78.233 + torch.tensor([0.0, 1.3, 2.1])) * 1.4
    return sampler(of(schedule_1000(), m, v), noise(1000), noise), noise(1000)


def walk(sampler, s, start=None):
    return list(sampler.trajectory(gaussian(s, M, V), torch.zeros(1, 2), lambda time: torch.zeros(1, 2), start))


def flow(x_T):
    """Where the exact ODE leads on N(m, v)."""
    s = schedule_1000()
    a = s.alpha_bar(torch.tensor([1000])).item() ** 0.5
    return M + (V / (a * a * V + 1 - a * a)) ** 0.5 * (x_T - a * M)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_solvers_approach_the_exact_flow(name):
    few, many = ((drawn(adapted(name, n))[0] - flow(drawn(adapted(name, n))[1])).abs().mean() for n in (10, 40))
    assert many < 0.05
    assert many < few


def test_dpm_solver_is_lu_et_als_algorithm_2():
    """x_s = b_s/b_t x_t - a_s (exp(-h) - 1) D with h = lambda_s - lambda_t, D = x_0 + (x_0 - x_0') h/(2 h'), the
    first and the last step without x_0' (the last, to s = 0, is the estimate of x_0 itself)."""
    s, sampler = schedule_1000(), adapted("DPMSolverMultistepScheduler", 20)
    x, visited, last = drawn(sampler)[1].double(), sampler.times(1000), None
    for t, s_ in zip(visited, visited[1:], strict=False):
        a, b = (f(torch.tensor([t])).sqrt().item() for f in (s.alpha_bar, s.noise_var))
        x_0 = M + a * V / (a * a * V + b * b) * (x - a * M)
        if s_ == 0:
            x = x_0
            break
        a_s, b_s = (f(torch.tensor([s_])).sqrt().item() for f in (s.alpha_bar, s.noise_var))
        h = math.log(a_s / b_s) - math.log(a / b)
        slope = x_0 if last is None else x_0 + (x_0 - last[0]) * h / (2 * last[1])
        x, last = b_s / b * x - a_s * math.expm1(-h) * slope, (x_0, h)
    assert torch.allclose(drawn(sampler)[0].double(), x, atol=5e-4)


@pytest.mark.parametrize(("name", "ours"), [("DDIMScheduler", ddim(20, 0.0)), ("HeunDiscreteScheduler", heun(20))])
def test_our_samplers_and_theirs_agree(name, ours):
    assert torch.allclose(drawn(adapted(name))[0], drawn(ours)[0], atol=2e-4)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_noise_of_an_image_is_its_own(name):
    all_, some = drawn(adapted(name), 6)[0], drawn(adapted(name), 2)[0]
    assert torch.allclose(all_[:2], some, atol=1e-6)
    assert not torch.allclose(drawn(adapted(name))[0], drawn(adapted("DDIMScheduler"))[0], atol=0.1)


@pytest.mark.parametrize("name", sorted({*DETERMINISTIC, *STOCHASTIC} - SEVERAL_CALLS))
def test_it_goes_on_from_the_middle_and_says_where_it_is(name):
    sampler = adapted(name, 10)
    diffusion, x_t = gaussian(schedule_1000(), M, V), torch.randn(2, 3)
    steps = list(sampler.trajectory(diffusion, x_t, lambda s: torch.ones(2, 3), start=500))
    assert max(step.s for step in steps) < 500
    assert steps[-1].s == 0
    assert all(step.x_s.isfinite().all() and step.x_s.abs().max() < 10 for step in steps)


@pytest.mark.parametrize("spacing", [spacing.value for spacing in Spacing if spacing is not Spacing.QUADRATIC])
def test_times_are_the_models(spacing):
    assert adapted("DDIMScheduler", 10, spacing).times(1000) == ddim(10, 0.0, spacing).times(1000)
    visited = adapted("UniPCMultistepScheduler", 10, spacing).times(1000)
    assert len(visited) == 11
    assert visited[0] <= 1000
    assert visited[-2] >= 1
    assert visited[-1] == 0
    assert visited == sorted(set(visited), reverse=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: adapted("NoScheduler"), "no scheduler of diffusers"),
        (lambda: adapted("FlowMatchEulerDiscreteScheduler"), "no scheduler of diffusers"),
        (lambda: adapted("UniPCMultistepScheduler", nonsense=1), "nonsense cannot be set"),
        (lambda: adapted("UniPCMultistepScheduler", spacing="quadratic"), "quadratic"),
        (lambda: adapted("DDIMInverseScheduler").times(1000), "does not lead from noise"),
        (lambda: adapted("CogVideoXDDIMScheduler").times(1000), "does not lead from noise"),
        (lambda: adapted("KDPM2DiscreteScheduler").times(1000), "times between"),
        (lambda: adapted("UniPCMultistepScheduler", 30).times(20), "only 20 steps"),
        (lambda: adapted("UniPCMultistepScheduler", solver_type="wild").times(1000), "wild"),
        (lambda: walk(adapted("UniPCMultistepScheduler", 5), schedule("jsd")), "alpha_bar_T = 0"),
        (lambda: walk(adapted("PNDMScheduler", 5), schedule("linear"), start=10), "begin in the middle"),
    ],
)
def test_what_can_not_be_adapted_is_refused(make, words):
    with pytest.raises(Refused, match=words):
        make()
