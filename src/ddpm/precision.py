"""What a run computes in."""

from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision

from ddpm.errors import Refused

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # images, schedule and losses stay in float32


class BFloat16Mixed(MixedPrecision):
    """bf16-mixed, which has no loss scaler: a fused optimiser hides nothing from clipping, though Lightning
    refuses the two together as it does for float16.

    keeps_casts  the T calls of a drawing share one cast of each weight, which a rank that holds a part of them has
                 no room for. Lightning's own never do, for networks called with and without gradients in one step.
    """

    def __init__(self, device: str, *, keeps_casts: bool) -> None:
        super().__init__("bf16-mixed", device)
        self.keeps_casts = keeps_casts

    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16, cache_enabled=self.keeps_casts)

    def clip_gradients(self, *arguments: Any, **options: Any) -> None:
        """By norm or value, as without mixed precision."""
        Precision.clip_gradients(self, *arguments, **options)


def device_of(accelerator: str) -> str:
    """The kind of device that an accelerator flag means here."""
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def precision(asked: str, accelerator: str) -> str:
    """What `auto` means here: bf16-mixed where the processor multiplies bf16 natively, else float32.

    Raises Refused for a precision that would cast the images or the schedule.
    """
    if asked not in ("auto", *PRECISIONS):
        raise Refused(f"trainer.precision={asked} is not possible; choose auto or one of {', '.join(PRECISIONS)}.")
    if asked != "auto":
        return asked
    if device_of(accelerator) == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return "bf16-mixed" if native else "32-true"
