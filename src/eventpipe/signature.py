"""What a function's signature says: where its annotations are, and what they mean."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

from .errors import ConfigurationError

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
"""The kinds of ``*args`` and ``**kwargs``, which nobody has to fill."""


def target_of(function: Callable[..., Any]) -> Any:
    """Find the function that has the annotations: inside a partial, behind a method, or an object's ``__call__``."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or isinstance(function, type):
        return function
    return type(function).__call__


class Annotations:
    """A function's annotations, resolved one by one: that one can't be must not cost the others."""

    def __init__(self, function: Callable[..., Any], where: str) -> None:
        self.where = where
        target = inspect.unwrap(target_of(function))
        if isinstance(target, type):
            target = inspect.getattr_static(target, "__init__")
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
