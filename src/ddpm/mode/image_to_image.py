"""Image to image without training for it: SDEdit (Meng et al. 2022)."""

from typing import ClassVar

import torch

from ddpm.errors import Refused
from ddpm.mode.base import Figured, at_least_one
from ddpm.mode.scene import Scene
from ddpm.pictures import Figure


class ImageToImage(Figured):
    """A guide, such as a drawing, is noised to x_t and denoised: what x_t has forgotten is the model's (Meng et al.
    2022, Sec. 3). The larger t, the more.

    t        where to begin, in {1, ..., T}; None for this share of T:
    share    in (0, 1]
    rows     images at most
    columns  results of each
    """

    uses: ClassVar = frozenset({"label", "images"})

    def __init__(self, *, t: int | None, share: float, rows: int, columns: int) -> None:
        at_least_one(rows=rows, columns=columns)
        if not 0 < share <= 1:
            raise Refused(f"mode.share is {share}; it must lie in (0, 1].")
        self.t, self.share, self.rows, self.columns = t, share, rows, columns

    def figure(self, scene: Scene) -> Figure:
        asked = max(1, round(self.share * scene.num_steps)) if self.t is None else self.t
        (t,), guides = scene.starts(asked, 1), scene.images(self.rows)
        copies = guides.repeat_interleave(self.columns, 0)
        latent = scene.encoded(copies, t, scene.indices(len(copies)))
        (made,) = scene.decoded([latent])
        x_t = latent.x_t[:: self.columns]
        shown = (guides.unsqueeze(1), x_t.unsqueeze(1), made.reshape(len(guides), -1, *guides.shape[1:]))
        columns = ["guide", rf"$x_{{{t}}}$", *(f"result ({k + 1})" for k in range(self.columns))]
        return Figure("image_to_image", torch.cat(shown, dim=1), [""] * len(guides), columns, singles=made)
