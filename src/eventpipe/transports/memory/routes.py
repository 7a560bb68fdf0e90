"""Where a message goes: exchanges, bindings, and the queues that a routing key leads to."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from ...errors import TopologyMissing
from ...routing import Binding, Exchange
from ..base import Outgoing, Verdict, VerdictKind
from .matching import matches

_KNOWN = 10_000  # keys may be made from events: there is no end of them

_BUILT_IN = (
    Exchange("amq.direct", kind="direct"),
    Exchange("amq.topic"),
    Exchange("amq.fanout", kind="fanout"),
    Exchange("amq.headers", kind="headers"),
    Exchange("amq.match", kind="headers"),
)


class Refusal(Exception):
    """A publish that RabbitMQ closes the channel for; the verdict is what the publisher hears."""

    def __init__(self, kind: VerdictKind, reason: str) -> None:
        super().__init__(reason)
        self.verdict = Verdict(kind, reason)


class Routes:
    """Exchanges and bindings. Queues are named only: they exist elsewhere."""

    def __init__(self) -> None:
        self.exchanges: dict[str, Exchange] = {exchange.name: exchange for exchange in _BUILT_IN}
        self._bindings: dict[str, list[tuple[Binding, str, str]]] = {}
        self._known: dict[tuple[str, str], tuple[str, ...]] = {}

    def bind(self, binding: Binding, target: str, kind: Literal["queue", "exchange"]) -> None:
        """Bind a queue or an exchange that exists. Raises ``TopologyMissing`` when the source does not."""
        source = binding.source.name
        if source not in self.exchanges:
            raise TopologyMissing(f"can't bind {kind} {target!r}: exchange {source!r} does not exist")
        entries = self._bindings.setdefault(source, [])
        if (binding, target, kind) not in entries:
            entries.append((binding, target, kind))
        self.changed()

    def unbind(self, queue: str) -> None:
        """Forget the bindings of a queue that is gone, and the auto-delete exchanges that have no binding then."""
        for source, entries in list(self._bindings.items()):
            left = [one for one in entries if one[1:] != (queue, "queue")]
            self._bindings[source] = left
            if not left and len(entries) > len(left) and self.exchanges[source].auto_delete:
                del self.exchanges[source], self._bindings[source]
        self.changed()

    def changed(self) -> None:
        """Forget the routes that were found."""
        self._known.clear()

    def find(self, outgoing: Outgoing) -> tuple[str, ...]:
        """Find the queues of a message, each once. Raises ``Refusal``."""
        headers = outgoing.properties.headers
        expiration = outgoing.properties.expiration
        if expiration is not None and not expiration.isdecimal():
            raise Refusal(VerdictKind.REFUSED, f"PRECONDITION_FAILED - invalid expiration {expiration!r}")
        keys: tuple[str, ...] = (outgoing.key,)
        if "CC" in headers or "BCC" in headers:
            keys += (*_copies(headers, "CC"), *_copies(headers, "BCC"))
        elif (known := self._known.get((outgoing.exchange, outgoing.key))) is not None:
            return known
        return self._search(outgoing.exchange, keys, headers)

    def _search(self, exchange: str, keys: tuple[str, ...], headers: Mapping[str, Any]) -> tuple[str, ...]:
        if not exchange:
            return tuple(dict.fromkeys(keys))
        if exchange not in self.exchanges:
            raise Refusal(VerdictKind.UNROUTABLE, f"NOT_FOUND - no exchange {exchange!r}")
        if self.exchanges[exchange].internal:
            raise Refusal(VerdictKind.REFUSED, f"ACCESS_REFUSED - exchange {exchange!r} is internal")
        passed, queues = self._walk(exchange, keys, headers)
        by_headers = any(self.exchanges[name].kind == "headers" for name in passed)
        if not by_headers and len(keys) == 1:  # what headers decided can't be told from the key
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[exchange, keys[0]] = queues
        return queues

    def _walk(
        self, exchange: str, keys: tuple[str, ...], headers: Mapping[str, Any]
    ) -> tuple[set[str], tuple[str, ...]]:
        """Walk from an exchange to all that it leads to: exchanges passed, and queues, each once."""
        queues: dict[str, None] = {}
        passed, todo = {exchange}, [exchange]
        while todo:
            for target, kind in self._next(self.exchanges[todo.pop()], keys, headers):
                if kind == "queue":
                    queues[target] = None
                elif target not in passed and target in self.exchanges:
                    passed.add(target)
                    todo.append(target)
        return passed, tuple(queues)

    def _next(self, spec: Exchange, keys: tuple[str, ...], headers: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
        """Follow one exchange's bindings or, where none matches, go to its alternate."""
        matched = [
            (target, kind)
            for binding, target, kind in self._bindings.get(spec.name, ())
            if any(matches(binding, spec.kind, key, headers) for key in keys)
        ]
        alternate = spec.wire_arguments.get("alternate-exchange")
        return matched or ([] if alternate is None else [(alternate, "exchange")])


def without_bcc(outgoing: Outgoing) -> Outgoing:
    """Take off the ``BCC`` header, which no consumer gets to see."""
    headers = outgoing.properties.headers
    if "BCC" not in headers:
        return outgoing
    shown = {name: value for name, value in headers.items() if name != "BCC"}
    return replace(outgoing, properties=replace(outgoing.properties, headers=shown))


def _copies(headers: Mapping[str, Any], name: str) -> Iterable[str]:
    keys = headers.get(name, ())
    if not isinstance(keys, (list, tuple)) or not all(isinstance(key, str) for key in keys):
        raise Refusal(VerdictKind.REFUSED, f"PRECONDITION_FAILED - header {name!r} must be a list of routing keys")
    return keys
