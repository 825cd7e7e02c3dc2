"""The choices of conf/, built small: the theorems hold for every one of them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from papers import power

from ddpm.instantiate import make
from ddpm.schedule import NoiseSchedule
from ddpm.sigma import Sigma

CONF = Path(__file__).parents[1] / "conf"


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def node(group: str, name: str, **changes: Any) -> dict[str, Any]:
    """A YAML's content, with some of its values changed where it has them."""
    content = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    return content | {key: value for key, value in changes.items() if key in content}


def schedule(name: str, num_steps: int = 20) -> NoiseSchedule:
    """A schedule over few steps; linear ones get betas that still end in noise."""
    return NoiseSchedule(make(node("schedule", name, num_steps=num_steps, beta_T=0.5), "schedule"))


def sigma_of(name: str, num_steps: int) -> Sigma:
    """A sigma, the analytic one with the Gamma of `papers.power`."""
    wired = {"eps_power": torch.from_numpy(power(np.arange(num_steps + 1)))} if name == "analytic" else {}
    return one("sigma", name, **wired)


def one(group: str, name: str, **wired: Any) -> Any:
    return make(node(group, name), group, **wired)
