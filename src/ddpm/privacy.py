"""What files that are handed on may tell of this machine: no absolute path."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_WORD = r"[^\s,:;'\"\[\]{}()/]"  # of a path
# not the slashes of a/b, ./a or https://a; but those of file:///a, and any number of them
_PATH = re.compile(rf"(?:(?<![\w./~:-])|(?<=:)(?=/[^/]|///))/+{_WORD}(?:/|{_WORD})*")
_OF_MACHINE = ("runs", "resume")  # where a run is, which its own folder knows


def without_paths(text: str) -> str:
    """The text with each absolute path in it relative to the working directory; one outside of that keeps its last
    part, and a hash that tells it from others of that name."""
    return _PATH.sub(lambda found: _short(_path(found.group())), text)


def _path(text: str) -> Path:
    """Of two leading slashes pathlib would keep both."""
    return Path("/" + text.lstrip("/"))


def _short(path: Path) -> str:
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config as a checkpoint and loggers tell it: absolute paths are relative to the working directory, and
    those outside of it are left out, each with its key."""
    return {key: _public(value) for key, value in config.items() if key not in _OF_MACHINE and not _is_elsewhere(value)}


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _public(below) for key, below in value.items() if not _is_elsewhere(below)}
    if isinstance(value, list):
        return [_public(below) for below in value if not _is_elsewhere(below)]
    return without_paths(value) if isinstance(value, str) else value


def _is_elsewhere(value: Any) -> bool:
    """Does a string hold a path outside of the working directory?"""
    paths = _PATH.findall(value) if isinstance(value, str) else []
    return any(not _path(path).is_relative_to(Path.cwd()) for path in paths)
