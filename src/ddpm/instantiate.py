"""One YAML node, one object: checked against the signature of its target before anything is built."""

import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_type_hints

from hydra.utils import get_object, instantiate
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from ddpm.errors import Refused

Node = Mapping[str, Any]
LISTS = ("callbacks", "logger", "metric")  # groups of which several are chosen
SPECIAL = ("_target_", "_partial_")  # what a node has beside the parameters of its target


def make(node: Any, where: str, **available: Any) -> Any:
    """The object of a node, or a partial of it where the node says `_partial_: true`.

    Of the objects that are `available`, it is handed those that its signature names and its node does
    not. Raises Refused for an unknown target or key, a value of a wrong type or one that its target
    refuses, naming the key.
    """
    target = target_of(node, where)
    wired = {name: value for name, value in available.items() if name in wirable(target, node)}
    check(node, target, where, set(wired))
    values = {key: _made(value, f"{where}.{key}") for key, value in node.items() if key not in SPECIAL}
    try:  # Hydra, which has targets of its own that it refuses, is shown no values: it would look up what they hold
        build = instantiate({"_target_": node["_target_"], "_partial_": True})
        return partial(build, **values) if node.get("_partial_") else build(**values, **wired)
    except Exception as error:  # in whatever way it fails, it is of these values that no such object can be made
        raise _told(error, where) from error


def _made(value: Any, where: str) -> Any:
    """A value of a node, which may be a node or hold some."""
    if isinstance(value, Mapping):
        below = {key: _made(part, f"{where}.{key}") for key, part in value.items() if "_target_" not in value}
        return make(value, where) if "_target_" in value else below
    return [_made(part, where) for part in value] if isinstance(value, list) else value


def target_of(node: Any, where: str) -> Callable[..., Any]:
    """The callable that the node names."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        group, _, part = where.partition(".")
        listed = f"add {part} to {group}=[...], or leave it out with ~{where}"
        raise Refused(f"{where} has no _target_; {listed if group in LISTS else f'choose one of conf/{group}/'}.")
    try:
        found = get_object(node["_target_"])
    except Exception as error:
        raise Refused(f"{where}._target_={node['_target_']} cannot be found; check its spelling.") from error
    if not callable(found):
        raise Refused(f"{where}._target_={node['_target_']} makes no object; name a class or a function.")
    target: Callable[..., Any] = found
    return target


def wirable(target: Callable[..., Any], node: Node) -> set[str]:
    """The parameters that the node leaves open."""
    return set(inspect.signature(target).parameters) - set(node)


def check(node: Node, target: Callable[..., Any], where: str, wired: set[str]) -> None:
    """Refuse keys that the target does not know, values of a wrong type, and gaps."""
    parameters = inspect.signature(target).parameters
    values = {key: value for key, value in node.items() if key not in SPECIAL}
    catches_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in values.items():
        if key not in parameters and not catches_all:
            raise Refused(f"{where} has no key '{key}'; it knows {', '.join(parameters)}.")
        check_value(value, annotation(target, key), f"{where}.{key}")
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind is p.KEYWORD_ONLY and name not in wired and name not in values
    ]
    if missing and not node.get("_partial_"):
        raise Refused(f"{where} needs a value for {', '.join(missing)}.")


def annotation(target: Callable[..., Any], key: str) -> Any:
    """The type that the target's signature states for a parameter, or Any."""
    function = target.__init__ if inspect.isclass(target) else target
    while isinstance(function, partial) or hasattr(function, "__wrapped__"):
        function = function.func if isinstance(function, partial) else function.__wrapped__
    try:
        return get_type_hints(function).get(key, Any)
    except (NameError, TypeError):  # third parties' annotations that exist only for their type checker
        return Any


def check_values(config: Node, kinds: Mapping[str, Any]) -> None:
    """Refuse keys that were taken away, and values that are not of these kinds."""
    for key, kind in kinds.items():
        if key not in config:
            raise Refused(f"{key} is not there, and has to be; leave out ~{key}.")
        check_value(config[key], kind, key)


def check_value(value: Any, kind: Any, where: str) -> None:
    """Refuse a plain value that is not of the kind an annotation asks for, and a number that is not finite."""
    if isinstance(value, Mapping) and "_target_" in value:
        return check(value, target_of(value, where), where, set())
    try:
        adapter = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
        adapter.validate_json(json.dumps(value), strict=True)  # as JSON, whose lists may stand for tuples
    except (TypeError, RecursionError) as error:
        raise Refused(f"{where}={shortened(value)} is not possible: it holds more than numbers and words.") from error
    except ValidationError as error:
        told = [detail["msg"] for detail in error.errors() if detail["type"] != "needs_python_object"]
        problems = "; ".join(dict.fromkeys(told)) or "it takes an object with a _target_"
        raise Refused(f"{where}={shortened(value)} is not possible: {shortened(problems)}.") from error
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        return None  # a type of a third party that no plain value has


def shortened(value: Any) -> str:
    """What an error says of a value, which may be long, in one line."""
    text = " ".join(str(value)[:1000].split())
    return text if len(text) <= 400 else f"{text[:400]}..."


def _told(error: BaseException, where: str) -> Refused:
    """What a target says of its values, as one sentence that names the node."""
    if isinstance(error, Refused):
        return error
    return Refused(f"{where}: {shortened(error) or type(error).__name__}")
