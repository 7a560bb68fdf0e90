"""How a user's function is called: a plan made once, at decoration, from its signature."""

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .codec import Codec, codec_for, type_name, wire_type
from .depends import Need, check, is_message, need_of
from .errors import ConfigurationError
from .signature import VARIABLE, Annotations, target_of


class Kind(Enum):
    """How a handler runs."""

    COROUTINE = "coroutine"
    GENERATOR = "async generator"
    THREAD = "sync function"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A function, what it takes, and how it runs. ``invoke(event, message)`` passes only what it asked for.

    ``needs`` are its dependencies, which ``invoke`` takes by name.
    ``direct`` is the function itself if the event is all that it takes: nobody has to make a message for it then.
    ``code`` tells its frames in a stack.
    """

    name: str
    place: str
    event_type: Any
    wire_type: str
    codec: Codec[Any]
    kind: Kind
    invoke: Callable[..., Any]
    direct: Callable[[Any], Any] | None = None
    code: types.CodeType | None = None
    needs: tuple[Need, ...] = ()


UNSTATED: Any = inspect.Parameter.empty


def plan(function: Callable[..., Any], *, event_type: Any = UNSTATED) -> Handler:
    """Work out how to call a handler.

    The event is its first positional parameter, of the annotated type unless ``event_type`` says it; the ``Message`` is
    found by its annotation, dependencies by their markers. A function of a ``Message`` alone gets it undecoded.

    Raises:
        ConfigurationError: there is nothing to tell the event's type by, or a parameter that nothing can fill.
    """
    if not callable(function):
        raise ConfigurationError(f"{function!r} is not a function")
    where = f"handler {name_of(function)} ({place_of(function)})"
    event, others = _parameters(function, where)
    annotations = Annotations(function, where)
    raw = False
    if event_type is UNSTATED:
        event_type = annotations.of(event, needed=True)
        raw = is_message(event_type)
    needs = tuple(need for one in others if (need := need_of(one, annotations.of(one), where)) is not None)
    check(needs, where)
    others = [one for one in others if one.name not in {need.name for need in needs}]
    if raw:
        event_type = bytes
    invoke = _invoker(function, others, annotations, skip_event=raw, keywords=bool(needs))
    return _handler(function, event_type, invoke, needs)


def name_of(function: Callable[..., Any]) -> str:
    """Give a handler's qualified name, also of a partial or a callable object."""
    target = target_of(function)
    return f"{target.__module__}.{target.__qualname__}"


def place_of(function: Callable[..., Any]) -> str:
    """Give the file and line of a handler."""
    code = getattr(inspect.unwrap(target_of(function)), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else "no source"


def _handler(
    function: Callable[..., Any], event_type: Any, invoke: Callable[..., Any] | None, needs: tuple[Need, ...]
) -> Handler:
    """Put the plan together; without ``invoke`` the event is all that the function takes."""
    return Handler(
        name=name_of(function),
        place=place_of(function),
        event_type=event_type,
        wire_type=wire_type(event_type),
        codec=codec_for(event_type),
        kind=_kind(function),
        invoke=invoke or (lambda event, _message: function(event)),
        direct=None if invoke else function,
        code=getattr(inspect.unwrap(target_of(function)), "__code__", None),
        needs=needs,
    )


def _kind(function: Callable[..., Any]) -> Kind:
    target = target_of(function)
    if inspect.iscoroutinefunction(target):
        return Kind.COROUTINE
    return Kind.GENERATOR if inspect.isasyncgenfunction(target) else Kind.THREAD


def _parameters(function: Callable[..., Any], where: str) -> tuple[inspect.Parameter, list[inspect.Parameter]]:
    found = list(inspect.signature(function).parameters.values())
    if not found or found[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        raise ConfigurationError(f"{where} has no positional parameter to take the event")
    return found[0], found[1:]


def _invoker(
    function: Callable[..., Any],
    others: list[inspect.Parameter],
    annotations: Annotations,
    *,
    skip_event: bool = False,
    keywords: bool = False,
) -> Callable[..., Any] | None:
    """Choose the call once, so that no message pays for binding parameters; ``None``: the event is all it takes.

    ``keywords``: dependencies are handed over by name, too.
    """
    takes: inspect.Parameter | None = None
    for parameter in others:
        if parameter.kind in VARIABLE:
            continue
        if takes is None and is_message(annotations.of(parameter)):
            takes = parameter
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigurationError(
                f"{annotations.where} asks for {parameter.name!r}, which is neither the event (the first parameter) "
                f"nor annotated as Message or with Depends(…); give it a default, or bind it with functools.partial"
            )
    if skip_event:
        return lambda _event, message, **values: function(message, **values)
    if takes is None:
        return (lambda event, _message, **values: function(event, **values)) if keywords else None
    if takes.kind is not inspect.Parameter.KEYWORD_ONLY and others[0] is takes and not keywords:
        return function
    name = takes.name
    return lambda event, message, **values: function(event, **{name: message}, **values)


def describe_types(handlers: typing.Iterable[Handler]) -> str:
    """Name the events that these handlers take."""
    return ", ".join(type_name(handler.event_type) for handler in handlers)
