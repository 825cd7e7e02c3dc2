"""Where numbers are lost first: a loss and its gradient once more, with an eye on every layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def first_overflow(module: nn.Module, loss_of: Callable[[], Tensor]) -> str | None:
    """What is nan or infinite first while `loss_of` computes a loss and autograd its gradient.

    In the order of computing: the output of a layer, else the loss itself, else the gradient with respect to the
    output of a layer or to a parameter. None if all is finite. Weights and their `grad` stay as they are; compiled
    parts run uncompiled.
    """
    watch = _Watch()
    with watch.over(module), torch.compiler.set_stance("force_eager"):
        loss = loss_of()
        watch.look("the loss, computed from finite outputs of the network,", loss)
        if watch.found is None:
            parameters = [p for p in module.parameters() if p.requires_grad]
            torch.autograd.grad(loss, parameters, allow_unused=True)
    return watch.found


class _Watch:
    """Looks at what passes, and notes the first that is not finite."""

    def __init__(self) -> None:
        self.found: str | None = None

    def look(self, what: str, value: Tensor) -> None:
        if self.found is None and not torch.isfinite(value.detach()).all():
            self.found = what

    @contextmanager
    def over(self, module: nn.Module) -> Iterator[None]:
        """Within it, every output of a layer and every gradient is looked at."""
        layers = [part.register_forward_hook(self._output(name)) for name, part in module.named_modules()]
        weights = [self._gradient(f"the gradient of {name}", p) for name, p in module.named_parameters()]
        try:
            yield
        finally:
            for handle in (*layers, *weights):
                if handle is not None:
                    handle.remove()

    def _output(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(part: nn.Module, _: Any, output: Any) -> None:
            for value in _tensors(output):
                self.look(f"the output of {name} ({type(part).__name__})", value)
                self._gradient(f"the gradient at the output of {name} ({type(part).__name__})", value)

        return look

    def _gradient(self, what: str, value: Tensor) -> RemovableHandle | None:
        """Look at the gradient with respect to a tensor, when it comes by."""
        if not value.requires_grad:
            return None
        handle: RemovableHandle = value.register_hook(lambda gradient: self.look(what, gradient))  # type: ignore[no-untyped-call]
        return handle


def _tensors(output: Any) -> list[Tensor]:
    """The tensors in what a module returns."""
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in output for tensor in _tensors(part)] if isinstance(output, list | tuple) else []
