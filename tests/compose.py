"""Configs as the verbs compose them."""

from typing import Any

from hydra import compose, initialize_config_dir
from yamls import CONF

from ddpm.cli import plain, quoted


def composed(*overrides: str, verb: str = "train") -> dict[str, Any]:
    # added keys are let through, as a struct check of Hydra's would hide our own
    texts = [f"+{text}" if text.startswith("model.nonsense") else text for text in overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(compose(verb, overrides=quoted(texts)))
