"""Train a diffusion model: `python train.py schedule=linear sigma=beta_tilde`.

Every group of conf/ can be chosen, every number overridden; `-m` sweeps over lists. See `--help`.
"""

import hydra
from omegaconf import DictConfig

from ddpm import verbs
from ddpm.cli import job, verb


@verb
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """One run, or one job of a sweep; returns the optimized metric."""
    return job(verbs.train, cfg, __file__)


if __name__ == "__main__":
    main()
