"""DINOv2's vision transformer, which is torchvision's but for a LayerScale that its weights can absorb.

torch hub would execute the authors' repository, and torch-fidelity does so; here no code is downloaded.
"""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.transforms.v2.functional import normalize

from ddpm.metric.weights import checked

_SIDE, _PATCH, _HEAD = 224, 14, 64  # pixels of an image, of a patch; width of an attention head
_TRAINED = 37  # patches a side at the 518 pixels that the positions were trained for
_OFFSET = 0.1  # that the authors add to the number of patches when they interpolate the positions
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's
_NAMES = {"patch_embed.proj.": "conv_proj.", "norm.": "encoder.ln."}  # authors' to torchvision's
_BLOCK_NAMES = {
    "norm1.": "ln_1.",
    "attn.qkv.": "self_attention.in_proj_",
    "attn.proj.": "self_attention.out_proj.",
    "norm2.": "ln_2.",
    "mlp.fc1.": "mlp.0.",
    "mlp.fc2.": "mlp.3.",
}
_SCALED = {"ls1.gamma": "self_attention.out_proj", "ls2.gamma": "mlp.3"}


class DINOv2Network(nn.Module):
    """uint8 images (b, 3, h, w) to the normalised class token (b, width).

    Raises:
        ValueError: naming the tensor that is missing, unknown, of the wrong shape, or not finite.
    """

    def __init__(self, state: Mapping[str, Tensor], depth: int, width: int) -> None:
        super().__init__()
        with torch.device("meta"):  # whose initialisation costs nothing and draws nothing
            self.transformer = VisionTransformer(_SIDE, _PATCH, depth, width // _HEAD, width, 4 * width)
            self.transformer.heads = nn.Sequential()
        shapes = {name: tensor.shape for name, tensor in self.transformer.state_dict().items()}
        self.transformer.load_state_dict(translated(state, shapes, depth), assign=True)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        pixels = resized(images).to(images.device).float() / 255
        features: Tensor = self.transformer(normalize(pixels, _MEAN, _STD))
        return features


def resized(images: Tensor) -> Tensor:
    """uint8 (b, 3, 224, 224) on the CPU, by Pillow's bicubic filter, which rounds twice: no other gives its pixels."""
    pictures = [Image.fromarray(array) for array in images.cpu().permute(0, 2, 3, 1).contiguous().numpy()]
    arrays = [np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def translated(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], depth: int) -> dict[str, Tensor]:
    """The authors' tensors under torchvision's names, float32; `shapes` are torchvision's."""
    names, width = _names(depth), shapes["class_token"][-1]
    layout = {theirs: shapes[ours] for theirs, ours in names.items()}
    layout |= {"pos_embed": torch.Size((1, 1 + _TRAINED**2, width)), "mask_token": torch.Size((1, width))}
    layout |= {f"blocks.{i}.{gamma}": torch.Size((width,)) for i in range(depth) for gamma in _SCALED}
    if unknown := sorted(state.keys() - layout.keys()):
        raise ValueError(f"has {unknown[0]}, which this network has not")
    known = {name: tensor.float() for name, tensor in checked(state, layout).items()}
    told = {ours: known[theirs] for theirs, ours in names.items()}
    for i in range(depth):
        for gamma, layer in _SCALED.items():  # gamma (W x + b) = (gamma W) x + gamma b
            scale, name = known[f"blocks.{i}.{gamma}"], f"encoder.layers.encoder_layer_{i}.{layer}"
            told[f"{name}.weight"] = told[f"{name}.weight"] * scale[:, None]
            told[f"{name}.bias"] = told[f"{name}.bias"] * scale
    return told | {"encoder.pos_embedding": positions(known["pos_embed"])}


def _names(depth: int) -> dict[str, str]:
    """Authors' names of tensors to torchvision's, of those that both have."""
    names = dict(_NAMES)
    for i in range(depth):
        block, ours = f"blocks.{i}.", f"encoder.layers.encoder_layer_{i}."
        names |= {block + name: ours + translation for name, translation in _BLOCK_NAMES.items()}
    both = {name + kind: ours + kind for name, ours in names.items() for kind in ("weight", "bias")}
    return {"cls_token": "class_token"} | both


def positions(trained: Tensor) -> Tensor:
    """Embeddings (1, 1 + 37 x 37, d) of the class and the patches' positions, the latter for 16 x 16 patches.

    Interpolated as the authors' code does, whose scale is that of 16.1 patches.
    """
    token, patches = trained[:, :1], trained[:, 1:].mT.reshape(1, -1, _TRAINED, _TRAINED)
    scale = (_SIDE // _PATCH + _OFFSET) / _TRAINED
    fewer = nn.functional.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat((token, fewer.flatten(2).mT), dim=1)
