"""What sigma=analytic knows of a network is estimated once."""

import pytest
import torch
from compose import composed

from ddpm.analytic import estimated
from ddpm.build import build_data, build_diffusion
from ddpm.errors import Refused
from ddpm.noise import Stream, normal
from ddpm.types import times

T = 5


@pytest.fixture
def model():
    config = composed("model=tiny", f"schedule.num_steps={T}")
    data = build_data(config)
    torch.manual_seed(0)
    diffusion = build_diffusion(config, data.facts).eval()
    for parameter in diffusion.parameters():  # the last layers begin at nearly nothing
        torch.nn.init.normal_(parameter, std=0.1)
    return diffusion, data


def refuse_to_run(*_):
    raise AssertionError("the network was called")


@torch.no_grad()
def power(diffusion, x_0, indices, t):
    """The mean square of what the network, which predicts eps, says of these images of the training split."""
    at = times(t, x_0)
    x_t = diffusion.q(x_0, at, at * 0).sample(normal(0, Stream.SIGMA, indices, t, x_0.shape[1:]))
    return diffusion(x_t, at).mean.double().square().mean()


def test_it_is_the_power_of_eps_on_training_images_however_they_are_batched(model, tmp_path):
    diffusion, data = model
    got = estimated(diffusion, data, 10, 4, str(tmp_path / "a"), "cpu")
    indices = torch.arange(10) * 1500 // 10
    x_0 = data.batch("train", indices).images
    expected = torch.stack([torch.ones(()).double(), *(power(diffusion, x_0, indices, t) for t in range(1, T + 1))])
    assert (expected > 0.01).all()
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=0)  # by way of x_0 in float32, where b is 0.01 at t = 1
    at_once = estimated(diffusion, data, 10, 10, str(tmp_path / "b"), "cpu")
    torch.testing.assert_close(at_once, got, rtol=1e-5, atol=0)


def test_it_is_kept_and_made_again_for_other_weights_other_images_and_a_corrupt_file(model, tmp_path, monkeypatch):
    diffusion, data = model
    first = estimated(diffusion, data, 4, 4, str(tmp_path), "cpu")
    (kept,) = tmp_path.glob("*.npy")
    with monkeypatch.context() as broken:
        broken.setattr(diffusion.network, "forward", refuse_to_run)
        assert torch.equal(estimated(diffusion, data, 4, 4, str(tmp_path), "cpu"), first)
        with pytest.raises(AssertionError, match="was called"):
            estimated(diffusion, data, 5, 5, str(tmp_path), "cpu")
    kept.write_bytes(kept.read_bytes()[:-8])
    assert torch.equal(estimated(diffusion, data, 4, 4, str(tmp_path), "cpu"), first)
    with torch.no_grad():
        next(diffusion.parameters()).add_(1)
    estimated(diffusion, data, 4, 4, str(tmp_path), "cpu")
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_it_can_not_be_had_where_nothing_is_left_of_x_0(model, tmp_path):
    config = composed("model=tiny", "schedule=jsd", f"schedule.num_steps={T}", "prediction=x0")
    diffusion = build_diffusion(config, model[1].facts)
    with pytest.raises(Refused, match="alpha_bar_T = 0"):
        estimated(diffusion, model[1], 4, 4, str(tmp_path), "cpu")
