"""What a user has mistyped is named, with what it could have been."""

import pytest
from compose import composed

from ddpm.errors import Refused
from ddpm.wording import sentence


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("objective=simpel", "objective=simpel is not one of hybrid, min_snr, p2, simple, truncated_snr, vlb."),
        ("callbacks=[ema,chekpoint]", "there is no chekpoint in conf/callbacks/."),
        ("scheduel=linear", "there is no key scheduel; did you mean schedule?"),
        ("trainer.max_stepz=3", "there is no key trainer.max_stepz; did you mean trainer.max_steps?"),
        ("foo.bar=1", "there is no key foo; see --cfg job, and write +key=value to add one."),
    ],
)
def test_what_is_mistyped_is_named_with_what_it_could_be(override, told):
    with pytest.raises(Exception) as caught:  # Hydra has many
        composed(override)
    assert sentence(caught.value) == told


@pytest.mark.parametrize("sign", ["\n", "\x1e", "\u2028", "\x1b[2J", "\r"])
def test_a_refusal_is_one_line_whatever_it_quotes(sign):
    told = sentence(Refused(f"there is no checkpoint at a{sign}b; give another."))
    assert len(told.splitlines()) == 1
    assert told.isprintable()
    assert told.startswith("there is no checkpoint at a\\")
