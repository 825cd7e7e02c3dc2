"""Files from others: a checkpoint opens by itself, and nothing in it is ever run."""

import os

import pytest
import torch
from compose import composed

from ddpm.build import build_module
from ddpm.checkpoint import MODEL_GROUPS, load
from ddpm.data.facts import Facts
from ddpm.errors import Refused
from ddpm.sampling import draw

DIGITS = Facts("digits", (1, 8, 8), 17, tuple("0123456789"), "")


@pytest.fixture
def content():
    torch.manual_seed(0)
    module = build_module(composed("model=tiny", "lr_schedule=constant"), DIGITS)
    raw = {key: value + 1 for key, value in module.state_dict().items()}
    return {
        "ddpm": module.card,
        "state_dict": module.state_dict(),
        "current_model_state": raw,
        "global_step": 7,
    }


def saved(content, tmp_path):
    torch.save(content, tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def test_a_checkpoint_opens_by_itself_with_either_weights(content, tmp_path):
    path = saved(content, tmp_path)
    ema, raw = load(path), load(path, "raw")
    assert ema.facts == DIGITS
    assert ema.step == 7
    for a, b in zip(ema.diffusion.parameters(), raw.diffusion.parameters(), strict=True):
        assert torch.equal(a + 1, b)
    sampler = __import__("ddpm.sampler", fromlist=["DDIM"]).DDIM(num_steps=2, spacing="leading", clip=True, eta=0.0)
    with torch.no_grad():
        assert draw(ema.diffusion, sampler, torch.arange(2), DIGITS.shape, 0).shape == (2, 1, 8, 8)


def test_a_checkpoint_without_an_average_has_raw_weights_whatever_is_asked_for(content, tmp_path):
    path = saved(content, tmp_path)
    assert [load(path, weights).weights for weights in ("ema", "raw")] == ["ema", "raw"]
    del content["current_model_state"]
    path = saved(content, tmp_path)
    assert [load(path, weights).weights for weights in ("ema", "raw")] == ["raw", "raw"]


@pytest.mark.parametrize("rescaled", [None, False, True])
def test_the_schedule_is_rescaled_as_it_was_in_training(content, tmp_path, rescaled):
    """A file from before the choice, which does not name it, is not."""
    config = content["ddpm"]["config"]
    config["prediction"] = {"_target_": "ddpm.prediction.Velocity"}
    config |= {"zero_terminal_snr": rescaled}
    for key in ("input_perturbation", "zero_terminal_snr") if rescaled is None else ():
        del config[key]
    schedule = load(saved(content, tmp_path)).diffusion.schedule
    assert (schedule.alpha_bar(torch.tensor([schedule.num_steps])) == 0) == bool(rescaled)


def test_a_folder_means_its_last_checkpoint(content, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / "checkpoints" / "last.ckpt")
    assert load(tmp_path).path == tmp_path / "checkpoints" / "last.ckpt"


def test_what_is_missing_truncated_or_foreign_is_refused(content, tmp_path):
    with pytest.raises(Refused, match="no checkpoint at"):
        load(tmp_path / "nothing.ckpt")
    path = saved(content, tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(Refused, match="damaged"):
        load(path)
    with pytest.raises(Refused, match="not a checkpoint of this framework"):
        load(saved({"weights": torch.zeros(1)}, tmp_path))


def test_shapes_that_do_not_fit_are_refused(content, tmp_path):
    content["ddpm"]["config"]["model"]["channels"] = 16
    with pytest.raises(Refused, match="do not fit"):
        load(saved(content, tmp_path))


def test_unknown_weights_are_refused(content, tmp_path):
    with pytest.raises(Refused, match="ema, raw"):
        load(saved(content, tmp_path), "best")


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/ddpm-evil",)


def test_a_pickle_that_runs_code_is_not_run(content, tmp_path):
    content["ddpm"]["config"]["seed"] = Evil()
    with pytest.raises(Refused, match="damaged or no checkpoint"):
        load(saved(content, tmp_path))
    assert not os.path.exists("/tmp/ddpm-evil")  # noqa: PTH110


@pytest.mark.parametrize(
    "smuggled",
    [
        {"_args_": [{"_target_": "builtins.open", "_args_": ["evil", "w"]}]},
        {"betas": [{"_target_": "builtins.open", "_args_": ["evil", "w"]}, 0.1]},
        {"fraction": {"_target_": "builtins.open", "_args_": ["evil", "w"]}},
        {"_partial_": True},
    ],
)
def test_nothing_can_be_smuggled_in_below_a_target_of_ours(content, smuggled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for group in ("schedule", "sigma"):
        content["ddpm"]["config"][group] |= smuggled
        with pytest.raises(Refused, match="not one of ours"):
            load(saved(content, tmp_path))
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("group", MODEL_GROUPS)
@pytest.mark.parametrize(
    "target",
    ["os.system", "builtins.eval", "ddpm.checkpoint.load", "ddpm.schedule.math.exp", "ddpm.{group}.Any", ""],
)
def test_a_config_may_only_name_what_is_ours(content, tmp_path, group, target):
    content["ddpm"]["config"][group] = {"_target_": target.format(group=group)}
    with pytest.raises(Refused, match="not one of ours"):
        load(saved(content, tmp_path))
