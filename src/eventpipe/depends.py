"""What a handler's parameters need beyond the event: dependencies, planned once from signatures, run nowhere in here.

``Annotated[T, Depends(f)]`` is FastAPI's way to say it. Any marker that has a ``dependency`` is understood, FastAPI's
and FastDepends' too, so that one alias serves an endpoint and a handler.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .errors import ConfigurationError
from .message import Message
from .signature import VARIABLE, Annotations, target_of

NOTHING: Any = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Depends:
    """Fill a parameter with what ``dependency`` gives: ``session: Annotated[Session, Depends(make_session)]``.

    It is a function (sync ones run in a thread), a class, or a generator function that yields once: what follows the
    ``yield`` runs before the message is settled, and if it fails the handling has failed. Without one, the annotated
    class is called. ``use_cache``: parameters of one handling that name the same dependency share what it gave.
    """

    dependency: Callable[..., Any] | None = None
    use_cache: bool = True


class Gives(Enum):
    """How a dependency gives its value."""

    COROUTINE = "coroutine"
    ASYNC_GENERATOR = "async generator"
    GENERATOR = "generator"
    CLASS = "class"
    FUNCTION = "function"


@dataclass(frozen=True, slots=True)
class Need:
    """A parameter, by its name, and the dependency that fills it."""

    name: str
    dependency: Callable[..., Any]
    use_cache: bool


@dataclass(frozen=True, slots=True)
class Provider:
    """How to call a dependency; ``message`` is the name of the parameter that takes the ``Message``, if one does."""

    function: Callable[..., Any]
    gives: Gives
    needs: tuple[Need, ...]
    message: str | None


def need_of(parameter: inspect.Parameter, annotation: Any, where: str) -> Need | None:
    """Find the dependency of a parameter, in its annotation or as its default. Raises ``ConfigurationError``."""
    for marker in (*_metadata(annotation), parameter.default):
        dependency = getattr(marker, "dependency", NOTHING)
        if dependency is NOTHING or isinstance(marker, type):
            continue
        dependency = _class_of(annotation) if dependency is None else dependency
        if not callable(dependency):
            raise ConfigurationError(f"{where}: Depends({dependency!r}) of {parameter.name!r} can't be called")
        return Need(parameter.name, dependency, bool(getattr(marker, "use_cache", True)))
    return None


def is_message(annotation: Any) -> bool:
    """Tell whether a parameter of this type takes the ``Message``."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return Message in typing.get_args(annotation)
    return annotation is Message


def check(needs: tuple[Need, ...], where: str, within: tuple[Callable[..., Any], ...] = ()) -> None:
    """Plan what these need, and what that needs in turn. Raises ``ConfigurationError`` if something can't be filled."""
    for need in needs:
        if need.dependency in within:
            raise ConfigurationError(f"{where}: {_name(need.dependency)} depends on itself")
        try:
            found = provider(need.dependency)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error}") from error
        check(found.needs, where, (*within, need.dependency))


@functools.lru_cache(maxsize=1024)
def provider(function: Callable[..., Any]) -> Provider:
    """Plan how to call a dependency. Raises ``ConfigurationError`` if a parameter of it can't be filled."""
    needs: list[Need] = []
    message: str | None = None
    where = f"the dependency {_name(function)}"
    annotations = Annotations(function, where)
    for parameter in _parameters(function):
        annotation = annotations.of(parameter)
        need = need_of(parameter, annotation, where)
        if need is not None:
            needs.append(need)
        elif is_message(annotation):
            message = parameter.name
        elif parameter.default is NOTHING:
            raise ConfigurationError(
                f"{where} asks for {parameter.name!r}, which nothing here can give: a handler "
                f"has a Message and other dependencies, no request; give it a default, or Depends(…)"
            )
    return Provider(function, _gives(function), tuple(needs), message)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature takes nothing
        return []
    return [parameter for parameter in found if parameter.kind not in VARIABLE]


def _gives(function: Callable[..., Any]) -> Gives:
    if isinstance(function, type):
        return Gives.CLASS
    target = inspect.unwrap(target_of(function))
    if inspect.iscoroutinefunction(target):
        return Gives.COROUTINE
    if inspect.isasyncgenfunction(target):
        return Gives.ASYNC_GENERATOR
    return Gives.GENERATOR if inspect.isgeneratorfunction(target) else Gives.FUNCTION


def _metadata(annotation: Any) -> tuple[Any, ...]:
    return annotation.__metadata__ if typing.get_origin(annotation) is typing.Annotated else ()


def _class_of(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))
