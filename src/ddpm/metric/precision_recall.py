"""Improved precision and recall (Kynkaanniemi et al. 2019)."""

from typing import Any

from torch import Tensor

from ddpm.errors import Refused
from ddpm.metric.features import Features
from ddpm.metric.kept import KeptMetric

_ROWS = 5000  # images whose distances to all others are in memory at once


class PrecisionRecall(KeptMetric):
    """The share of samples among the real images, and of real images among the samples, by torch-fidelity.

    An image is among others if it is no farther from one of them than that one's k-th neighbour among them.
    The score of the metric's own name is the harmonic mean of the two, torch-fidelity's F-score.

    Args:
        neighbours: k, 3 in the paper.

    The other arguments are KeptMetric's.
    """

    kind = "precision_recall"
    larger_is_better = True

    def __init__(self, *, features: Features, reference: str, neighbours: int, at_most: int, cache: str) -> None:
        if neighbours < 1:
            raise Refused(f"precision_recall needs at least one neighbour, not neighbours={neighbours}")
        self.neighbours = neighbours
        super().__init__(features=features, reference=reference, at_most=at_most, cache=cache)

    @property
    def names(self) -> tuple[str, ...]:
        return self.name, self.named("precision"), self.named("recall")

    @property
    def least(self) -> int:
        return self.neighbours + 1  # besides the image itself

    def score(self, features: Tensor, of_real: Tensor) -> tuple[float, ...]:
        from torch_fidelity import metric_prc as fidelity

        place = self.features.device
        scores = fidelity.prc_features_to_metric(
            features.to(place),
            of_real.to(place),
            prc_neighborhood=self.neighbours,
            prc_batch_size=_ROWS,
            save_cpu_ram=True,
            verbose=False,
        )
        keys = (fidelity.KEY_METRIC_F_SCORE, fidelity.KEY_METRIC_PRECISION, fidelity.KEY_METRIC_RECALL)
        return tuple(scores[key] for key in keys)

    def protocol(self) -> dict[str, Any]:
        return super().protocol() | {"neighbours": self.neighbours}
