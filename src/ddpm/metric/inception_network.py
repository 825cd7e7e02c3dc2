"""torch-fidelity's Inception, made of tensors. To import torch_fidelity takes seconds: only where needed."""

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

URL: str = fidelity.URL_INCEPTION_V3


class InceptionNetwork(fidelity.FeatureExtractorInceptionV3):
    """FID's Inception-v3 (2015-12-05): uint8 (b, 3, h, w) to 2048 features and 1008 logits without bias.

    The library's constructor unpickles whatever file it is given, and so is given a buffer of tensors
    that were opened safely; and it initialises, and so draws from the global generator, which is put back.

    Raises:
        ValueError: naming the tensor that is missing, of the wrong shape, or not finite.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        buffer.seek(0)
        with torch.random.fork_rng(devices=[]):
            super().__init__("inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=buffer)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """The constructor calls it when the layout is known: check against that first."""
        return super().load_state_dict(_checked(state_dict, self.state_dict()), *args, **kwargs)


def _checked(state: Mapping[str, Tensor], layout: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the layout names. Counts of batches, which only training reads, may be missing."""
    for name, expected in layout.items():
        if name not in state:
            if name.endswith("num_batches_tracked"):
                continue
            raise ValueError(f"lacks {name}")
        if state[name].shape != expected.shape:
            raise ValueError(f"has {name} of shape {tuple(state[name].shape)}, not {tuple(expected.shape)}")
        if not state[name].isfinite().all():
            raise ValueError(f"has numbers in {name} that are not finite")
    return {name: state.get(name, expected) for name, expected in layout.items()}
