"""Shapes as types (jaxtyping); they are checked while the tests run and cost nothing otherwise.

Images   x_0, x_t, eps, ... in [-1, 1] where they are data; any shape behind the batch.
Times    t in {1, ..., T}, 0 for clean data, with as many dimensions as the images: (b, 1, ..., 1).
Factors  one number per image, float64, with the dimensions of Times: they broadcast against images alone.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    Images = Tensor
    Times = Tensor
    Factors = Tensor
else:
    Images = Float[Tensor, "b *shape"]
    Times = Int[Tensor, "b *ones"]
    Factors = Float[Tensor, "b *ones"]


def times(t: int | Tensor, like: Tensor) -> Times:
    """t, one for all images of the batch `like` or one for each, as Times of shape (b, 1, ..., 1)."""
    ones = (1,) * (like.dim() - 1)
    if isinstance(t, int):
        return torch.full((like.shape[0], *ones), t, device=like.device)
    return t.to(like.device).expand(like.shape[0]).reshape(-1, *ones)
