"""Kernel inception distance (Binkowski et al. 2018)."""

from typing import Any

from torch import Tensor

from ddpm.errors import Refused
from ddpm.metric.features import Features
from ddpm.metric.kept import KeptMetric
from ddpm.metric.sample_metric import warn

_SEED = 2020  # torch-fidelity's


class KID(KeptMetric):
    """The squared maximum mean discrepancy under the kernel (x.y / d + 1)^3, unbiased, by torch-fidelity.

    Mean and standard deviation over random subsets.

    Args:
        subsets: how many.
        subset_size: images in each, of either kind; fewer, with a warning, where there are fewer.

    The other arguments are KeptMetric's.
    """

    kind = "kid"
    larger_is_better = False
    least = 2

    def __init__(
        self, *, features: Features, reference: str, subsets: int, subset_size: int, at_most: int, cache: str
    ) -> None:
        if subsets < 1 or subset_size < 2:
            raise Refused(f"kid needs a subset of two images or more, not subsets={subsets} of {subset_size}")
        super().__init__(features=features, reference=reference, at_most=at_most, cache=cache)
        self.subsets, self.subset_size = subsets, subset_size

    @property
    def names(self) -> tuple[str, ...]:
        return self.name, f"{self.name}_std"

    @property
    def size(self) -> int:
        """Images in a subset, as there are so many."""
        return min(self.subset_size, self.kept, len(self.of_real))

    def reset(self, num_images: int) -> None:
        is_news = num_images != self.num_images
        super().reset(num_images)
        if is_news and self.size < self.subset_size:
            warn(
                "%s of %d images takes subsets of %d instead of %d: its deviation is not comparable with others",
                self.name, num_images, self.size, self.subset_size,
            )  # fmt: skip

    def score(self, features: Tensor, of_real: Tensor) -> tuple[float, ...]:
        from torch_fidelity import metric_kid as fidelity

        scores = fidelity.kid_features_to_metric(
            features,
            of_real,
            kid_subsets=self.subsets,
            kid_subset_size=self.size,
            rng_seed=_SEED,
            verbose=False,
        )
        return scores[fidelity.KEY_METRIC_KID_MEAN], scores[fidelity.KEY_METRIC_KID_STD]

    def protocol(self) -> dict[str, Any]:
        return super().protocol() | {"subsets": self.subsets, "subset_size": self.size, "subset_seed": _SEED}
