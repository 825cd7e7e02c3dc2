import pytest
from compose import composed
from running import UNSCORED, run
from yamls import names, node

from ddpm.checkpoint import resumable
from ddpm.errors import Refused
from ddpm.instantiate import make


@pytest.mark.parametrize("max_steps", [1, 2, 3, 10, 101, 2700])
@pytest.mark.parametrize("name", names("lr_schedule"))
def test_the_factor_starts_and_stays_within_the_rate_that_was_asked_for(name, max_steps):
    factor = make(node("lr_schedule", name), "lr_schedule", max_steps=max_steps)
    factors = [factor(step) for step in range(max_steps)]
    assert all(0 <= f <= 1 for f in factors)
    assert factors[0] == (1 if name == "constant" else 0)


def test_the_warm_up_of_the_paper_is_a_line_to_one():
    config = composed("experiment=ho2020_cifar10", "data.root=/nowhere")
    factor = make(config["lr_schedule"], "lr_schedule", max_steps=config["trainer"]["max_steps"])
    assert [factor(step) for step in (0, 1, 2500, 4999)] == [0, 1 / 5000, 0.5, 4999 / 5000]
    assert {factor(step) for step in (5000, 5001, 799_999, 10**7)} == {1}


def test_a_constant_rate_is_the_rate():
    factor = make(node("lr_schedule", "constant"), "lr_schedule", max_steps=10)
    assert {factor(step) for step in (0, 1, 9, 10**7)} == {1}


def test_a_cosine_is_a_line_and_half_a_cosine():
    factor = make(node("lr_schedule", "warmup_cosine", num_steps=100), "lr_schedule", max_steps=1300)
    at = {0: 0, 25: 0.25, 50: 0.5, 100: 1, 500: 0.75, 700: 0.5, 900: 0.25, 1300: 0}
    assert {step: factor(step) for step in at} == pytest.approx(at, abs=1e-12)


@pytest.mark.parametrize(("max_steps", "rise"), [(10, 5), (150, 75), (1000, 100)])
def test_a_cosine_rises_in_half_of_the_training_at_most_and_ends_at_zero(max_steps, rise):
    factor = make(node("lr_schedule", "warmup_cosine", num_steps=100), "lr_schedule", max_steps=max_steps)
    up, down = [factor(s) for s in range(rise + 1)], [factor(s) for s in range(rise, max_steps + 1)]
    assert up == sorted(up)
    assert up[-1] == 1
    assert down == sorted(down, reverse=True)
    assert down[-1] == pytest.approx(0, abs=1e-15)
    assert factor(max_steps + 5) == down[-1]


@pytest.mark.parametrize("max_steps", [-1, 0])
def test_a_cosine_without_an_end_is_refused(max_steps):
    with pytest.raises(Refused, match=r"trainer\.max_steps is .*lr_schedule=warmup"):
        make(node("lr_schedule", "warmup_cosine"), "lr_schedule", max_steps=max_steps)


def test_a_resumed_run_has_the_learning_rate_that_it_asks_for(tmp_path):
    asked = [*UNSCORED, "trainer.max_steps=2"]
    folder = run(tmp_path / "run", *asked, "lr_schedule=warmup_cosine")
    changed = ["optimizer.lr=1e-5", "optimizer.eps=1e-6", "lr_schedule=warmup", "trainer.max_steps=3"]
    run(folder, *UNSCORED, *changed)
    (state,) = resumable(folder / "checkpoints/last.ckpt")["optimizer_states"]
    (group,) = state["param_groups"]
    assert (group["lr"], group["initial_lr"], group["eps"]) == (1e-5, 1e-5, 1e-6)
    assert state["state"][0]["step"] == 3
    with pytest.raises(Refused, match=r"begun with another optimizer\._target_"):
        run(folder, *UNSCORED, "optimizer=adamw", "trainer.max_steps=4")
