"""How a user's function is called: a plan made once, at decoration, from its signature."""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .codec import Codec, codec_for, type_name, wire_type
from .errors import ConfigurationError
from .message import Message


class Kind(Enum):
    """How a handler runs."""

    COROUTINE = "coroutine"
    GENERATOR = "async generator"
    THREAD = "sync function"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A function, what it takes, and how it runs. ``invoke(event, message)`` passes only what it asked for.

    ``direct`` is the function itself if the event is all that it takes: nobody has to make a message for it then.
    ``code`` tells its frames in a stack.
    """

    name: str
    place: str
    event_type: Any
    wire_type: str
    codec: Codec[Any]
    kind: Kind
    invoke: Callable[[Any, Message], Any]
    direct: Callable[[Any], Any] | None = None
    code: types.CodeType | None = None


UNSTATED: Any = inspect.Parameter.empty


def plan(function: Callable[..., Any], *, event_type: Any = UNSTATED) -> Handler:
    """Work out how to call a handler.

    The event is its first positional parameter, of the annotated type unless ``event_type`` says it; the ``Message`` is
    found by its annotation. A function of a ``Message`` alone gets the undecoded message.

    Raises:
        ConfigurationError: there is nothing to tell the event's type by, or a parameter that nothing can fill.
    """
    if not callable(function):
        raise ConfigurationError(f"{function!r} is not a function")
    where = f"handler {name_of(function)} ({place_of(function)})"
    event, others = _parameters(function, where)
    annotations = _Annotations(function, where)
    if event_type is UNSTATED:
        event_type = annotations.of(event, needed=True)
        if _is_message(event_type):
            event_type, others = bytes, [event]
            invoke = _invoker(function, others, annotations, skip_event=True)
            return _handler(function, event_type, invoke)
    return _handler(function, event_type, _invoker(function, others, annotations))


def name_of(function: Callable[..., Any]) -> str:
    """Give a handler's qualified name, also of a partial or a callable object."""
    target = _target(function)
    return f"{target.__module__}.{target.__qualname__}"


def place_of(function: Callable[..., Any]) -> str:
    """Give the file and line of a handler."""
    code = getattr(inspect.unwrap(_target(function)), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else "no source"


def _handler(function: Callable[..., Any], event_type: Any, invoke: Callable[[Any, Message], Any] | None) -> Handler:
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
        code=getattr(inspect.unwrap(_target(function)), "__code__", None),
    )


def _target(function: Callable[..., Any]) -> Any:
    """Find the function that has the annotations: inside a partial, behind a method, or an object's ``__call__``."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or isinstance(function, type):
        return function
    return type(function).__call__


def _kind(function: Callable[..., Any]) -> Kind:
    target = _target(function)
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
    annotations: "_Annotations",
    *,
    skip_event: bool = False,
) -> Callable[[Any, Message], Any] | None:
    """Choose the call once, so that no message pays for binding parameters; ``None``: the event is all it takes."""
    takes: inspect.Parameter | None = None
    for parameter in others:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        if takes is None and _is_message(annotations.of(parameter)):
            takes = parameter
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigurationError(
                f"{annotations.where} asks for {parameter.name!r}, which is neither the event (the first parameter) "
                f"nor annotated as Message; give it a default, or bind it with functools.partial"
            )
    if skip_event:
        return lambda _event, message: function(message)
    if takes is None:
        return None
    if takes.kind is not inspect.Parameter.KEYWORD_ONLY and others[0] is takes:
        return function
    name = takes.name
    return lambda event, message: function(event, **{name: message})


def _is_message(annotation: Any) -> bool:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return Message in typing.get_args(annotation)
    return annotation is Message


class _Annotations:
    """A function's annotations, resolved one by one: that one can't be must not cost the others."""

    def __init__(self, function: Callable[..., Any], where: str) -> None:
        self.where = where
        target = inspect.unwrap(_target(function))
        self._globals = getattr(target, "__globals__", {})

    def of(self, parameter: inspect.Parameter, *, needed: bool = False) -> Any:
        """Give a parameter's type; one that can't be resolved is an error only where it is ``needed``."""
        annotation = parameter.annotation
        if isinstance(annotation, str):
            annotation = self._resolve(annotation, parameter.name, needed=needed)
        if needed and annotation is inspect.Parameter.empty:
            raise ConfigurationError(
                f"{self.where}: its first parameter {parameter.name!r} has no annotation; annotate it with the event's "
                f"type, or name the type with event=… where the consumer is made"
            )
        return annotation

    def _resolve(self, text: str, name: str, *, needed: bool) -> Any:
        holder = type("holder", (), {"__annotations__": {name: text}})
        try:
            return typing.get_type_hints(holder, globalns=self._globals, include_extras=True)[name]
        except Exception as error:
            if not needed:
                return text
            raise ConfigurationError(
                f"{self.where}: the annotation {text!r} of {name!r} can't be resolved ({error}); a type that is local "
                f"to a function has to be named with event=… where the consumer is made"
            ) from error


def describe_types(handlers: typing.Iterable[Handler]) -> str:
    """Name the events that these handlers take."""
    return ", ".join(type_name(handler.event_type) for handler in handlers)
