"""Draw images from a trained model: `python sample.py checkpoint=runs/ddpm/default num_images=64`."""

import hydra
from omegaconf import DictConfig

from ddpm import verbs
from ddpm.cli import job, verb


@verb
@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
def main(cfg: DictConfig) -> None:
    """Check, open, draw."""
    job(verbs.sample, cfg, __file__)


if __name__ == "__main__":
    main()
