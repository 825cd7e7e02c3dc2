"""Score a trained model: `python evaluate.py checkpoint=runs/ddpm/default metric=[bits_per_dim,fid_classifier]`."""

import hydra
from omegaconf import DictConfig

from ddpm import verbs
from ddpm.cli import job, verb


@verb
@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> float | None:
    """Check, open, measure; returns the optimized metric."""
    return job(verbs.evaluate, cfg, __file__)


if __name__ == "__main__":
    main()
