"""Inception score (Salimans et al. 2016)."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.errors import Refused
from ddpm.metric.features import FeatureBatch, Features
from ddpm.metric.sample_metric import SummedMetric
from ddpm.metric.source import Source

_SHUFFLE_SEED = 2020  # torch-fidelity's
_USUAL = 10  # splits in most papers, which need no mention


class InceptionScore(SummedMetric):
    """exp E KL(p(y|x) || p(y)): mean and (biased) standard deviation over splits of the images.

    An image's split is a function of its index, by torch-fidelity's permutation, so that the score is a
    function of the images and not of the order in which they were made.

    Args:
        features: an extractor with logits.
        splits: 10 in most papers; 1 in the code of Ho et al. (2020). Unless they are 10, the name ends in them.
    """

    kind = "inception_score"
    larger_is_better = True

    def __init__(self, *, features: Features, splits: int) -> None:
        super().__init__(features=features)
        if splits < 1:
            raise Refused(f"an inception score over {splits} splits is none: choose splits=1 or more")
        self.splits = splits
        self._split_of = torch.empty(0, dtype=torch.int64)

    @property
    def variant(self) -> str:
        return "" if self.splits == _USUAL else str(self.splits)

    def prepare(self, data: Source) -> None:
        super().prepare(data)
        if not self.features.num_logits:
            raise Refused(
                f"{self.features.name} features know no classes, which an inception score needs: "
                "choose metric=[inception_score_classifier] or metric=[inception_score]"
            )

    def refuse_few(self, num_images: int) -> None:
        super().refuse_few(num_images)
        if num_images < self.splits:
            raise Refused(
                f"{self.name} cannot share {num_images} images out among {self.splits} splits: "
                f"ask for more images or take its splits={max(1, num_images)}"
            )

    def reset(self, num_images: int) -> None:
        self._split_of = split_of_image(num_images, self.splits)
        super().reset(num_images)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        classes = self.features.num_logits
        return {"images": (self.splits,), "p": (self.splits, classes), "p_log_p": (self.splits,)}

    def terms(self, batch: FeatureBatch, number: Tensor) -> Mapping[str, Tensor]:
        assert batch.logits is not None  # prepare has seen to it
        log_p = batch.logits.log_softmax(dim=1)
        p = log_p.exp()
        split = self._split_of[number.cpu()].to(p.device)
        member = nn.functional.one_hot(split, self.splits).double().T
        return {"images": member.sum(1), "p": member @ p, "p_log_p": member @ (p * log_p).sum(1)}

    def score(self, totals: Mapping[str, Tensor]) -> dict[str, float]:
        mean_p = totals["p"] / totals["images"][:, None]
        entropy_of_mean = torch.special.entr(mean_p).sum(1)
        scores = (totals["p_log_p"] / totals["images"] + entropy_of_mean).exp()
        deviation = float(scores.std(correction=0))
        return {self.name: float(scores.mean()), f"{self.name}_std": deviation}

    def protocol(self) -> dict[str, Any]:
        return super().protocol() | {"splits": self.splits, "shuffle_seed": _SHUFFLE_SEED}


def split_of_image(num_images: int, splits: int) -> Tensor:
    """The split (N,) of each image: torch-fidelity permutes them and cuts the result into equal pieces."""
    order = np.random.RandomState(_SHUFFLE_SEED).permutation(num_images)
    cuts = [i * num_images // splits for i in range(splits + 1)]
    split = torch.empty(num_images, dtype=torch.int64)
    for i, (start, stop) in enumerate(pairwise(cuts)):
        split[torch.from_numpy(order[start:stop])] = i
    return split
