"""One YAML node, one object: checked against the signature of its target before anything is built."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from ddpm.errors import Refused

Node = Mapping[str, Any]


def make(node: Node, where: str, **available: Any) -> Any:
    """The object of a node, or a partial of it where the node says `_partial_: true`.

    Of the objects that are `available`, it is handed those that its signature names and its node does
    not. Raises Refused for an unknown target or key, a value of a wrong type or one that its target
    refuses, naming the key.
    """
    target = target_of(node, where)
    wired = {name: value for name, value in available.items() if name in wirable(target, node)}
    check(node, target, where, set(wired))
    try:
        build = instantiate(dict(node), _partial_=True, _convert_="all")
        return build if node.get("_partial_") else build(**wired)
    except InstantiationException as error:
        raise _told(error.__cause__ or error, where) from error
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise _told(error, where) from error


def target_of(node: Node, where: str) -> Callable[..., Any]:
    """The callable that the node names."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise Refused(f"{where} has no _target_; choose one of conf/{where.split('.')[0]}/.")
    try:
        found: Callable[..., Any] = get_object(node["_target_"])
    except Exception as error:
        raise Refused(f"{where}._target_={node['_target_']} can not be found; check its spelling.") from error
    return found


def wirable(target: Callable[..., Any], node: Node) -> set[str]:
    """The parameters that the node leaves open."""
    return set(inspect.signature(target).parameters) - set(node)


def check(node: Node, target: Callable[..., Any], where: str, wired: set[str]) -> None:
    """Refuse keys that the target does not know, values of a wrong type, and gaps."""
    parameters = inspect.signature(target).parameters
    values = {key: value for key, value in node.items() if not key.startswith("_")}
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


def check_value(value: Any, kind: Any, where: str) -> None:
    """Refuse a plain value that is not of the kind an annotation asks for."""
    if isinstance(value, Mapping) and "_target_" in value:
        return check(value, target_of(value, where), where, set())
    try:
        TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        problems = "; ".join(dict.fromkeys(detail["msg"] for detail in error.errors()))
        raise Refused(f"{where}={value} is not possible: {problems}.") from error
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        return None  # a type of a third party that no plain value has


def _told(error: BaseException, where: str) -> Refused:
    """What a target says of its values, as one sentence that names the node."""
    if isinstance(error, Refused):
        return error
    return Refused(f"{where}: {' '.join(str(error).split())}")
