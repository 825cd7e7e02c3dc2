"""L_0's decoder: a distribution over the levels, right in every tail, and the authors' approximation of it."""

import math
from itertools import product

import mpmath
import numpy as np
import papers
import pytest
import torch
from compose import composed
from torch import Tensor
from yamls import names, node, one

from ddpm.build import build_module
from ddpm.checkpoint import load
from ddpm.data.facts import Facts
from ddpm.decoder import Exact, Tanh
from ddpm.errors import Refused
from ddpm.evaluation import Evaluation
from ddpm.gaussian import Gaussian
from ddpm.images import from_levels
from ddpm.instantiate import make
from ddpm.measuring import row
from ddpm.opening import data_of, opened

LEVELS = [17, 256]
mpmath.mp.dps = 400  # at std = 0.003 a bin of 17 levels is 42 sigma wide: its log-probability may be -1e-380


def levels(num_levels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return from_levels(torch.arange(num_levels), num_levels).to(dtype)


def around(x: Tensor, mean: float, std: float) -> Gaussian:
    return Gaussian(torch.full_like(x, mean), torch.full_like(x, 2 * math.log(std)))


def each(means: list[float], log_vars: list[float], num_levels: int, dtype: torch.dtype) -> tuple[Tensor, Gaussian]:
    """All levels in a row for each pair of a mean and a log-variance: (pairs, num_levels)."""
    pairs = torch.tensor(list(product(means, log_vars)), dtype=torch.float64).to(dtype)
    mean, log_var = (part.reshape(-1, 1).repeat(1, num_levels).requires_grad_() for part in pairs.T)
    return levels(num_levels, dtype).expand_as(mean), Gaussian(mean, log_var)


@pytest.mark.parametrize("name", names("decoder"))
@pytest.mark.parametrize("num_levels", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_levels_share_all_mass(name, num_levels, dtype):
    means, log_vars = [-40.0, -1.0, -0.3, 0.0, 0.99, 7.0], [-60.0, -20.0, -9.0, -3.0, 2.0, 20.0]
    x, p = each(means, log_vars, num_levels, dtype)
    log_prob = one("decoder", name).log_prob(p, x, num_levels)
    assert log_prob.dtype == dtype
    np.testing.assert_allclose(log_prob.detach().double().exp().sum(1), np.ones(36), atol=1e-6)


def true_log_mass(index: int, num_levels: int, mean: float, std: float) -> mpmath.mpf:
    """Of one level, in 400 digits; the outermost bins are open."""
    level, half = mpmath.mpf(2 * index) / (num_levels - 1) - 1, mpmath.mpf(1) / (num_levels - 1)
    upper = mpmath.inf if index == num_levels - 1 else (level + half - mpmath.mpf(mean)) / mpmath.mpf(std)
    lower = -mpmath.inf if index == 0 else (level - half - mpmath.mpf(mean)) / mpmath.mpf(std)
    return mpmath.log(mpmath.ncdf(upper) - mpmath.ncdf(lower))


@pytest.mark.parametrize("num_levels", LEVELS)
@pytest.mark.parametrize("std", [0.003, 0.03, 0.3, 3.0])
def test_log_probabilities_are_right_out_to_20_sigma(num_levels, std):
    """Of every kind of level: the outermost two, their neighbours and one in the middle, seen from means of up
    to 20 sigma to either side, where the nearest level has nearly all mass as well as where none has any."""
    x = levels(num_levels, torch.float64)
    for index in (0, 1, num_levels // 3, num_levels - 2, num_levels - 1):
        for away in (-20.0, -8.5, -2.0, 0.0, 0.4, 5.0, 20.0):
            mean = x[index].item() + away * std
            got = Exact().log_prob(around(x, mean, std), x, num_levels)[index].item()
            assert got == pytest.approx(float(true_log_mass(index, num_levels, mean, std)), rel=1e-9, abs=0)


@pytest.mark.parametrize("num_levels", LEVELS)
def test_images_in_float32_have_the_levels_they_mean(num_levels):
    """Levels themselves rounded to float32 would cost 0.02 nats of these 1900."""
    x, exact = levels(num_levels), torch.arange(num_levels).double() * 2 / (num_levels - 1) - 1
    mean, std = exact + 1 / (num_levels - 1) + 0.006, 1e-4
    got = Exact().log_prob(Gaussian(mean, torch.full_like(mean, 2 * math.log(std))), x, num_levels)
    expected = papers.decoder(exact.numpy(), mean.numpy(), np.float64(std), num_levels)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-40)  # what float32 can say


@pytest.mark.parametrize("name", names("decoder"))
@pytest.mark.parametrize("num_levels", LEVELS)
def test_the_outermost_bins_are_open(name, num_levels):
    x = levels(num_levels)
    for side, mean in ((0, -50.0), (-1, 50.0)):
        log_prob = one("decoder", name).log_prob(around(x, mean, 0.1), x, num_levels)
        assert log_prob[side] == 0
        assert log_prob.argmax() == side % num_levels


@pytest.mark.parametrize("name", names("decoder"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_finite_however_far_and_however_narrow(name, dtype):
    """Also where the mean lies on the very edge of a bin, at an infinitely narrow Gaussian."""
    means = [0.0, 1.0, 1 / 255, 1 + 1 / 255, -0.3, 30.0, 1e3, -1e6, 1e20, -3e38]
    log_vars = [-math.inf, -1e4, -709.0, -200.0, -120.0, -88.0, -40.0, -10.0, 0.0, 50.0, 100.0, 1e4]
    for num_levels in LEVELS:
        x, p = each(means, log_vars, num_levels, dtype)
        log_prob = one("decoder", name).log_prob(p, x, num_levels)
        gradients = torch.autograd.grad(log_prob.sum(), (p.mean, p.log_var))
        assert all(number.isfinite().all() for number in (log_prob, *gradients))


@pytest.mark.parametrize("name", names("decoder"))
@pytest.mark.parametrize("num_levels", LEVELS)
def test_gradients_are_those_of_the_values(name, num_levels):
    """By differences, in float64, within reach of both decoders."""
    x = levels(num_levels, torch.float64)[:: num_levels // 16]
    mean = (x + 0.05).requires_grad_()
    log_var = torch.full_like(x, -5.0).requires_grad_()
    decoder = one("decoder", name)
    assert torch.autograd.gradcheck(lambda m, v: decoder.log_prob(Gaussian(m, v), x, num_levels), (mean, log_var))


def test_tanh_is_the_authors_formula():
    """Theirs is for 256 levels; at |z| of hundreds its cube must not overflow either."""
    tanh, x = one("decoder", "tanh"), levels(256)
    exact = torch.arange(256).double() * 2 / 255 - 1
    for mean, std in product([-3.0, -1.0, -0.2, 0.0, 0.5, 1.0, 2.0], [0.001, 0.01, 0.1, 1.0, 10.0]):
        got = tanh.log_prob(around(x.double(), mean, std), x, 256)
        expected = papers.tanh_decoder(exact.numpy(), np.float64(mean), np.float64(std))
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_how_far_tanh_is_from_exact():
    """Its CDF errs by up to 2e-4, and bits/dim of a decoder that fits by up to 1e-4."""
    z = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    far = torch.full_like(z, -2e6)
    tanh, exact = Tanh(floor=1e-12), Exact()
    error = (tanh.log_mass(far, z).exp() - exact.log_mass(far, z).exp()).abs().max().item()
    assert 1.5e-4 < error < 2.5e-4
    x = levels(256, torch.float64)
    g = torch.Generator().manual_seed(0)
    p = Gaussian(x + 0.01 * torch.randn(1000, 256, generator=g, dtype=torch.float64), torch.tensor(2 * math.log(0.01)))
    bits = [-d.log_prob(p, x.expand(1000, -1), 256).mean().item() / math.log(2) for d in (tanh, exact)]
    assert 5e-6 < abs(bits[0] - bits[1]) < 1e-4


def test_tanh_takes_no_probability_for_less_than_its_floor():
    x = levels(256)
    log_prob = Tanh(floor=1e-12).log_prob(around(x, -1.0, 0.01), x, 256)
    assert log_prob.min().item() == pytest.approx(math.log(1e-12))
    assert Exact().log_prob(around(x, -1.0, 0.01), x, 256).min() < -1e4


@pytest.mark.parametrize("floor", [0.0, -1.0, 1.0])
def test_an_impossible_floor_is_refused(floor):
    with pytest.raises(Refused, match="floor"):
        Tanh(floor=floor)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One as it is saved, and one from before the decoder was a choice."""
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    facts = Facts("digits", (1, 8, 8), 17, (), "")
    module = build_module(composed("model=tiny", "lr_schedule=constant", "decoder=tanh"), facts)
    content = {"ddpm": module.card, "state_dict": module.state_dict(), "global_step": 7}
    torch.save(content, folder / "tanh.ckpt")
    del content["ddpm"]["config"]["decoder"]
    torch.save(content, folder / "before.ckpt")
    return folder


def test_a_checkpoint_keeps_its_decoder_and_an_older_one_has_the_exact_one(checkpoint):
    assert isinstance(load(checkpoint / "tanh.ckpt").diffusion.decoder, Tanh)
    before = load(checkpoint / "before.ckpt")
    assert isinstance(before.diffusion.decoder, Exact)
    assert before.config["decoder"] == node("decoder", "exact")


@pytest.mark.parametrize(
    ("asked", "kept", "used"), [(None, "tanh", "tanh"), ("exact", "tanh", "exact"), ("tanh", "before", "tanh")]
)
def test_evaluation_may_swap_the_decoder_and_says_which_it_used(checkpoint, asked, kept, used):
    override = [f"decoder={asked}"] if asked else []
    config = composed(f"checkpoint={checkpoint / kept}.ckpt", "sigma=beta", *override, verb="evaluate")
    model = opened(config)
    diffusion = model.module(0).diffusion
    assert type(diffusion.decoder) is type(make(node("decoder", used), "decoder"))
    assert not diffusion.training
    evaluation = Evaluation({}, data_of(model.loaded, {}), num_images=2, batch_size=2)
    assert row(config, model, evaluation, {})["protocol"]["decoder"] == node("decoder", used)


def test_the_decoder_goes_with_the_model():
    """Under a label, and with another sigma."""
    torch.manual_seed(0)
    facts = Facts("digits", (1, 8, 8), 17, (), "")
    diffusion = build_module(composed("model=tiny", "decoder=tanh"), facts).diffusion
    assert diffusion.given(torch.zeros(1, dtype=torch.long)).decoder is diffusion.decoder
    assert diffusion.with_sigma(one("sigma", "beta")).decoder is diffusion.decoder
    assert diffusion.with_decoder(Exact()).num_levels == 17
