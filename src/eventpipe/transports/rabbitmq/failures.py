"""Where errors of aiormq, aio-pika and the operating system become eventpipe's."""

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Iterator

import aiormq.exceptions as aiormq_errors

from ...errors import AccessRefused, ConnectError, TopologyError, TopologyMismatch, TopologyMissing
from .address import Address

LOST: tuple[type[BaseException], ...] = (
    aiormq_errors.AMQPError,
    RuntimeError,  # ChannelInvalidStateError, and "Connection was not opened"
    OSError,
    TimeoutError,
    EOFError,
    Exception,  # aiormq ends futures with a bare Exception() when a socket closes between two frames
)
"""What a call on a lost channel or connection may raise; it means "gone", whatever it is."""


@contextlib.contextmanager
def aiormq_calls() -> Iterator[None]:
    """Turn a cancellation that nobody asked for into a lost connection.

    aiormq cancels whoever waits on a connection that it finds stuck; taken at its word, that would end our own tasks.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionResetError("the client library gave the connection up") from error


_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<argument>[^']*)' for (?P<kind>exchange|queue) '(?P<name>[^']*)' in vhost '[^']*': "
    r"(?:received (?P<declared>none|'[^']*'|the value '[^']*')(?: of type '[^']*')?) "
    r"but current is (?P<existing>none|'[^']*'|the value '[^']*')"
)
_NO_EXCHANGE = re.compile(r"no exchange '([^']*)'")
_EXCHANGE_REFUSED = re.compile(r"access to exchange '([^']*)'")


def connect_error(error: BaseException, address: Address, seconds: float) -> ConnectError:
    """Say why a connection could not be made, and what to look at."""
    return (
        _refusal(error, address)
        or _network_error(error, address, seconds)
        or _network_error(error.__cause__, address, seconds)
        or ConnectError(f"{address}: {type(error).__name__}: {error or 'the connection was closed'}")
    )


def _refusal(error: BaseException, address: Address) -> AccessRefused | None:
    text = str(error)
    if isinstance(error, aiormq_errors.ProbableAuthenticationError) or "ACCESS_REFUSED" in text:
        return AccessRefused(f"{address}: the broker refused the login of user {address.user!r}; check its password")
    # aiormq does not look into a Connection.Close that answers Connection.Open; a virtual host is all that Open names.
    if "NOT_ALLOWED" in text or ("Connection.OpenOk" in text and "Connection.Close" in text):
        return AccessRefused(
            f"{address}: virtual host {address.vhost!r} does not exist, or user {address.user!r} may not use it"
        )
    return None


def _network_error(error: BaseException | None, address: Address, seconds: float) -> ConnectError | None:
    if isinstance(error, TimeoutError):
        return ConnectError(f"{address}: no connection within {seconds} s; is it a broker, and is it reachable?")
    if isinstance(error, ssl.SSLError):
        return ConnectError(f"{address}: TLS failed: {error}; check certificate, host name, cacertfile and port")
    if isinstance(error, socket.gaierror):
        return ConnectError(f"{address}: the host name can't be resolved: {error}")
    if isinstance(error, ConnectionRefusedError):
        return ConnectError(f"{address}: nothing listens there: {error}; is the broker running?")
    return None


def topology_error(error: BaseException, kind: str, name: str) -> TopologyError:
    """Say what is wrong with the object whose declaration or check failed."""
    text = str(error)
    found = _INEQUIVALENT.search(text)
    if found:
        return TopologyMismatch(
            kind=kind,
            name=name,
            argument=found["argument"],
            declared=_plain(found["declared"]),
            existing=_plain(found["existing"]),
        )
    if isinstance(error, aiormq_errors.ChannelNotFoundEntity):
        return TopologyMissing(f"{kind} {name!r} does not exist; whoever owns it has to declare it ({text})")
    if isinstance(error, aiormq_errors.ChannelLockedResource):
        return TopologyError(f"{kind} {name!r} is exclusive to another connection ({text})")
    if isinstance(error, aiormq_errors.ChannelAccessRefused):
        return TopologyError(f"{kind} {name!r}: the broker does not permit this user to configure it ({text})")
    return TopologyError(f"{kind} {name!r} can't be declared: {type(error).__name__}: {text}")


def missing_exchange(error: BaseException) -> str | None:
    """Give the exchange that a channel error says does not exist."""
    found = _NO_EXCHANGE.search(str(error))
    return found[1] if found else None


def refused_exchange(error: BaseException) -> str | None:
    """Give the exchange that a channel error says this user may not publish to."""
    found = _EXCHANGE_REFUSED.search(str(error))
    return found[1] if found else None


def _plain(text: str) -> str:
    return text.removeprefix("the value ").strip("'") or "''"
