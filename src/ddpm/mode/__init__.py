"""What `sample.py` can draw from a trained model, one class a figure of the papers."""

from ddpm.mode.base import Figured, Mode, Studio
from ddpm.mode.forward import Forward
from ddpm.mode.image_to_image import ImageToImage
from ddpm.mode.inpainting import Inpainting
from ddpm.mode.interpolation import Interpolation
from ddpm.mode.lossy_coding import LossyCoding
from ddpm.mode.progressive import Progressive
from ddpm.mode.reconstruction import Reconstruction
from ddpm.mode.reverse import Reverse
from ddpm.mode.scene import Latent, Scene, Walked
from ddpm.mode.shared_latent import SharedLatent

__all__ = [
    "Figured",
    "Forward",
    "ImageToImage",
    "Inpainting",
    "Interpolation",
    "Latent",
    "LossyCoding",
    "Mode",
    "Progressive",
    "Reconstruction",
    "Reverse",
    "Scene",
    "SharedLatent",
    "Studio",
    "Walked",
]
