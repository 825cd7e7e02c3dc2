"""Draw images from a trained model: `python sample.py checkpoint=runs/ddpm/default num_images=64`."""

import hydra
from omegaconf import DictConfig

from ddpm.cli import alone, in_sweep, overrides, plain, verb


@verb
@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
def main(cfg: DictConfig) -> None:
    """Check, open, draw."""
    with alone():
        config = plain(cfg)

        from ddpm.drawing import draw_images
        from ddpm.runs import label

        if in_sweep():  # a folder holds one drawing
            config["out"] = f"{config['out']}/{label(overrides())}"
        draw_images(config)


if __name__ == "__main__":
    main()
