"""Files of weights that anybody may have written: opened without executing anything, checked, downloaded once."""

import http.client
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddpm import strangers
from ddpm.errors import Refused

_SECONDS = 15.0  # without an answer, after which a download is given up


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of the file, of which nothing is executed: a .safetensors, or what `torch.save` has written.

    Raises:
        ValueError: with the reason, if it is not there, is damaged or holds anything but tensors by name.
    """
    if not path.is_file():
        raise ValueError("is not there")
    try:
        is_plain = path.suffix == ".safetensors"
        state = load_file(path) if is_plain else strangers.content(path, of_others=True)
    except (ValueError, SafetensorError) as fault:
        raise ValueError(f"is damaged or holds more than tensors and was not opened (it {fault})") from fault
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("holds no tensors by name")
    return dict(state)


def checked(state: Mapping[str, Tensor], layout: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors that the layout names.

    Raises:
        ValueError: naming the tensor that is missing, of another shape, or not finite.
    """
    for name, shape in layout.items():
        if name not in state:
            raise ValueError(f"lacks {name}")
        if state[name].shape != shape:
            raise ValueError(f"has {name} of shape {tuple(state[name].shape)}, not {tuple(shape)}")
        if not state[name].isfinite().all():
            raise ValueError(f"has numbers in {name} that are not finite")
    return {name: state[name] for name in layout}


def downloaded(url: str, remedy: str) -> Path:
    """The file in torch hub's cache, downloaded by one process if it is missing.

    Raises:
        Refused: ending in the remedy, if it cannot be.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock")), _impatient():
            if not path.is_file():
                torch.hub.download_url_to_file(url, str(path))
    except (OSError, http.client.HTTPException) as error:
        raise Refused(f"{url} cannot be downloaded to {path} ({error}): {remedy}") from error
    return path


@contextmanager
def _impatient() -> Iterator[None]:
    """A network that swallows packets is given up in seconds; torch hub would wait for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
