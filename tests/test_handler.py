"""How handlers are called, worked out from their signatures."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from eventpipe import ConfigurationError, Message
from eventpipe.handler import Kind, plan

MESSAGE = Message(id="m", body=b"x")


class Event:
    """A type at module level, which postponed annotations can name."""

    def __init__(self, value: int = 1) -> None:
        self.value = value

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(cls)


class Service:
    def method(self, event: int, message: Message) -> Any:
        return event, message

    def __call__(self, event: int) -> Any:
        return event

    async def run(self, event: Event) -> None: ...


def keyword(event: int, *, about: Message) -> Any:
    return event, about


def second(event: int, other: str = "x", message: Message | None = None) -> Any:
    return event, message


def alone(message: Message) -> Any:
    return message


def bound(service: str, event: int) -> Any:
    return service, event


@functools.lru_cache
def wrapped(event: int) -> Any:
    return event


@pytest.mark.parametrize(
    ("function", "event_type", "result"),
    [
        (Service().method, int, (1, MESSAGE)),
        (Service(), int, 1),
        (keyword, int, (1, MESSAGE)),
        (second, int, (1, MESSAGE)),
        (alone, bytes, MESSAGE),
        (functools.partial(bound, "s"), int, ("s", 1)),
        (wrapped, int, 1),
    ],
)
def test_the_event_and_the_message_are_found(function: Any, event_type: Any, result: Any) -> None:
    """The event is the first parameter, the message is found by its annotation, whatever the callable."""
    found = plan(function)
    assert found.event_type is event_type
    assert found.invoke(1, MESSAGE) == result


def test_kinds() -> None:
    """Coroutine functions, async generators and plain functions are told apart, behind methods and partials too."""

    async def coroutine(event: int) -> None: ...

    async def generator(event: int) -> Any:
        yield event

    assert plan(coroutine).kind is plan(functools.partial(coroutine)).kind is plan(Service().run).kind is Kind.COROUTINE
    assert plan(generator).kind is Kind.GENERATOR
    assert plan(Service()).kind is Kind.THREAD


def test_a_type_that_is_local_has_to_be_named() -> None:
    """A postponed annotation of a local type can't be resolved; ``event=`` names it instead."""

    class Local(Event):
        pass

    async def handle(event: Local, message: Message) -> None: ...

    with pytest.raises(ConfigurationError, match=r"handler .*handle .*'Local' of 'event' can't be resolved"):
        plan(handle)
    assert plan(handle, event_type=Local).event_type is Local


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda: None, "no positional parameter"),
        (lambda *, event: None, "no positional parameter"),
        (lambda event: None, "has no annotation"),
        (bound, "asks for 'event'"),
        (5, "5 is not a function"),
    ],
)
def test_what_can_not_be_called(function: Any, text: str) -> None:
    """A function that can't be given its parameters is an error at decoration that names it."""
    with pytest.raises(ConfigurationError, match=text):
        plan(function)
