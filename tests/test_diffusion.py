import pytest
import torch
from exact import gaussian, point
from torch import nn
from yamls import names, schedule

from ddpm.diffusion import GaussianDiffusion, Output
from ddpm.prediction import Epsilon
from ddpm.sigma import Beta, BetaTilde
from ddpm.types import times


@pytest.mark.parametrize("name", names("schedule"))
@pytest.mark.parametrize(("t", "s"), [(9, 8), (9, 3), (2, 1), (10, 5)])
def test_the_posterior_is_consistent_with_q(name, t, s):
    """Integrating q(x_s | x_t, x_0) q(x_t | x_0) over x_t gives q(x_s | x_0), for any stride."""
    d = point(schedule(name, 10), 0.0)
    x_0 = torch.tensor([[0.7]], dtype=torch.float64)
    T, S, zero = (times(k, x_0) for k in (t, s, 0))
    q_t, q_s = d.q(x_0, T, zero), d.q(x_0, S, zero)
    posterior = d.posterior(x_0, q_t.mean, T, S)
    slope = d.posterior(x_0, q_t.mean + 1, T, S).mean - posterior.mean
    assert torch.allclose(posterior.mean, q_s.mean)
    assert torch.allclose(slope**2 * q_t.log_var.exp() + posterior.log_var.exp(), q_s.log_var.exp())


def test_the_network_sees_the_papers_time_minus_one_or_rescaled():
    class Seen(nn.Module):
        def forward(self, x, time):
            self.time = time
            return x

    x, network = torch.zeros(2, 1, 2, 2), Seen()
    d = GaussianDiffusion(network, schedule("linear", 20), Beta(), Epsilon(), 256)
    d(x, times(torch.tensor([1, 20]), x))
    assert network.time.tolist() == [0, 19]
    network.rescale_time = True
    d(x, times(torch.tensor([1, 20]), x))
    assert network.time.tolist() == [0, 950]


def test_p_is_the_posterior_of_the_clipped_estimate():
    d = point(schedule("linear"), 3.0, sigma=BetaTilde())
    x_t = torch.randn(4, 2)
    t, s = times(9, x_t), times(4, x_t)
    output = d(x_t, t)
    one = torch.ones_like(x_t)
    assert torch.allclose(d.p(output, x_t, t, s, clip=True).mean, d.posterior(one, x_t, t, s).mean, atol=1e-6)
    assert torch.allclose(d.p(output, x_t, t, s, clip=False).mean, d.posterior(3 * one, x_t, t, s).mean, atol=1e-5)


def test_detaching_the_mean_leaves_v_its_gradient():
    mean, v = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    out = Output(mean, v).detach_mean()
    assert not out.mean.requires_grad
    assert out.v is v


class Labelled(nn.Module):
    """Says its label in both outputs."""

    null_label = 9

    def forward(self, x, time, label=None):
        label = torch.full((len(x),), self.null_label) if label is None else label
        return label.reshape(-1, 1).expand(len(x), 2 * x.shape[1]).to(x)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance_extrapolates_the_mean_and_leaves_v(guidance):
    d = GaussianDiffusion(Labelled(), schedule("linear"), Beta(), Epsilon(), 256)
    x = torch.zeros(2, 3)
    output = d.given(torch.tensor([2, 4]), guidance)(x, times(1, x))
    assert output.mean[:, 0].tolist() == [9 + guidance * (2 - 9), 9 + guidance * (4 - 9)]
    assert output.v[:, 0].tolist() == [2, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_dtype_of_the_data(dtype):
    d = gaussian(schedule("linear"), 0.0, 1.0)
    x = torch.zeros(2, 3, dtype=dtype)
    t = times(5, x)
    p = d.p(d(x, t), x, t, t - 1, clip=True)
    assert {p.mean.dtype, p.log_var.dtype, d.q(x, t, t - 1).mean.dtype} == {dtype}
