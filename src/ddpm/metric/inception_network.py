"""torch-fidelity's Inception, made of tensors. To import torch_fidelity takes seconds: only where needed."""

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

from ddpm.metric.weights import checked

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
        own = self.state_dict()
        counts = {name for name in own if name.endswith("num_batches_tracked")}  # which only training reads
        layout = {name: tensor.shape for name, tensor in own.items() if name in state_dict or name not in counts}
        return super().load_state_dict(own | checked(state_dict, layout), *args, **kwargs)
