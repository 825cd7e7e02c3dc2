"""What an error says to a user: one message, that names the thing and the remedy. Light: the command line needs it."""

from collections.abc import Iterable
from difflib import get_close_matches

from hydra.errors import MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from ddpm.errors import Refused


def sentence(error: BaseException) -> str:
    """What an error says: a refusal on one line, whatever it quotes; what Hydra has found, on as few as it needs."""
    told = _choice(error) or _key(error) or str(error)
    lines = [told] if isinstance(error, Refused) else told.split("\n")
    plain = (printable(line.strip()) for line in lines)
    return (
        "\n".join(line for line in plain if line and not line.startswith("Set the environment")) or type(error).__name__
    )


def printable(text: str) -> str:
    """The text with what a terminal would obey, which a file may have brought along, as escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def no_choice(group: str, choice: str, choices: Iterable[str]) -> str:
    """What is to be said of a choice that a group does not have."""
    return f"{group}={choice} is not one of {', '.join(choices)}."


def _choice(error: BaseException) -> str:
    """Of a choice that is in no file; where several are asked for, Hydra does not say what else there is."""
    if not isinstance(error, MissingConfigException) or "/" not in (error.missing_cfg_file or ""):
        return ""
    group, choice = str(error.missing_cfg_file).rsplit("/", 1)
    return no_choice(group, choice, error.options) if error.options else f"there is no {choice} in conf/{group}/."


def _key(error: BaseException) -> str:
    """Of an override whose key is not there, or of a key that a node does not have."""
    cause = error.__cause__ or error
    if not isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return ""
    keys = [str(key) for key in cause.parent_node] if isinstance(cause.parent_node, DictConfig) else []
    near = get_close_matches(str(cause.key), keys, 1)
    meant = f"did you mean {str(cause.full_key).removesuffix(str(cause.key))}{near[0]}?" if near else ""
    return f"there is no key {cause.full_key}; {meant or 'see --cfg job, and write +key=value to add one.'}"
