"""The network: what a reverse process asks for the noise (or the image, ...) in x_t."""

from ddpm.model.unet import UNet

__all__ = ["UNet"]
