import pytest
from yamls import names, node

from ddpm.errors import Refused
from ddpm.instantiate import make


@pytest.mark.parametrize("max_steps", [1, 2, 3, 10, 101, 2700])
@pytest.mark.parametrize("name", names("lr_schedule"))
def test_the_factor_starts_and_stays_within_the_rate_that_was_asked_for(name, max_steps):
    factor = make(node("lr_schedule", name), "lr_schedule", max_steps=max_steps)
    factors = [factor(step) for step in range(max_steps)]
    assert all(0 <= f <= 1 for f in factors)
    assert factors[0] == (1 if name == "constant" else 0)


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
