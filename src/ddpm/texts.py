"""JSON and YAML that anybody may have written, read within bounds. Light on purpose: the command line waits for it.

Every reader raises ValueError where a file is anything else; its message is the reason, and follows the file's name.
"""

import json
from pathlib import Path
from typing import Any

import yaml

_TEXT = 64 * 2**20  # bytes of a file


def told(path: Path) -> Any:
    """What a JSON file holds."""
    return _parsed(_text(path))


def told_by_line(path: Path) -> list[Any]:
    """What each line of a file of JSON lines holds."""
    return [_parsed(line) for line in _text(path).splitlines() if line.strip()]


def settings(path: Path) -> dict[str, Any]:
    """What a YAML file holds, if it is there and holds words by name; nothing in it is looked up."""
    try:
        held = yaml.safe_load(_text(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return held if isinstance(held, dict) else {}


def _text(path: Path) -> str:
    if path.stat().st_size > _TEXT:
        raise ValueError("is too large to be read")
    return path.read_text()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as fault:
        raise ValueError("is nested without end") from fault
